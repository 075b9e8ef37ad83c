"""What the methods share that continue: they move the hyperparameters on their way, and leave a checkpoint."""

import abc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import Cost
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient import checkpoint as checkpoints
from hypergrad_search.hypergradient.base import MESSAGES, Evaluation, Method, Progress, Request, Status, judge
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.losses import OuterLosses
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.space import Hyperparameters, Space, from_unit


class Stretch(NamedTuple):
    """The program of a method at given hyperparameters, as functions of its state.

    The state is a pytree of arrays alone, and its `step` is the number of steps done. `facts` are all that must be the
    same where a checkpoint is written and where it is read.

    - `start()`: the state before the first step.
    - `resume(state)`: the state from which the stretch goes on that began with the checkpoint of another.
    - `advance(state, last, stop)`: the state at the step `stop` of a stretch that ends at the step `last`.
    - `point(state)`: where the hyperparameters are in the unit box.
    - `losses_on_the_way(state)`, `losses(state)`: the losses that are reported, and those at the end of a stretch.
    - `trained(state)`: the model whose losses are those at the end of a stretch.
    """

    facts: tuple[Any, ...]
    start: Callable[[], Any]
    resume: Callable[[Any], Any]
    advance: Callable[[Any, int, int], Any]
    point: Callable[[Any], jax.Array]
    losses_on_the_way: Callable[[Any], OuterLosses]
    losses: Callable[[Any], OuterLosses]
    trained: Callable[[Any], Trained]


class Continuing(Method):
    """A method whose evaluation is a stretch of steps: the next one can go on from the checkpoint that it leaves.

    A subclass gives its `stretch`, its `check`, and what so many steps cost. `steps` is the length of a stretch; None
    stands for the problem's own.
    """

    steps: int | None
    continues = True

    @abc.abstractmethod
    def stretch(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        space: Space,
        fold: Fold | None = None,
    ) -> Stretch:
        """Return the program that begins at these hyperparameters; JAX may trace them, but for `start`."""

    @abc.abstractmethod
    def cost_between(self, problem: TrainingProblem, first: int, last: int, space: Space | None) -> float:
        """Return the cost of a stretch that goes on after `first` steps, and ends after `last`."""

    def cost(self, problem: TrainingProblem, steps: int, space: Space | None = None) -> float:
        """See `Method`; it is that of a first stretch."""
        return self.cost_between(problem, 0, steps, space)

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        owner, space = type(self).__name__, request.space
        if space is None:
            raise ValueError(f"evaluate: {owner} needs space=, the box in which it moves the hyperparameters")
        self.check(problem, hyperparameters, space=space)
        stretch = self.stretch(problem, hyperparameters, key, space, request.fold)
        state = stretch.start()
        if request.checkpoint is not None:
            state = stretch.resume(checkpoints.load(owner, stretch.facts, request.checkpoint, state))
        first, steps = int(state.step), self.steps or problem.steps
        every = request.report_every if request.report is not None else steps
        for stop in [*range(every, steps, every), steps]:
            state = stretch.advance(state, first + steps, first + stop)
            if request.report is not None and stop < steps:
                request.report(Progress(stop, float(stretch.losses_on_the_way(state).value)))
        judged = judge(stretch.losses(state), request.fold)
        end = np.asarray(stretch.point(state), np.float64)
        if judged.status is Status.OK and not np.isfinite(end).all():
            judged = replace(judged, value=math.inf, status=Status.NAN, message=MESSAGES[Status.NAN])
        usable = judged.status is Status.OK
        return replace(
            judged,
            cost=Cost(self.cost_between(problem, first, first + steps, space), time.perf_counter() - started),
            refined={**hyperparameters, **from_unit(space, end)} if usable else None,
            checkpoint=checkpoints.save(stretch.facts, state) if usable else None,
            diagnostics={"steps": steps, "exact": None},
        )

    @with_errors_of_load
    def params(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        *,
        key: jax.Array,
        space: Space | None = None,
        checkpoint: bytes | None = None,
    ) -> Trained:
        """Return the model at the end of the stretch that left `checkpoint`, whose validation loss was its value.

        Raises `ValueError` where `space` or `checkpoint` is missing.
        """
        if space is None or checkpoint is None:
            owner = type(self).__name__
            raise ValueError(f"{owner}.params: give the space and the checkpoint of an evaluation, got None")
        stretch = self.stretch(problem.at(hyperparameters), hyperparameters, key, space)
        return stretch.trained(self._loaded(stretch, checkpoint))

    @with_errors_of_load
    def value(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, key: jax.Array, space: Space, left: bytes
    ) -> float:
        """See `Method`. It has the same bits, since the checkpoint holds the point in the unit box itself."""
        stretch = self.stretch(problem.at(hyperparameters), hyperparameters, key, space)
        return float(stretch.losses(self._loaded(stretch, left)).value)

    def _loaded(self, stretch: Stretch, checkpoint: bytes) -> Any:
        like = jax.eval_shape(stretch.start)
        return checkpoints.load(type(self).__name__, stretch.facts, checkpoint, like)


def checked_optimizer(name: str, optimizer: Any) -> None:
    """Raise `ValueError`, which names the argument, unless it is an optax optimizer or None."""
    if not isinstance(optimizer, optax.GradientTransformation | None):
        raise ValueError(
            f"{name} must be a transformation of optax such as optax.adam(1e-3), or None; got {optimizer!r}"
        )


def checked_steps(name: str, steps: Any) -> int | None:
    """Return the number of steps as an int, or None; else raise `ValueError`, which names the argument."""
    return None if steps is None else whole_number(name, steps, 1)
