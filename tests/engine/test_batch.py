"""Evaluations that are trained at once are those of each one alone, but for the rounding of float32."""

import math
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Categorical,
    Evaluation,
    Float,
    Fold,
    HostBatches,
    Int,
    Optimizer,
    Reversible,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    adam,
    adamw,
    ema,
    evaluate,
    evaluate_batch,
    sgd,
)
from hypergrad_search.hypergradient import batch, reversible
from hypergrad_search.training.train import run_back

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype(np.float32), RNG.normal(size=40).astype(np.float32)
STEPS = 30


def init(key: jax.Array, h: dict[str, Any]) -> jax.Array:
    return jnp.multiply(h["scale"], jax.random.normal(key, (4,)))


def train_loss(w: jax.Array, h: dict[str, Any], rows: jax.Array, key: jax.Array) -> jax.Array:
    noise = 0.1 * jax.random.normal(key, (8,))
    fitted = jnp.mean((jnp.tanh(jnp.asarray(X)[rows] @ w) + noise - jnp.asarray(Y)[rows]) ** 2)
    return fitted + jnp.sum(h["l2"] * w**2)


def valid_loss(w: jax.Array, h: dict[str, Any]) -> jax.Array:
    return (jnp.tanh(jnp.asarray(X[20:]) @ w) - jnp.asarray(Y[20:])) ** 2


def rows_of(step: jax.Array) -> jax.Array:
    return (jnp.arange(8, dtype=jnp.int32) + 3 * step) % 20


def made(optimizer: Optimizer | None = None, **changes: Any) -> TrainingProblem:
    optimizer = sgd("rate", "momentum", dampening=True) if optimizer is None else optimizer
    parts = {"init": init, "train_loss": train_loss, "valid_loss": valid_loss, "test_loss": valid_loss}
    return TrainingProblem(**{**parts, "batches": rows_of, "optimizer": optimizer, "steps": STEPS, **changes})


PROBLEM = made()

POINT: dict[str, Any] = {"rate": 0.1, "momentum": 0.8, "l2": np.array([0.1, 0.01, 0.2, 0.03]), "scale": 0.5}


def several(n: int, point: dict[str, Any] = POINT) -> list[dict[str, Any]]:
    moved = ("rate", "l2", "scale")
    return [{name: x * (1 - 0.1 * i) if name in moved else x for name, x in point.items()} for i in range(n)]


def alike(one: Evaluation, other: Evaluation) -> None:
    assert (one.status, one.message) == (other.status, other.message)
    assert one.value == pytest.approx(other.value, rel=1e-5)
    assert (one.test_loss is None) == (other.test_loss is None)
    assert one.test_loss is None or one.test_loss == pytest.approx(other.test_loss, rel=1e-5)
    assert one.diagnostics["exact"] == other.diagnostics["exact"]
    norms, others = (x.diagnostics.get("adjoint_norms", ()) for x in (one, other))
    assert norms == pytest.approx(others, rel=1e-3)
    assert (one.held_back is None) == (other.held_back is None)
    if one.held_back is not None:
        assert one.held_back == pytest.approx(other.held_back, rel=1e-5)
    assert (one.gradient is None) == (other.gradient is None)
    if one.gradient is not None and other.gradient is not None:
        assert one.gradient.keys() == other.gradient.keys()
        for name, slope in one.gradient.items():
            np.testing.assert_allclose(slope, other.gradient[name], rtol=1e-4, atol=1e-6)


OPTIMIZERS: dict[str, tuple[Optimizer, dict[str, float]]] = {
    "sgd": (sgd("rate", "momentum", dampening=True), {}),
    "adam": (adam("rate", "momentum", "b2", eps=1e-6), {"rate": 0.02, "b2": 0.99}),
    "ema of adamw": (
        ema(adamw("rate", "momentum", "b2", eps=1e-6, weight_decay="decay"), "average"),
        {"rate": 0.02, "b2": 0.99, "decay": 0.1, "average": 0.95},
    ),
}


