"""Steps are loaded by one thread, ahead of their readers and in their direction, and no more are kept than promised."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from hypergrad_search.read_ahead import ReadAhead


class Batch:
    """What is loaded for a step."""

    def __init__(self, step: int) -> None:
        self.step = step


class Log:
    """A `load` that notes what it was asked for; it fails at the steps in `broken`."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.threads: set[int] = set()
        self.broken: set[int] = set()
        self.made: weakref.WeakSet[Batch] = weakref.WeakSet()

    def __call__(self, step: int) -> Batch:
        self.steps.append(step)
        self.threads.add(threading.get_ident())
        if step in self.broken:
            raise OSError(f"no step {step}")
        made = Batch(step)
        self.made.add(made)
        return made


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def reader(log: Log) -> Iterator[ReadAhead[Batch]]:
    reader = ReadAhead(log, 3)
    yield reader
    reader.close()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read(reader: ReadAhead[Batch], step: int) -> None:
    assert reader.get(step).step == step


def test_what_lies_ahead_is_loaded_in_the_direction_of_the_reader(reader: ReadAhead[Batch], log: Log) -> None:
    read(reader, 0)
    wait_until(lambda: log.steps == [0, 1, 2, 3])
    read(reader, 1)
    wait_until(lambda: log.steps == [0, 1, 2, 3, 4])
    read(reader, 20)
    wait_until(lambda: log.steps[5:] == [20, 21, 22, 23])
    read(reader, 20)  # as the last step is asked for again at the start of the way back
    read(reader, 19)
    wait_until(lambda: log.steps[9:] == [19, 18, 17, 16])
    read(reader, 18)
    wait_until(lambda: log.steps[13:] == [15])
    assert len(log.threads) == 1
    assert threading.get_ident() not in log.threads


def test_nothing_before_the_first_step_is_loaded(reader: ReadAhead[Batch], log: Log) -> None:
    for step in (3, 2, 1, 0):
        read(reader, step)
    wait_until(lambda: {0, 1, 2, 3} <= set(log.steps))
    assert min(log.steps) == 0


def test_readers_at_two_places_keep_their_directions(reader: ReadAhead[Batch], log: Log) -> None:
    read(reader, 50)
    for i in range(20):
        read(reader, 100 + i)
        read(reader, 49 - i)
    wait_until(lambda: {119 + 3, 30 - 3} <= set(log.steps))
    assert len(log.steps) == len(set(log.steps)), "a step was loaded twice"


def test_no_more_is_kept_than_promised(reader: ReadAhead[Batch], log: Log) -> None:
    for step in [*range(40), *range(39, -1, -1), *range(40)]:
        read(reader, step)
    for step in range(100, 120):  # the place at 39 is left behind on the way
        read(reader, step)
    wait_until(lambda: log.steps[-1] == 122)
    gc.collect()
    wait_until(lambda: sorted(batch.step for batch in log.made) == [119, 120, 121, 122])


def test_without_ahead_only_what_is_asked_for_is_loaded(log: Log) -> None:
    reader = ReadAhead(log, 0)
    for step in (0, 1, 2, 2, 1):
        read(reader, step)
    reader.close()
    assert log.steps == [0, 1, 2, 1]


def test_an_error_reaches_those_who_ask_for_its_step_alone(reader: ReadAhead[Batch], log: Log) -> None:
    log.broken = {2, 3}
    read(reader, 0)
    wait_until(lambda: log.steps == [0, 1, 2, 3])
    read(reader, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="no step 2"):
            reader.get(2)
    assert log.steps[-1] == 2, "it goes on although nobody reads"
    log.broken = set()
    read(reader, 2)
    read(reader, 3)


def test_whoever_waits_gets_the_error_too(log: Log) -> None:
    caught: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def load(step: int) -> Batch:
        begun.set()
        go_on.wait(30)
        raise SystemExit(f"no step {step}")

    reader = ReadAhead(load, 0)

    def ask() -> None:
        try:
            reader.get(5)
        except SystemExit as error:
            caught.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    reader.close()
    assert caught == ["no step 5"] * 3


def test_the_thread_ends(log: Log) -> None:
    reader = ReadAhead(log, 3)
    read(reader, 0)

    def runs() -> bool:
        return bool(log.threads & {thread.ident for thread in threading.enumerate()})

    assert runs()
    reader.close()
    wait_until(lambda: not runs())
