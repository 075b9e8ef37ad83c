"""Batches from the host train as those of an array of JAX do, to the bit, and what goes wrong with them is told."""

import copy
import functools
import gc
import itertools
import logging
import math
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    DrMAD,
    Evaluation,
    Float,
    Forward,
    HostBatches,
    Hypernet,
    Implicit,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Reversible,
    Smoothed,
    TrainingProblem,
    Unrolled,
    adamw,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hosting import host
from hypergrad_search.hypergradient import reversible
from hypergrad_search.search.ask_tell import Wanted

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (90, 8), np.uint8)
LABELS = np.random.default_rng(1).normal(size=90)
SIZE, STEPS = 10, 23
H = {"rate": 0.1, "l2": 1e-3}
SPACE = {"l2": Float(1e-5, 1.0, log=True)}
OF_PENALTIES = [Hypernet(), Implicit(), OnePass(), Persistent(pairs=2), RealTime(), Smoothed(pairs=2)]
METHODS = [Reversible(), Unrolled(), DrMAD(), Forward(), *OF_PENALTIES]


def rows(step: int) -> Any:
    return np.random.default_rng((0, step)).integers(0, len(IMAGES), SIZE)


def load(step: int) -> Any:
    """Return bytes, and numbers that JAX makes float32."""
    return {"images": IMAGES[rows(step)], "labels": LABELS[rows(step)]}


ORDER = np.stack([rows(step) for step in range(4 * STEPS)])


def on_device(step: jax.Array) -> Any:
    now = jnp.asarray(ORDER)[step]
    return {"images": jnp.asarray(IMAGES)[now], "labels": jnp.asarray(LABELS)[now]}


def predicted(w: jax.Array, images: jax.Array) -> jax.Array:
    result: jax.Array = jnp.tanh(images.astype(w.dtype) / 256 @ w)
    return result


def problem(batches: Any, **changes: Any) -> TrainingProblem:
    def train_loss(w: jax.Array, h: Any, batch: Any, key: jax.Array) -> jax.Array:
        errors = predicted(w, batch["images"]) - batch["labels"]
        loss: jax.Array = jnp.mean(errors**2) + h["l2"] * jnp.sum(w**2)
        return loss

    def valid_loss(w: jax.Array, h: Any) -> jax.Array:
        return jnp.square(predicted(w, jnp.asarray(IMAGES[:30])) - jnp.asarray(LABELS[:30]))

    parts = {"optimizer": sgd("rate", 0.9), "steps": STEPS, **changes}
    return TrainingProblem(lambda key, h: jnp.linspace(-1, 1, 8), train_loss, valid_loss, batches, **parts)


def run(batches: Any, method: Method = Reversible(), **changes: Any) -> Evaluation:  # noqa: B008 (frozen and empty)
    if method not in OF_PENALTIES:
        return evaluate(problem(batches, **changes), H, key=KEY, method=method)
    made = problem(batches, **{"optimizer": sgd(0.1, 0.9), **changes})
    return evaluate(made, {"l2": 1e-3}, key=KEY, method=method, space=SPACE)


@functools.cache
def wanted(method: Method = Reversible(), **changes: Any) -> Evaluation:  # noqa: B008 (frozen and empty)
    return run(on_device, method, **changes)


def value_of(batches: Any) -> float:
    """Return the value of training, which compiles fast."""
    return evaluate(problem(batches), H, key=KEY, method=Unrolled(), gradient_below=-math.inf).value


def assert_same(found: Evaluation, other: Evaluation) -> None:
    assert (found.value, found.status, found.checkpoint) == (other.value, other.status, other.checkpoint)
    for one, two in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(other.gradient), strict=True):
        assert one.tobytes() == two.tobytes()


def failing_at(step: int, error: Callable[[], BaseException]) -> Callable[[int], Any]:
    def failing(at: int) -> Any:
        if at == step:
            raise error()
        return load(at)

    return failing


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_it_trains_as_an_array_of_jax_does(method: Method) -> None:
    found = run(HostBatches(load), method)
    assert_same(found, wanted(method))
    assert found.diagnostics["exact"] is (True if isinstance(method, Reversible) else None)
    assert (found.gradient is None) is method.continues