@pytest.mark.parametrize(
    "name", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "ema of adamw"))]
)
def test_a_batch_is_its_members(name: str) -> None:
    optimizer, settings = OPTIMIZERS[name]
    problem, points = made(optimizer), several(3, {**POINT, **settings})
    found = evaluate_batch(problem, points, key=KEY)
    for ours, h in zip(found, points, strict=True):
        alike(ours, evaluate(problem, h, key=KEY))
        assert ours.diagnostics["exact"] is True
        # three of them fill a program of four
        assert ours.cost.gradient_evaluations == pytest.approx(4 / 3 * 4 * STEPS)


def test_each_has_its_key_threshold_and_fold() -> None:
    problem, points, keys = PROBLEM, several(4), jax.random.split(KEY, 4)
    below = [math.inf, -math.inf, math.inf, math.inf]
    folds = [Fold(0, of=4), Fold(1, of=4), Fold(2, of=4, below=0.0), None]
    found = evaluate_batch(problem, points, key=keys, gradient_below=below, fold=folds)
    for ours, h, key, limit, held_back in zip(found, points, keys, below, folds, strict=True):
        alike(ours, evaluate(problem, h, key=key, gradient_below=limit, fold=held_back))
    assert [ours.status for ours in found] == [Status.OK, Status.OK, Status.OVERFITTED, Status.OK]
    assert [ours.gradient is None for ours in found] == [False, True, True, False]


def test_nobody_goes_back_where_no_gradient_is_wanted() -> None:
    found = evaluate_batch(PROBLEM, several(2), key=KEY, gradient_below=-math.inf)
    assert [ours.cost.gradient_evaluations for ours in found] == [STEPS, STEPS]
    assert [ours.diagnostics["exact"] for ours in found] == [None, None]


def test_one_that_fails_says_why_and_does_the_others_no_harm() -> None:
    problem, points = PROBLEM, several(4)
    points[1] = {**points[1], "rate": math.nan}
    points[2] = {**points[2], "rate": 1e30}
    found = evaluate_batch(problem, points, key=KEY)
    for ours, h in zip(found, points, strict=True):
        alike(ours, evaluate(problem, h, key=KEY))
    assert [ours.status for ours in found] == [Status.OK, Status.NAN, found[2].status, Status.OK]
    assert found[2].status in (Status.NAN, Status.OVERFLOW)
    assert (found[1].value, found[2].value) == (math.inf, math.inf)


def test_a_decay_that_cannot_be_reversed_goes_to_the_fallback() -> None:
    problem, points, method = PROBLEM, several(2), Reversible(fallback=Unrolled())
    points[1] = {**points[1], "momentum": 0.0}
    found = evaluate_batch(problem, points, key=KEY, method=method)
    for ours, h in zip(found, points, strict=True):
        alike(ours, evaluate(problem, h, key=KEY, method=method))
    assert [ours.diagnostics["exact"] for ours in found] == [True, False]


def test_a_decay_below_the_smallest_is_exact_alone() -> None:
    points = several(2)
    points[1] = {**points[1], "momentum": 0.01}
    found = evaluate_batch(PROBLEM, points, key=KEY)
    assert [ours.diagnostics["exact"] for ours in found] == [True, True]
    alike(found[1], evaluate(PROBLEM, points[1], key=KEY))
    assert found[1].cost.gradient_evaluations == 8 * STEPS


@pytest.mark.filterwarnings("ignore:Unrolled differentiates this problem in place")
def test_an_optimizer_that_cannot_be_reversed_is_not_batched() -> None:
    problem = made(sgd("rate", "momentum", nesterov=True))
    with pytest.raises(ValueError, match="loses bits that no reverse pass can recover"):
        evaluate_batch(problem, several(2), key=KEY)
    found = evaluate_batch(problem, several(2), key=KEY, method=Reversible(fallback=Unrolled()))
    assert found[1].value == evaluate(problem, several(2)[1], key=KEY, method=Unrolled()).value
    assert [ours.diagnostics["exact"] for ours in found] == [False, False]


