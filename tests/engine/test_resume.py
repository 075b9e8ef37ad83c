"""An evaluation that goes on from a snapshot is the one that was not interrupted, to the bit."""

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Evaluation,
    Float,
    Fold,
    HostBatches,
    Hypernet,
    Method,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adamw,
    ema,
    evaluate,
    from_function,
    sgd,
)
from hypergrad_search.hosting import host
from hypergrad_search.hypergradient import Progress, Request, SnapshotError, reversible
from hypergrad_search.search.ask_tell import Wanted

KEY = jax.random.key(3)
STEPS, EVERY = 60, 7
H = {"rate": 0.05, "decay": 0.6, "l2": 0.01, "scale": 0.8}
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.sin(X @ np.array([1.0, -0.5, 0.3, 0.1], np.float32))
SGD = sgd("rate", "decay")

Arrays = dict[str, Any]


def init(key: jax.Array, h: Arrays) -> Arrays:
    one, two = jax.random.split(key)
    return {"w": h["scale"] * jax.random.normal(one, (4, 5)), "v": [h["scale"] * jax.random.normal(two, (5,))]}


def outputs(params: Arrays, x: Any) -> jax.Array:
    result: jax.Array = jnp.tanh(jnp.asarray(x) @ params["w"]) @ params["v"][0]
    return result


def train_loss(params: Arrays, h: Arrays, batch: Any, key: jax.Array) -> jax.Array:
    x, y = batch
    noisy = x + 0.1 * jax.random.normal(key, x.shape, jnp.float32)
    loss: jax.Array = jnp.mean((outputs(params, noisy) - y) ** 2) + h["l2"] * jnp.sum(params["w"] ** 2)
    return loss


def valid_loss(params: Arrays, h: Arrays) -> jax.Array:
    return (outputs(params, X[40:]) - jnp.asarray(Y[40:])) ** 2