def test_a_file_that_is_mapped_to_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    made = problem(HostBatches(lambda step: {**load(step), "images": images[rows(step)]}, ahead=0))
    assert_same(evaluate(made, H, key=KEY), wanted())
    slices = HostBatches(lambda step: images[step : step + 3])
    assert slices(4).tolist() == IMAGES[4:7].tolist()


def test_weights_whose_bits_are_spilled_are_recovered() -> None:
    optimizer = adamw("rate", b1=0.6, weight_decay=0.3)
    found = run(HostBatches(load), optimizer=optimizer)
    assert found.diagnostics["exact"] is True
    assert_same(found, wanted(optimizer=optimizer))


def test_a_gradient_that_is_compiled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(HostBatches(load))
    monkeypatch.setattr(reversible, "ISOLATED", weakref.WeakSet([made]))
    assert_same(evaluate(made, H, key=KEY), wanted())


@pytest.mark.slow
def test_train_can_be_transformed() -> None:
    made, exact = problem(HostBatches(load)), wanted().gradient
    gradient = jax.grad(lambda h: jnp.mean(made.valid_loss(train(made, h, KEY), h)))
    compiled = jax.jit(gradient)(H)
    mapped = jax.vmap(gradient)({"rate": jnp.array([0.1, 0.2, 0.1]), "l2": jnp.array([1e-3, 0.1, 1e-3])})
    assert exact is not None
    for name in H:
        np.testing.assert_allclose(compiled[name], exact[name], rtol=1e-5)
        np.testing.assert_allclose(mapped[name][::2], [exact[name]] * 2, rtol=1e-5)
        assert np.isfinite(mapped[name][1])


def test_a_mapped_step_loads_each_batch() -> None:
    found = jax.vmap(HostBatches(load))(jnp.array([3, 1, 3]))
    assert found["images"].tolist() == [load(step)["images"].tolist() for step in (3, 1, 3)]


def test_gradients_are_those_of_float64() -> None:
    with jax.enable_x64(True):
        exact = run(HostBatches(load), Unrolled()).gradient
    found = wanted().gradient
    assert found is not None
    assert exact is not None
    for name in H:
        assert exact[name].dtype == np.float64
        np.testing.assert_allclose(found[name], exact[name], rtol=2e-4)


def test_it_is_a_part_of_other_functions() -> None:
    images, labels = HostBatches(lambda step: IMAGES[rows(step)]), HostBatches(lambda step: (LABELS[rows(step)],))

    def noisy(step: jax.Array, images: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(KEY, step), 0.9, images.shape)
        return jnp.where(kept, images, jnp.uint8(0))

    found = run(lambda step: {"images": noisy(step, images(step)), "labels": labels(step)[0]})
    assert found.diagnostics["exact"] is True
    assert_same(found, run(lambda step: {**on_device(step), "images": noisy(step, on_device(step)["images"])}))


