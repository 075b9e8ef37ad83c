"""`ReadAhead`: a thread that loads what comes next in a sequence of steps, before it is asked for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

#: A place where nobody has read for so many requests is left behind. Places of several readers take turns.
_REQUESTS_TO_BE_LEFT = 16

Loaded = TypeVar("Loaded")


class _Place(NamedTuple):
    """Where a reader is: the step that it asked for last, the direction of its steps, and when it asked."""

    step: int
    direction: int
    request: int


class ReadAhead(Generic[Loaded]):
    """Steps that one thread loads: first what is asked for, and then what lies ahead of the readers.

    A reader is known by its place: who asks for the same step again, or for a step beside it, is the same reader, and
    goes on in this direction. Who asks for any other step is a new reader, and goes forwards. So several evaluations
    can read at once, in both directions. Their threads would not tell them apart, since JAX changes these.

    At most `ahead + 1` loaded steps are kept for each reader. Where a step that is asked for cannot be loaded, the
    error is raised by `get`, and nothing is loaded ahead until the next step is asked for. Where a step ahead cannot be
    loaded, it is tried again once it is asked for.
    """

    def __init__(self, load: Callable[[int], Loaded], ahead: int) -> None:
        self._load = load
        self._ahead = ahead
        self._changed = threading.Condition()
        self._places: list[_Place] = []  # the last one to ask is the first
        self._soon: list[int] = []  # what they may ask for soon, in the order in which it should be loaded
        self._requests = 0
        self._asked: dict[int, Future[Loaded]] = {}
        self._loaded: dict[int, Loaded] = {}
        self._failed: set[int] = set()  # of the steps ahead
        self._closed = False
        threading.Thread(target=self._work, name="HostBatches", daemon=True).start()

    def get(self, step: int) -> Loaded:
        """Return what `load(step)` returns; wait for it if need be. Raises what `load` raises."""
        with self._changed:
            self._move(step)
            self._changed.notify()
            if step in self._loaded:
                return self._loaded[step]
            future = self._asked.setdefault(step, Future())
        return future.result()

    def close(self) -> None:
        """End the thread, after the step that it loads. Nobody may wait for a step, or ask for one later."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _move(self, step: int) -> None:
        """Note who has asked for what, and drop all that no reader will ask for soon."""
        self._requests += 1
        same = next((place for place in self._places if abs(step - place.step) <= 1), None)
        direction = 1 if same is None or step == 0 else step - same.step or same.direction
        others = [
            place
            for place in self._places
            if place is not same and self._requests - place.request <= _REQUESTS_TO_BE_LEFT
        ]
        self._places = [_Place(step, direction, self._requests), *others]
        steps = [place.step + i * place.direction for place in self._places for i in range(self._ahead + 1)]
        self._soon = [step for step in steps if step >= 0]
        self._loaded = {step: self._loaded[step] for step in self._soon if step in self._loaded}
        self._failed.intersection_update(self._soon)

    def _next(self) -> int | None:
        """Return the step to load next, if there is one."""
        missing = (step for step in self._soon if step not in self._loaded and step not in self._failed)
        return next(iter(self._asked), None) if self._asked else next(missing, None)

    def _work(self) -> None:
        while (step := self._wait_for_work()) is not None:
            self._load_one(step)

    def _wait_for_work(self) -> int | None:
        """Return the step to load next, as soon as there is one; None at the end."""
        with self._changed:
            while not self._closed:
                if (step := self._next()) is not None:
                    return step
                self._changed.wait()
        return None

    def _load_one(self, step: int) -> None:
        try:
            loaded = self._load(step)
        except BaseException as error:  # SystemExit too is for those who ask
            with self._changed:
                asked = self._asked.pop(step, None)
                if asked is None:
                    self._failed.add(step)
                else:
                    self._soon = []
                    asked.set_exception(error)
        else:
            with self._changed:
                asked = self._asked.pop(step, None)
                if step in self._soon:
                    self._loaded[step] = loaded
                if asked is not None:
                    asked.set_result(loaded)
