"""`trust`: how far derivatives can be believed, by each method itself, by a few gradients more, and in the search."""

import json
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    DrMAD,
    Evaluation,
    Float,
    Implicit,
    Reversible,
    Smoothed,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    evaluate_batch,
    measure_trust,
    sgd,
)
from hypergrad_search.cost import Cost
from hypergrad_search.hypergradient.base import trust_after

KEY = jax.random.key(0)


def growing(factor: float, steps: int = 10) -> TrainingProblem:
    """A run in which each step multiplies the weights by a factor, and so the adjoint on its way back."""
    return TrainingProblem(
        init=lambda key, h: jnp.full(2, 1e-3),
        train_loss=lambda w, h, batch, key: 0.5 * (1 - factor) * jnp.sum(w**2),
        valid_loss=lambda w, h: h["scale"] * jnp.sum(w),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=steps,
    )


@pytest.mark.parametrize(
    ("growth", "trust"), [(0.0, 1.0), (100.0, 1.0), (10**2.5, 0.5), (1e3, 0.0), (np.inf, 0.0), (np.nan, 0.0)]
)
def test_trust_falls_with_the_logarithm_of_the_growth(growth: float, trust: float) -> None:
    assert trust_after(growth, ["a", "b"]) == pytest.approx({"a": trust, "b": trust})


def test_reversible_believes_less_the_more_the_adjoint_grew() -> None:
    found = {
        factor: evaluate(growing(factor), {"rate": 1.0, "scale": 1.0}, key=KEY, method=Reversible())
        for factor in (1.1, 1.6, 3.0)
    }
    for result in found.values():
        norms = result.diagnostics["adjoint_norms"]
        assert result.trust == trust_after(max(norms) / norms[-1], ["rate", "scale"])
    trusts = [result.trust["rate"] for result in found.values() if result.trust is not None]
    assert trusts[0] == 1.0
    assert 0 < trusts[1] < 1
    assert trusts[2] == 0.0
    assert found[3.0].status == Status.EXPLODED


def test_a_batch_believes_as_each_of_its_members_does() -> None:
    problem, members = growing(1.6), [{"rate": 1.0, "scale": 1.0}, {"rate": 0.5, "scale": 1.0}]
    together = evaluate_batch(problem, members, key=KEY, method=Reversible())
    alone = [evaluate(problem, h, key=KEY, method=Reversible()) for h in members]
    for one, other in zip(together, alone, strict=True):
        assert one.trust == pytest.approx(other.trust, rel=1e-4)


def test_what_has_no_gradient_has_no_trust() -> None:
    without = evaluate(growing(1.1), {"rate": 1.0, "scale": 1.0}, key=KEY, gradient_below=-np.inf)
    assert without.gradient is None
    assert without.trust is None
    assert evaluate(growing(1.1), {"rate": 1.0, "scale": 1.0}, key=KEY, method=Unrolled()).trust is None


def along_a_line(curve: float) -> TrainingProblem:
    """A run along a straight line; with `curve`, along the parabola that a constant force bends it to."""
    return TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda w, h, batch, key: h["slope"] * w[0] + curve * batch * w[1],
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: step.astype(jnp.float32) / 20 - 0.475,
        optimizer=sgd("rate", 0.0),
        steps=20,
    )


def test_drmad_tells_how_straight_the_path_is_and_believes_by_growth_alone() -> None:
    h = {"rate": 0.1, "slope": 1.0}
    # Each step is the line's, (1, 0), and 2 t or 20 t beside it.
    beside = np.arange(20) / 20 - 0.475
    for curve in (0.0, 2.0, 20.0):
        result = evaluate(along_a_line(curve), h, key=KEY, method=DrMAD())
        cosine = float(np.mean(1 / np.sqrt(1 + (curve * beside) ** 2)))
        assert result.diagnostics["straightness"] == pytest.approx(cosine, rel=1e-4)
        assert result.trust == {"rate": 1.0, "slope": 1.0}
    grown = evaluate(growing(1.6), {"rate": 1.0, "scale": 1.0}, key=KEY, method=DrMAD())
    assert grown.trust is not None
    assert 0 < grown.trust["rate"] < 1