def batches(step: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = (jnp.arange(10, dtype=jnp.int32) + 10 * step) % 40
    return jnp.asarray(X)[rows], jnp.asarray(Y)[rows]


def load(step: int) -> tuple[Any, Any]:
    rows = (np.arange(10) + 10 * step) % 40
    return X[rows], Y[rows]


def problem(**changes: Any) -> TrainingProblem:
    parts = {"init": init, "train_loss": train_loss, "valid_loss": valid_loss, "batches": batches, "optimizer": SGD}
    return TrainingProblem(**{**parts, "steps": STEPS, **changes})


def with_statistics(**changes: Any) -> TrainingProblem:
    """Return a problem that normalises by what it keeps, and that keeps a whole number, a coarse one and a key too."""

    def start(key: jax.Array, h: Arrays) -> tuple[Arrays, Arrays]:
        kept = {"mean": jnp.zeros(4), "count": jnp.int32(0), "coarse": jnp.bfloat16(1.0), "key": jax.random.key(1)}
        return init(key, h), kept

    def loss(params: Arrays, kept: Arrays, h: Arrays, batch: Any, key: jax.Array) -> tuple[jax.Array, Arrays]:
        x, y = batch
        new = {
            "mean": 0.9 * kept["mean"] + 0.1 * x.mean(0),
            "count": kept["count"] + 1,
            "coarse": kept["coarse"] * jnp.bfloat16(0.99),
            "key": jax.random.fold_in(kept["key"], 1),
        }
        return train_loss(params, h, (x - kept["mean"][None, :], y), key), new

    def judge(params: Arrays, kept: Arrays, h: Arrays) -> Any:
        scale = kept["coarse"].astype(jnp.float32) + 0.01 * kept["count"].astype(jnp.float32)
        shift = jax.random.normal(kept["key"], (4,), jnp.float32)
        return scale * (outputs(params, X[40:] - kept["mean"][None, :] + shift[None, :]) - jnp.asarray(Y[40:])) ** 2

    return problem(init=start, train_loss=loss, valid_loss=judge, **changes)


PLAIN = problem()
"""One for all the tests that leave it as it is, which so share what is compiled."""

PROBLEMS: dict[str, tuple[Callable[[], TrainingProblem], Method]] = {
    "sgd": (lambda: PLAIN, Reversible()),
    "adamw": (lambda: problem(optimizer=adamw("rate", "decay", 0.95, 1e-3, weight_decay=0.02)), Reversible()),
    "ema": (lambda: problem(optimizer=ema(SGD, 0.9)), Reversible()),
    "statistics": (with_statistics, Reversible()),
    "batches of the host": (lambda: problem(batches=HostBatches(load)), Reversible()),
    "last steps alone": (lambda: PLAIN, Reversible(last=20)),
    "fine weights": (lambda: PLAIN, Reversible(fraction_bits={"weights": 60})),
}


def watched(run: TrainingProblem, method: Method, **others: Any) -> tuple[Evaluation, dict[int, bytes]]:
    """Return an evaluation, and by step the snapshots that were taken on its way."""
    taken: dict[int, bytes] = {}

    def report(now: Progress) -> None:
        assert now.snapshot is not None
        taken[now.step] = now.snapshot()

    found = evaluate(run, H, key=KEY, method=method, report=report, report_every=EVERY, **others)
    return found, taken


def assert_same(found: Evaluation, other: Evaluation) -> None:
    assert found.gradient is not None
    assert other.gradient is not None
    assert found.gradient.keys() == other.gradient.keys()
    assert all(found.gradient[name].tobytes() == other.gradient[name].tobytes() for name in found.gradient)
    assert replace(found, gradient=None, cost=other.cost) == replace(other, gradient=None)
    assert found.cost.gradient_evaluations == other.cost.gradient_evaluations


@dataclass(frozen=True)
class Recording(Method):
    """A method that notes what it was asked for, and evaluates as `Unrolled` does."""

    requests: list[Request] = field(default_factory=list, hash=False)

    def evaluate(self, problem: TrainingProblem, hyperparameters: Any, key: jax.Array, request: Request) -> Evaluation:
        self.requests.append(request)
        return Unrolled().evaluate(problem, hyperparameters, key, request)


class Steps:
    """Notes which steps are trained, from the first to the last of each stretch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[int] = []
        forward = reversible._forward

        def noting(program: Any, inputs: Any, state: Any, largest: Any, stop: int, *others: Any) -> Any:
            self.trained += range(int(state.step), stop)
            return forward(program, inputs, state, largest, stop, *others)

        monkeypatch.setattr(reversible, "_forward", noting)


@pytest.mark.parametrize(
    ("make", "method"),
    [pytest.param(*x, id=name, marks=pytest.mark.slow if name == "adamw" else ()) for name, x in PROBLEMS.items()],
)
def test_from_every_stop_it_ends_with_the_same_bits(
    make: Callable[[], TrainingProblem], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = make(), Steps(monkeypatch)
    undisturbed = evaluate(run, H, key=KEY, method=method, fold=Fold(1, of=4))
    assert undisturbed.diagnostics["exact"] is True
    assert undisturbed.held_back is not None
    reporting, taken = watched(run, method, fold=Fold(1, of=4))
    assert_same(reporting, undisturbed)
    assert list(taken) == list(range(EVERY, STEPS, EVERY))
    for step in (7, 14, 35, 42, 56):
        steps.trained.clear()
        found, taken_later = watched(run, method, fold=Fold(1, of=4), snapshot=taken[step])
        assert steps.trained == list(range(step, STEPS))
        assert_same(found, undisturbed)
        assert list(taken_later) == [later for later in taken if later > step]


def test_bits_are_spilled_before_and_after_the_stops() -> None:
    """The test above means little without."""
    _, taken = watched(PLAIN, Reversible())
    spilled = [
        {name.split("]")[1] for name in np.load(io.BytesIO(snapshot)).files if name.startswith("[2]")}
        for snapshot in taken.values()
    ]
    assert spilled[0] == set()
    assert 0 < len(spilled[2]) < len(spilled[-1])


def test_interruptions_may_follow_one_another() -> None:
    run = PLAIN
    undisturbed = evaluate(run, H, key=KEY)
    snapshot = None
    for step in (7, 14, 28, 49):
        _, taken = watched(run, Reversible(), snapshot=snapshot)
        snapshot = taken[step]
    found, _ = watched(run, Reversible(), snapshot=snapshot)
    assert_same(found, undisturbed)


def test_the_time_before_the_interruption_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run, taken = PLAIN, []

    def report(progress: Progress) -> None:
        now[0] += 100.0
        assert progress.snapshot is not None
        taken.append(progress.snapshot())

    evaluate(run, H, key=KEY, report=report, report_every=20)
    now[0] = 5000.0
    assert evaluate(run, H, key=KEY, snapshot=taken[1]).cost.seconds == 200.0


def test_without_a_gradient_nothing_is_kept_for_the_way_back() -> None:
    run = PLAIN
    _, taken = watched(run, Reversible(), gradient_below=-math.inf)
    found = evaluate(run, H, key=KEY, gradient_below=-math.inf, snapshot=taken[42])
    assert found.value == evaluate(run, H, key=KEY).value
    assert len(taken[42]) < len(watched(run, Reversible())[1][42])
    with pytest.raises(SnapshotError, match=r"steps to reverse \(gradient_below, last\): it has 0, and needs 60"):
        evaluate(run, H, key=KEY, snapshot=taken[42])


def test_a_problem_whose_reversal_is_inexact_is_repeated_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot does not help, since its program rounds differently from the one that is isolated."""
    real = reversible._is_start

    def unless_isolated(program: Any, state: Any, initial: Any) -> Any:
        return program.isolated and real(program, state, initial)

    monkeypatch.setattr(reversible, "_is_start", unless_isolated)
    steps = Steps(monkeypatch)
    run = problem()
    undisturbed, taken = watched(run, Reversible())
    assert undisturbed.diagnostics["exact"] is True
    assert steps.trained == [*range(STEPS), *range(STEPS)]
    steps.trained.clear()
    found = evaluate(run, H, key=KEY, snapshot=taken[42])  # by now the problem is known to be one of these
    assert found.gradient == undisturbed.gradient
    assert steps.trained == list(range(STEPS))
    steps.trained.clear()
    anew = problem()
    reported: list[int] = []
    found = evaluate(
        anew, H, key=KEY, snapshot=taken[42], report=lambda now: reported.append(now.step), report_every=EVERY
    )
    assert found.gradient == undisturbed.gradient
    assert reported == [49, 56]
    assert steps.trained[:18] == list(range(42, STEPS))
    assert anew in reversible.ISOLATED


def test_a_snapshot_of_an_isolated_program_isolates_the_problem_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    run, elsewhere = problem(), problem()
    reversible.ISOLATED.add(run)
    undisturbed, taken = watched(run, Reversible())
    steps = Steps(monkeypatch)
    assert_same(evaluate(elsewhere, H, key=KEY, snapshot=taken[28]), undisturbed)
    assert steps.trained == list(range(28, STEPS))


def test_bits_of_another_processor_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = PLAIN
    undisturbed, taken = watched(run, Reversible())
    arrays = dict(np.load(io.BytesIO(taken[28])))
    (name,) = (name for name in arrays if "numbers[0]['weights'][1]" in name)
    arrays[name] = arrays[name] ^ np.uint32(1)  # one unit, as another rounding would have it
    file = io.BytesIO()
    np.savez(file, **arrays)
    steps = Steps(monkeypatch)
    found = evaluate(run, H, key=KEY, snapshot=file.getvalue())
    assert found.gradient == undisturbed.gradient
    assert found.value == undisturbed.value
    assert steps.trained == [*range(28, STEPS), *range(STEPS)]
    assert run not in reversible.ISOLATED


def test_other_plans_of_another_processor_begin_training_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = PLAIN
    undisturbed, taken = watched(run, Reversible())
    arrays = dict(np.load(io.BytesIO(taken[28])))
    header = json.loads(str(arrays["header"]))
    header["spilled"] = [step + 1 for step in header["spilled"]] or [1]
    arrays["header"] = np.array(json.dumps(header))
    file = io.BytesIO()
    np.savez(file, **arrays)
    steps = Steps(monkeypatch)
    assert_same(evaluate(run, H, key=KEY, snapshot=file.getvalue()), undisturbed)
    assert steps.trained == list(range(STEPS))
    with pytest.raises(SnapshotError, match="hyperparameters differ"):
        evaluate(run, {**H, "rate": 0.3}, key=KEY, snapshot=file.getvalue())


def test_where_the_fallback_evaluates_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while a number is too coarse, as one may be that becomes small on the way."""
    forward, unresolved = reversible._forward, reversible._unresolved

    def doubtful(program: Any, inputs: Any, state: Any, largest: Any, stop: int, *others: Any) -> Any:
        *found, doubt = forward(program, inputs, state, largest, stop, *others)
        return *found, jnp.bool_(True) if stop > 30 else doubt

    def lost(*arguments: Any) -> Any:
        found = unresolved(*arguments)
        return found._replace(found=jax.tree.map(jnp.ones_like, found.found))

    monkeypatch.setattr(reversible, "_forward", doubtful)
    monkeypatch.setattr(reversible, "_unresolved", lost)
    run, recording = problem(), Recording()
    method = Reversible(fallback=recording)
    undisturbed, taken = watched(run, method)
    assert "is too small for its unit" in undisturbed.diagnostics["fallback"]
    assert list(taken) == [7, 14, 21, 28]
    assert_same(evaluate(run, H, key=KEY, method=method, snapshot=taken[28]), undisturbed)
    assert [request.snapshot for request in recording.requests] == [None, None]


# what is refused

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "hyperparameters": (
        {"hyperparameters": {**H, "rate": 0.06, "l2": 0.02}},
        r"hyperparameters differ: \['l2', 'rate'\]",
    ),
    "key": ({"key": jax.random.key(4)}, "another evaluation: key: it has"),
    "steps": ({"problem": problem(steps=50)}, "another evaluation: steps: it has 60, and needs 50"),
    "fraction_bits": ({"method": Reversible(fraction_bits={"velocity": 40})}, r"fraction_bits differ: \['velocity'\]"),
    "last": ({"method": Reversible(last=20)}, "the number of steps to reverse .*: it has 60, and needs 20"),
    "optimizer": ({"problem": problem(optimizer=adamw("rate"))}, "the optimizer: it has 'sgd', and needs 'adamw'"),
    "settings": (
        {"problem": problem(optimizer=sgd("rate", 0.5))},
        r"the sizes of the optimizer's settings differ: \['momentum'\]",
    ),
    "statistics": ({"problem": with_statistics()}, "the shapes of the statistics differ:"),
    "shapes": (
        {"problem": problem(init=lambda key, h: {**init(key, h), "b": jnp.zeros(2)})},
        r"shapes of the parameters differ: \[\"\['b'\]\"\]",
    ),
    "initial parameters": (
        {"problem": problem(init=lambda key, h: jax.tree.map(lambda x: 2 * x, init(key, h)))},
        "the sizes of the initial parameters: it has",
    ),
    "nonsense": ({"snapshot": b"nonsense"}, "must be bytes that Progress.snapshot has returned, got b'nonsense'"),
    "another type": ({"snapshot": "path"}, "must be bytes that Progress.snapshot has returned, got 'path'"),
    "a function": ({"problem": from_function(lambda h: h["rate"]), "key": None}, "snapshot is for a TrainingProblem"),
    "Unrolled": ({"method": Unrolled()}, "Unrolled cannot go on from a snapshot; leave snapshot out"),
    "Hypernet": ({"method": Hypernet()}, "Hypernet cannot go on from a snapshot; leave snapshot out"),
}


@pytest.fixture(scope="module")
def snapshot() -> bytes:
    return watched(PLAIN, Reversible())[1][28]


@pytest.mark.parametrize(("others", "words"), OTHERS.values(), ids=OTHERS)
def test_what_does_not_belong_to_it_is_refused_by_name(others: dict[str, Any], words: str, snapshot: bytes) -> None:
    arguments = {"problem": PLAIN, "hyperparameters": H, "key": KEY, "snapshot": snapshot, **others}
    with pytest.raises(ValueError, match=words):
        evaluate(arguments.pop("problem"), arguments.pop("hyperparameters"), **arguments)


@pytest.mark.parametrize("change", ["lacks an array", "has one more", "has another shape", "is cut off", "is pickled"])
def test_a_damaged_snapshot_is_refused(change: str, snapshot: bytes) -> None:
    arrays = dict(np.load(io.BytesIO(snapshot)))
    name = next(name for name in arrays if "velocity" in name)
    if change == "lacks an array":
        del arrays[name]
    elif change == "has one more":
        arrays["more"] = np.zeros(1)
    elif change == "has another shape":
        arrays[name] = arrays[name][:1]
    elif change == "is pickled":
        arrays[name] = np.array([object], dtype=object)
    file = io.BytesIO()
    np.savez(file, **arrays)
    damaged = snapshot[: len(snapshot) // 2] if change == "is cut off" else file.getvalue()
    with pytest.raises(SnapshotError, match=r"evaluate: snapshot .*; start without a snapshot"):
        evaluate(PLAIN, H, key=KEY, snapshot=damaged)


def test_a_snapshot_is_an_npz_file_without_pickles_whose_header_is_json(snapshot: bytes) -> None:
    with np.load(io.BytesIO(snapshot), allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        assert all(file[name].dtype != object for name in file.files)
    assert header["step"] == 28
    assert header["facts"]["steps"] == STEPS


def test_a_snapshot_must_be_taken_before_training_goes_on() -> None:
    late: list[Any] = []
    evaluate(PLAIN, H, key=KEY, report=lambda now: late.append(now.snapshot), report_every=30)
    with pytest.raises(RuntimeError, match="training has gone on since; call it before report returns"):
        late[0]()


def test_in_a_host_a_foreign_snapshot_is_no_fault_of_the_trial_s_values(snapshot: bytes) -> None:
    space = {name: Float(value / 2, value * 2) for name, value in H.items()}
    hosted = host("trainable", PLAIN, space, Reversible(), KEY, 20)
    how: Any = {"on_the_way": lambda now, cost: None, "checkpoint": lambda: None}
    found = hosted.evaluate(H, Wanted(), **how, snapshot=lambda: snapshot)
    assert found.status == Status.OK
    with pytest.raises(SnapshotError, match="hyperparameters differ"):
        hosted.evaluate({**H, "rate": 0.06}, Wanted(), **how, snapshot=lambda: snapshot)


def test_a_method_without_snapshots_says_so() -> None:
    assert Reversible.resumes
    assert not Unrolled.resumes
    assert not Hypernet.resumes