class Images:
    """A data set as PyTorch has it."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[Any, float]:
        return IMAGES[i], float(LABELS[i])


def test_a_data_set_with_an_index() -> None:
    dataset = Images()

    def collated(step: int) -> Any:
        images, labels = zip(*(dataset[int(i)] for i in rows(step)), strict=True)
        return {"images": np.stack(images), "labels": np.array(labels)}

    assert value_of(HostBatches(collated)) == value_of(on_device)


def test_memory_that_is_used_again() -> None:
    buffer = np.zeros((SIZE, 8), np.uint8)

    def reusing(step: int) -> Any:
        buffer[:] = IMAGES[rows(step)]
        return {"images": buffer, "labels": LABELS[rows(step)]}

    assert value_of(HostBatches(reusing)) == value_of(on_device)


TYPES = [np.bool_, np.uint8, np.int8, np.int64, np.uint32, np.float16, jnp.bfloat16, np.float64, ">f4", ">i8", "c16"]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_types_become_those_of_any_array_of_jax(dtype: Any, wide: bool) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    native = array.astype(array.dtype.newbyteorder("="))
    with jax.enable_x64(wide):
        found = jax.jit(HostBatches(lambda step: (array, array[0, 1], array[:0])))(jnp.int32(2))
        for one, other in zip(found, map(jnp.asarray, (native, native[0, 1], native[:0])), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.array_equal(one, other)


def test_one_instance_serves_both_precisions() -> None:
    thirds = HostBatches(lambda step: np.full(2, 1 / 3))
    for _ in range(2):
        assert thirds(0).dtype == jnp.float32
        with jax.enable_x64(True):
            assert thirds(0)[0] == thirds(1)[0] == 1 / 3


def test_one_thread_makes_all_loads_one_at_a_time() -> None:
    threads, busy = set(), threading.Lock()

    def watched(step: int) -> Any:
        threads.add(threading.get_ident())
        assert busy.acquire(blocking=False)
        time.sleep(0.0005)
        busy.release()
        return load(step)

    watching = HostBatches(watched)
    evaluated = [threading.Thread(target=value_of, args=(watching,)) for _ in range(2)]
    for thread in evaluated:
        thread.start()
    for thread in evaluated:
        thread.join(120)
    assert len(threads) == 1


def test_each_step_is_loaded_about_once_in_each_direction() -> None:
    steps: list[int] = []

    def noted(step: int) -> Any:
        steps.append(step)
        return load(step)

    run(HostBatches(noted, ahead=4))
    assert steps[:2] == [0, 0]
    assert len(steps) <= 2 * STEPS + 3 * 5
    assert max(steps) <= STEPS - 1 + 4


def test_what_lies_beyond_the_end_may_fail() -> None:
    def ending(step: int) -> Any:
        if step >= STEPS:
            raise IndexError(step)
        return load(step)

    assert value_of(HostBatches(ending)) == value_of(on_device)


COUNTER, GENERATOR = itertools.count(), np.random.default_rng(0)


def with_labels(step: int, number: float) -> Any:
    return {**load(step), "labels": np.full(SIZE, number)}


def changed(step: int, **changes: Any) -> Callable[[int], Any]:
    return lambda at: {**load(at), **changes} if at == step else load(at)


WRONG = {
    "an iterator": (
        lambda step: with_labels(0, float(next(COUNTER))),
        r"load\(0\) returned another batch than before; index the data by the step alone",
    ),
    "a generator that goes on": (
        lambda step: with_labels(0, GENERATOR.normal()),
        r"load\(0\) returned another batch than before; .*default_rng\(\(seed, step\)\)",
    ),
    "a later step": (
        lambda step: with_labels(step, float(next(COUNTER))) if step == 3 else load(step),
        r"load\(3\) returned another batch than before",
    ),
    "a last batch that is smaller": (
        changed(4, labels=LABELS[:3]),
        r"load\(4\)\['labels'\] must have shape \(10,\) and dtype float64, as load\(0\) has, got \(3,\) and float64;",
    ),
    "another type": (
        changed(4, images=np.zeros((10, 8))),
        r"load\(4\)\['images'\] .* and dtype uint8, as load\(0\) has, got \(10, 8\) and float64",
    ),
    "another structure": (
        changed(4, more=np.zeros(3)),
        r"load\(4\) must return the same structure as load\(0\), .*'images'.*got .*'more'",
    ),
    "a list": (
        changed(3, labels=list(range(10))),
        r"load\(3\)\['labels'\]\[0\] must be a numpy array of numbers, got 0; np.asarray makes an array of it",
    ),
    "an array of jax": (
        changed(0, labels=jnp.ones(10)),
        r"load\(0\)\['labels'\] must be .*, got an array of JAX; JAX waits for load",
    ),
    "texts": (changed(2, labels=np.array(["a"] * 10)), r".*got dtype <U1; encode it as numbers"),
    "objects": (changed(2, labels=np.array([None] * 10)), r".*got dtype object; encode it as numbers"),
    "nothing": (lambda step: None, r"load\(0\) must return numpy arrays, got None"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_load_returns_is_checked(wrong: Callable[[int], Any], message: str) -> None:
    batches = HostBatches(wrong)

    def read(*steps: int) -> None:
        for step in steps:
            batches(step)

    with pytest.raises(ValueError, match=f"^HostBatches: {message}") as caught:
        read(0, 1, 2, 3, 4, 3, 2, 1, 0, *range(100, 120), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_batch_that_differs_ends_the_evaluation(method: Method) -> None:
    calls: list[int] = []

    def changing(step: int) -> Any:
        calls.append(step)
        return with_labels(step, float(calls.count(11))) if step == 11 else load(step)

    batches = HostBatches(changing, ahead=0)

    def train_twice() -> None:
        for _ in range(2):
            run(batches, method)

    with pytest.raises(ValueError, match=r"^HostBatches: load\(11\) returned another batch than before"):
        train_twice()


def test_a_loader_that_goes_on_is_refused_before_training() -> None:
    numbers = itertools.count()
    made = problem(HostBatches(lambda step: with_labels(0, float(next(numbers)))))
    for _ in range(3):
        with pytest.raises(ValueError, match="returned another batch than before"):
            evaluate(made, H, key=KEY)
    assert next(numbers) == 3 * 2


@pytest.mark.parametrize(("step", "told"), [(1.0, "1.0"), (True, "True"), (np.arange(3), "array"), ("1", "'1'")])
def test_a_step_is_one_whole_number(step: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^HostBatches: step must be one whole number, traced or not, got {told}"):
        HostBatches(load)(step)


def test_a_step_is_not_below_zero() -> None:
    with pytest.raises(ValueError, match=r"^HostBatches: step must be from 0, got -1"):
        HostBatches(load)(-1)


class Broken(Exception):
    """An error of a user's own."""