def test_drmad_measures_straightness_in_half_precision_too() -> None:
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(2, jnp.bfloat16),
        train_loss=lambda w, h, batch, key: h["slope"] * jnp.sum(w.astype(jnp.float32)),
        valid_loss=lambda w, h: jnp.sum(w.astype(jnp.float32)),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.0),
        steps=4,
    )
    with jax.numpy_dtype_promotion("strict"):
        result = evaluate(problem, {"rate": 0.5, "slope": 1.0}, key=KEY, method=DrMAD())
    assert result.diagnostics["straightness"] == pytest.approx(1.0)


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_implicit_tells_what_is_to_come(steps: int) -> None:
    """A parabola around `x`, which a step of gradient descent comes nearer to by a fifth."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(1),
        train_loss=lambda w, h, batch, key: jnp.sum((w - h["x"]) ** 2),
        valid_loss=lambda w, h: 1.0 + jnp.sum(w**2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.0),
        steps=steps,
    )
    result = evaluate(problem, {"x": 2.0}, key=KEY, method=Implicit())
    weight = 2.0 * (1 - 0.8**steps)
    assert result.diagnostics["to_come"] == pytest.approx(2 * weight * (2.0 - weight), rel=1e-4, abs=1e-5)


def test_smoothed_believes_what_is_more_than_noise() -> None:
    """The loss depends on one of two numbers alone, so the slope by the other one is nothing but noise."""
    problem = TrainingProblem(
        init=lambda key, h: h["real"] * jnp.ones(1),
        train_loss=lambda w, h, batch, key: jnp.sum(w) * 0 + 0 * h["idle"],
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: None,
        optimizer=sgd(0.0, 0.5),
        steps=1,
    )
    space: Space = {"real": Float(-1.0, 1.0), "idle": Float(-1.0, 1.0)}
    believed = [
        evaluate(problem, {"real": 0.1, "idle": 0.2}, key=KEY, method=Smoothed(pairs=64, seed=seed), space=space).trust
        for seed in range(20)
    ]
    of = {name: np.array([trust[name] for trust in believed if trust is not None]) for name in space}
    assert of["real"].min() > 0.9  # n pairs give 1 - 2 / n
    assert np.mean(of["idle"]) < 0.5
    assert np.mean(of["idle"] == 0) > 0.4  # as often as a normal number is within one standard deviation, 0.68
    one = evaluate(problem, {"real": 0.1, "idle": 0.2}, key=KEY, method=Smoothed(pairs=1), space=space)
    assert one.trust is None  # one pair has no standard error


def test_a_trust_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trust\['x'\]"):
        Evaluation(1.0, None, Status.OK, Cost(1, 0.1), trust={"x": 1.5})
    kept = Evaluation(1.0, None, Status.OK, Cost(1, 0.1), trust={"x": 0.5, "y": cast(float, np.float32(0.25))})
    assert json.dumps(kept.trust) == '{"x": 0.5, "y": 0.25}'


def noisy_problem() -> TrainingProblem:
    """Its loss falls with `sure` for each seed, half and point, and with `seed` as the seed decides."""
    signs = jnp.where(jnp.arange(40) % 2 == 0, 1.0, -1.0)
    return TrainingProblem(
        init=lambda key, h: jnp.stack([h["sure"], h["seed"] * jax.random.normal(key)]),
        train_loss=lambda w, h, batch, key: jnp.sum(w) * 0,
        valid_loss=lambda w, h: -w[0] + w[1] + 0 * signs + 1.0,
        batches=lambda step: None,
        optimizer=sgd(0.0, 0.5),
        steps=1,
    )


SPACE: Space = {"sure": Float(0.0, 1.0), "seed": Float(0.0, 1.0)}
HALF = {"sure": 0.5, "seed": 0.5}


def test_trust_is_measured_by_seeds_folds_and_near_points() -> None:
    report = measure_trust(noisy_problem(), HALF, SPACE, key=KEY)
    sure, seed = report.trusts["sure"], report.trusts["seed"]
    slopes = []
    for key in (KEY, jax.random.fold_in(KEY, 1)):
        gradient = evaluate(noisy_problem(), HALF, key=key).gradient
        assert gradient is not None
        slopes.append(float(gradient["seed"]))
    expected = 2 * slopes[0] * slopes[1] / (slopes[0] ** 2 + slopes[1] ** 2)
    assert (sure.seeds, sure.folds, sure.smoothness, sure.method) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert seed.seeds == pytest.approx(expected, rel=1e-4)
    assert (seed.folds, seed.smoothness) == pytest.approx((1.0, 1.0))
    assert seed.least == pytest.approx(max(expected, 0.0), rel=1e-4)
    assert report.cost == 4 * evaluate(noisy_problem(), HALF, key=KEY).cost.gradient_evaluations
    lines = str(report).splitlines()
    assert lines[0].split() == ["hyperparameter", "seeds", "folds", "smoothness", "method"]
    assert lines[1].split() == ["sure", "1.00", "1.00", "1.00", "1.00"]


@pytest.mark.parametrize("examples", [None, 1])
def test_a_single_loss_has_no_folds(examples: int | None) -> None:
    def valid_loss(w: jax.Array, h: dict[str, Any]) -> jax.Array:
        return jnp.sum(w**2) if examples is None else jnp.sum(w**2, keepdims=True)

    report = measure_trust(replace(noisy_problem(), valid_loss=valid_loss), HALF, SPACE, key=KEY)
    assert [trust.folds for trust in report.trusts.values()] == [None, None]
    assert report.trusts["sure"].seeds == pytest.approx(1.0)


def test_a_gradient_that_turns_within_a_step_is_not_smooth() -> None:
    problem = TrainingProblem(
        init=lambda key, h: jnp.stack([h["flat"], h["steep"]]),
        train_loss=lambda w, h, batch, key: jnp.sum(w) * 0,
        valid_loss=lambda w, h: w[0] - 0.1 * jnp.cos((w[1] - 0.5) * 100),
        batches=lambda step: None,
        optimizer=sgd(0.0, 0.5),
        steps=1,
    )
    space: Space = {"flat": Float(0.0, 1.0), "steep": Float(0.0, 1.0)}
    at = {"flat": 0.5, "steep": 0.51}
    trusts = measure_trust(problem, at, space, key=KEY, step=0.0314).trusts
    assert trusts["flat"].smoothness == pytest.approx(1.0)
    here, there = (10 * np.sin(100 * x) for x in (0.01, 0.01 - 0.0314))
    assert trusts["steep"].smoothness == pytest.approx(2 * here * there / (here**2 + there**2), rel=1e-3)
    assert trusts["steep"].folds is None  # the loss is one number
    assert trusts["steep"].least == 0.0


def test_nothing_is_smooth_where_no_step_can_be_taken() -> None:
    """In a corner of the box that downhill leads out of, there is no other point to compare with."""
    at = {"sure": 1.0, "seed": 0.0 if float(jax.random.normal(jax.random.split(KEY)[0])) > 0 else 1.0}
    gradient = evaluate(noisy_problem(), at, key=KEY).gradient
    assert gradient is not None
    assert gradient["sure"] < 0
    assert (gradient["seed"] > 0) == (at["seed"] == 0)
    trusts = measure_trust(noisy_problem(), at, SPACE, key=KEY).trusts
    assert [trust.smoothness for trust in trusts.values()] == [None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparameters": {"sure": 2.0, "seed": 0.5}}, "'sure' must be within the bounds"),
        ({"step": 0.0}, "step must be above 0"),
        ({"step": 2.0}, "step"),
        ({"space": {}}, "no Float"),
        ({"hyperparameters": {"sure": np.nan, "seed": 0.5}}, "no gradient at this point|sure"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"hyperparameters": HALF, "space": SPACE, **changes}
    with pytest.raises(ValueError, match=message):
        measure_trust(noisy_problem(), key=KEY, **arguments)