@pytest.mark.slow
def test_whole_numbers_and_choices_run_with_their_like() -> None:
    space: Space = {
        "rate": Float(0.01, 0.2),
        "momentum": Float(0.1, 0.9),
        "l2": Float(0, 1, shape=(4,)),
        "scale": Float(0, 1),
        "steps": Int(10, 30),
        "kind": Categorical(["plain", "cubed"]),
    }

    def loss(w: jax.Array, h: dict[str, Any]) -> jax.Array:
        assert h["kind"] in ("plain", "cubed")
        return valid_loss(w, h) if h["kind"] == "plain" else valid_loss(w, h) ** 3

    problem = made(valid_loss=loss, test_loss=loss, steps="steps")
    points = [
        {**h, "steps": steps, "kind": kind}
        for h, steps, kind in zip(several(4), (10, 30, 10, 30), ("plain", "plain", "plain", "cubed"), strict=True)
    ]
    found = evaluate_batch(problem, points, key=KEY, space=space)
    for ours, h in zip(found, points, strict=True):
        alike(ours, evaluate(problem, h, key=KEY, space=space))
    assert [ours.diagnostics["steps"] for ours in found] == [10, 30, 10, 30]


def test_data_from_the_host() -> None:
    problem = made(batches=HostBatches(lambda step: (np.arange(8, dtype=np.int32) + 3 * step) % 20))
    found = evaluate_batch(problem, several(2), key=KEY)
    for ours, h in zip(found, several(2), strict=True):
        alike(ours, evaluate(PROBLEM, h, key=KEY))


@pytest.mark.slow
def test_statistics_are_each_members_own() -> None:
    def with_mean(key: jax.Array, h: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        return init(key, h), jnp.zeros(())

    def training(
        w: jax.Array, mean: jax.Array, h: dict[str, Any], rows: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return train_loss(w, h, rows, key), 0.9 * mean + 0.1 * jnp.mean(jnp.asarray(X)[rows] @ w)

    def judged(w: jax.Array, mean: jax.Array, h: dict[str, Any]) -> jax.Array:
        return (jnp.tanh(jnp.asarray(X[20:]) @ w - mean) - jnp.asarray(Y[20:])) ** 2

    problem = made(init=with_mean, train_loss=training, valid_loss=judged, test_loss=judged)
    found = evaluate_batch(problem, several(3), key=KEY)
    for ours, h in zip(found, several(3), strict=True):
        alike(ours, evaluate(problem, h, key=KEY))


@pytest.mark.slow
def test_inexact_reversals_are_repeated_and_isolated_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = made()  # whose programs no other test has compiled
    monkeypatch.setattr(batch, "_ISOLATED", weakref.WeakSet())
    monkeypatch.setattr(batch, "run_back", lambda *args: (jnp.bool_(False), run_back(*args)[1]))
    found = evaluate_batch(problem, several(2), key=KEY)
    for ours, h in zip(found, several(2), strict=True):
        alike(ours, evaluate(problem, h, key=KEY))
        assert ours.cost.gradient_evaluations == 8 * STEPS
    assert problem in batch._ISOLATED
    assert problem not in reversible.ISOLATED
    monkeypatch.undo()
    monkeypatch.setattr(batch, "_ISOLATED", weakref.WeakSet([problem]))
    for ours, h in zip(evaluate_batch(problem, several(2), key=KEY), several(2), strict=True):
        alike(ours, evaluate(problem, h, key=KEY))
        assert ours.cost.gradient_evaluations == 5 * STEPS


def test_one_of_a_batch_and_none() -> None:
    (found,) = evaluate_batch(PROBLEM, several(1), key=KEY)
    assert found.value == evaluate(PROBLEM, several(1)[0], key=KEY).value
    assert evaluate_batch(PROBLEM, [], key=KEY) == []