ERRORS = {
    "of files": lambda: OSError(5, "disk"),
    "of the user's own": lambda: Broken("rows"),
    "of an index": lambda: IndexError("rows"),
    "of an end": StopIteration,
    "that ends programs": lambda: SystemExit(3),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("step", [0, 9])
def test_an_error_of_load_is_raised_as_it_is(
    error: Callable[[], BaseException], step: int, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []

    def noted() -> BaseException:
        errors.append(error())
        return errors[-1]

    with caplog.at_level(logging.DEBUG, logger="jax._src.callback"), pytest.raises(type(error())) as caught:
        value_of(HostBatches(failing_at(step, noted)))
    assert caught.value in errors
    assert (
        caught.value.__notes__[0]
        == f"HostBatches: this error is from load, at step {step}; more: python -m hypergrad_search load"
    )
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not caplog.records


CALLS: dict[str, Callable[[TrainingProblem], Any]] = {
    "evaluate": lambda made: evaluate(made, H, key=KEY),
    "train": lambda made: train(made, H, KEY),
    "params of Reversible": lambda made: Reversible(fallback=Unrolled()).params(made, H, key=KEY),
    "params of Unrolled": lambda made: Unrolled().params(made, H, key=KEY),
    "batches": lambda made: made.batches(9),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_of_load_is_raised_as_it_is_by(call: Callable[[TrainingProblem], Any]) -> None:
    with pytest.raises(Broken, match="rows"):
        call(problem(HostBatches(failing_at(9, lambda: Broken("rows")))))


def test_an_error_of_load_is_raised_as_it_is_by_a_hypernet() -> None:
    broken: list[int] = []

    def failing(step: int) -> Any:
        if step in broken:
            raise Broken("rows")
        return load(step)

    made, method = problem(HostBatches(failing, ahead=0), optimizer=sgd(0.1, 0.9)), Hypernet(finetune=3)
    left = evaluate(made, {"l2": 1e-3}, key=KEY, method=method, space=SPACE)
    assert left.refined is not None
    assert left.checkpoint is not None
    broken.append(STEPS + 1)
    with pytest.raises(Broken, match="rows"):
        evaluate(made, {"l2": 1e-3}, key=KEY, method=method, space=SPACE)
    with pytest.raises(Broken, match="rows"):
        method.params(made, left.refined, key=KEY, space=SPACE, checkpoint=left.checkpoint)
    with pytest.raises(Broken, match="rows"):
        method.value(made, left.refined, key=KEY, space=SPACE, left=left.checkpoint)


def test_inside_of_a_jit_the_error_of_jax_tells_all() -> None:
    batches = HostBatches(failing_at(9, lambda: Broken("rows")))
    with pytest.raises(Exception, match=r"HostBatches: error \d+ at step 9: Broken: rows"):
        jax.block_until_ready(jax.jit(batches)(jnp.int32(9)))  # type: ignore[no-untyped-call]  # JAX has no types here


def test_after_an_error_all_goes_on() -> None:
    failures = [Broken("rows")]

    def failing(step: int) -> Any:
        if step == 9 and failures:
            raise failures.pop()
        return load(step)

    made = problem(HostBatches(failing, ahead=0))
    with pytest.raises(Broken):
        evaluate(made, H, key=KEY)
    assert_same(evaluate(made, H, key=KEY), wanted())


@pytest.mark.parametrize("error", [OSError, ValueError, IndexError])
def test_an_error_of_load_ends_a_study(error: type[Exception]) -> None:
    """Other errors of these kinds are failed trials where other values have worked."""
    broken: list[int] = []
    method, on_the_way = Unrolled(), lambda now, cost: None

    def failing(step: int) -> Any:
        if step in broken:
            raise error("rows")
        return load(step)

    made = host("test", problem(HostBatches(failing, ahead=0), optimizer=sgd(0.1, 0.9)), SPACE, method, KEY, None)

    def trial() -> Evaluation:
        wanted = Wanted.from_json(None)
        return made.evaluate({"l2": 0.1}, wanted, on_the_way=on_the_way, checkpoint=lambda: None)

    assert trial().value < 10
    broken.append(9)
    with pytest.raises(error, match="rows"):
        trial()


def test_threads_evaluate_at_once() -> None:
    made = problem(HostBatches(load), steps=4 * STEPS)
    rates = [0.02, 0.05, 0.1, 0.15]
    alone = [evaluate(made, {**H, "rate": rate}, key=KEY) for rate in rates]
    together: dict[float, Evaluation] = {}

    def work(rate: float) -> None:
        together[rate] = evaluate(made, {**H, "rate": rate}, key=KEY)

    threads = [threading.Thread(target=work, args=(rate,)) for rate in rates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for rate, one in zip(rates, alone, strict=True):
        assert_same(together[rate], one)


def test_each_thread_gets_its_own_error() -> None:
    batches = [HostBatches(failing_at(9, lambda i=i: Broken(i))) for i in range(3)]  # type: ignore[misc]
    caught: dict[int, BaseException] = {}

    def work(i: int) -> None:
        try:
            value_of(batches[i])
        except Broken as error:
            caught[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {i: error.args for i, error in caught.items()} == {i: (i,) for i in range(3)}


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_copies(copied: Callable[[Any], Any]) -> None:
    first = HostBatches(load, ahead=3)
    assert first(5)["images"].tolist() == load(5)["images"].tolist()
    other = copied(first)
    assert (other.load, other.ahead) == (load, 3)
    assert other._here() is not first._here()
    assert other(5)["images"].tolist() == load(5)["images"].tolist()


IN_A_FORK = """
import os, warnings
import numpy as np
from hypergrad_search import HostBatches
warnings.simplefilter("ignore")  # JAX, which the child does not call, warns of forks
batches = HostBatches(lambda step: np.full(2, step))
batches._here().get(3)
child = os.fork()
if not child:
    os._exit(int(batches._here().get(50)[0][0]))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), batches._here().get(7)[0][0])
"""

WHILE_IT_LOADS = """
import time
import numpy as np
from hypergrad_search import HostBatches
batches = HostBatches(lambda step: np.full(2, step) if step < 2 else time.sleep(600))
print(batches(1)[0])
time.sleep(0.1)
"""


@pytest.mark.parametrize(("script", "printed"), [(IN_A_FORK, "50 7\n"), (WHILE_IT_LOADS, "1\n")])
def test_a_process(script: str, printed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


def test_its_thread_ends_with_it() -> None:
    threads: set[int] = set()

    def noted(step: int) -> Any:
        threads.add(threading.get_ident())
        return np.ones(2)

    batches = HostBatches(noted)
    batches._here().get(0)
    assert threads
    del batches
    gc.collect()
    wait_until(lambda: not threads & {thread.ident for thread in threading.enumerate()})


@pytest.mark.slow
@pytest.mark.parametrize("method", [Reversible(), Unrolled()], ids=lambda method: type(method).__name__)
def test_batches_of_a_hundred_megabytes(method: Method) -> None:
    def large(step: int) -> Any:
        return np.full((10_000, 10_000), step, np.uint8)

    made = TrainingProblem(
        lambda key, h: jnp.full(10_000, 1e-3),
        lambda w, h, batch, key: jnp.mean((batch[:200].astype(jnp.float32) @ w - 1) ** 2) / 100,
        lambda w, h: jnp.mean(w**2),
        HostBatches(large, ahead=2),
        sgd("rate", 0.9),
        steps=5,
    )
    assert evaluate(made, {"rate": 1e-3}, key=KEY, method=method).gradient is not None
