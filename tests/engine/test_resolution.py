"""What falls below the resolution of fixed-point numbers has a status, and nothing else has."""

import ast
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adabelief,
    adam,
    adamw,
    ema,
    evaluate,
    rmsprop,
    sgd,
    train,
)
from hypergrad_search.trouble import see

KEY = jax.random.key(0)
STEPS = 40
RNG = np.random.default_rng(1)
X, Y = RNG.normal(size=(64, 6)), RNG.normal(size=64)
START = 0.3 * RNG.normal(size=6)
H = {"rate": 0.05, "l2": 0.1, "unit": 1.0}

OPTIMIZERS: dict[str, Optimizer] = {
    # In other units plain gradient descent needs another rate; Adam does not.
    "sgd": sgd(lambda h, t: h["rate"] / h["unit"] / h["unit"], 0.7),
    "adam": adam("rate", 0.8, 0.95, 1e-30),
    "adamw": adamw("rate", 0.8, 0.95, 1e-30, weight_decay=0.1),
    "adabelief": adabelief("rate", 0.8, 0.95, 1e-30, 0.0),
    "rmsprop": rmsprop("rate", 0.95, 1e-40, momentum=0.8),
    "ema": ema(adam("rate", 0.8, 0.95, 1e-30), 0.9),
    "adam, b2 near 1": adam("rate", 0.8, "b2", 1e-30),
}


@functools.cache  # so that tests share compiled programs
def regression(optimizer: str) -> TrainingProblem:
    """Linear regression on data in some unit, judged in its own."""

    def error(p: Any, rows: slice, unit: Any) -> jax.Array:
        x, y = jnp.asarray(X[rows], p["w"].dtype), jnp.asarray(Y[rows], p["w"].dtype)
        return jnp.square((x @ p["w"] + p["b"] - y) * unit)

    def train_loss(p: Any, h: Any, batch: Any, key: jax.Array) -> jax.Array:
        penalty: jax.Array = h["l2"] * jnp.sum((h["unit"] * p["w"]) ** 2)
        return jnp.mean(error(p, slice(40), h["unit"])) + penalty

    return TrainingProblem(
        init=lambda key, h: {"w": jnp.asarray(START, h["unit"].dtype), "b": jnp.zeros((), h["unit"].dtype)},
        train_loss=train_loss,
        valid_loss=lambda p, h: error(p, slice(40, None), 1.0),
        batches=lambda step: None,
        optimizer=OPTIMIZERS[optimizer],
        steps=STEPS,
    )


def close(found: Any, expected: Any) -> bool:
    """Whether a gradient along relative changes of hyperparameters is off by less than 1 per cent."""
    slopes = [np.array([x.gradient[name] * H[name] for name in ("rate", "l2")], float) for x in (found, expected)]
    return float(np.linalg.norm(slopes[0] - slopes[1])) < 0.01 * float(np.linalg.norm(slopes[1]))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("adam", "adamw", "ema", "adabelief", "rmsprop") else n
        for n in sorted(OPTIMIZERS.keys() - {"adam, b2 near 1"})
    ],
)
def test_numbers_are_fine_enough_or_the_status_says_so(optimizer: str) -> None:
    statuses = []
    for unit in (1.0, 1e-4, 1e-6, 1e-8):
        h = {**H, "unit": unit}
        found, expected = (evaluate(regression(optimizer), h, key=KEY, method=m) for m in (Reversible(), Unrolled()))
        statuses.append(found.status)
        if found.status is Status.OK:
            assert found.value == pytest.approx(expected.value, rel=1e-3)
            assert close(found, expected)
        else:
            assert (found.value, found.gradient) == (math.inf, None)
            assert found.message.startswith(("velocity of params['", "mu of params['", "nu of params['"))
    assert statuses[:2] == [Status.OK] * 2
    assert statuses[-1] == Status.UNDERFLOW


@pytest.mark.slow
def test_the_slope_by_a_decay_near_1_is_right_or_the_status_says_so() -> None:
    """It is a small difference of large numbers, which rounding may spoil where it leaves the value alone."""
    statuses = []
    for unit in (1.0, 1e-3, 3e-4):
        h = {**H, "unit": unit, "b2": 0.9999}
        found, expected = (
            evaluate(regression("adam, b2 near 1"), h, key=KEY, method=m) for m in (Reversible(), Unrolled())
        )
        statuses.append(found.status)
        if found.status is Status.OK:
            assert found.gradient is not None
            assert expected.gradient is not None
            off = abs(found.gradient["b2"] - expected.gradient["b2"])
            assert off < 0.01 * abs(expected.gradient["rate"] * h["rate"]), unit
    assert statuses == [Status.OK, Status.OK, Status.UNDERFLOW]


def test_the_message_has_a_way_out() -> None:
    h = {**H, "unit": 1e-7}
    message = evaluate(regression("sgd"), h, key=KEY).message.removesuffix(see("underflow"))
    bits = ast.literal_eval(
        message.partition("scale the loss up, or take a finer unit: Reversible(fraction_bits=")[2][:-1]
    )
    assert bits == {"velocity": 60}
    found = evaluate(regression("sgd"), h, key=KEY, method=Reversible(fraction_bits=bits))
    expected = evaluate(regression("sgd"), h, key=KEY, method=Unrolled())
    assert found.value == pytest.approx(expected.value, rel=1e-3)
    assert close(found, expected)
    finest = Reversible(fraction_bits={"mu": 84, "nu": 84})
    assert evaluate(regression("adam"), h, key=KEY, method=finest).message.endswith(
        "; scale the loss up; more: python -m hypergrad_search underflow"
    )


def test_the_fallback_evaluates_what_underflows() -> None:
    h = {**H, "unit": 1e-7}
    alone = evaluate(regression("sgd"), h, key=KEY)
    found = evaluate(regression("sgd"), h, key=KEY, method=Reversible(fallback=Unrolled()))
    expected = evaluate(regression("sgd"), h, key=KEY, method=Unrolled())
    assert (found.status, found.value, found.gradient) == (Status.OK, expected.value, expected.gradient)
    assert found.diagnostics == {
        "steps": STEPS,
        "exact": False,
        "fallback": alone.message.removesuffix(see("underflow")),
    }
    both = alone.cost.gradient_evaluations + expected.cost.gradient_evaluations
    assert found.cost.gradient_evaluations == both
    params = Reversible(fallback=Unrolled()).params(regression("sgd"), h, key=KEY)
    assert jnp.mean(regression("sgd").valid_loss(params, h)) == pytest.approx(found.value, rel=1e-6)


def test_train_gives_nan_for_what_underflows() -> None:
    def loss(unit: jax.Array) -> jax.Array:
        h = {**{name: jnp.float32(x) for name, x in H.items()}, "unit": unit}
        return jnp.mean(regression("sgd").valid_loss(train(regression("sgd"), h, KEY), h))

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(jnp.array([1.0, 1e-7]))
    assert np.isfinite(values).tolist() == np.isfinite(gradients).tolist() == [True, False]


HEALTHY: dict[str, tuple[Any, Any]] = {
    # the initial parameters, and a loss of them and of the hyperparameters
    "converged": (lambda: jnp.ones(3), lambda p, t: jnp.sum((p - 0.5) ** 2)),
    "converged to 0": (lambda: jnp.ones(3), lambda p, t: jnp.sum(p**2)),
    "a leaf at 0 without gradient": (lambda: [jnp.zeros(3), jnp.ones(2)], lambda p, t: jnp.sum((p[1] - 1e-3 * t) ** 2)),
    "a leaf at 0 with next to no gradient": (
        lambda: [jnp.zeros(3), jnp.ones(2)],
        lambda p, t: jnp.sum((p[1] - 0.1) ** 2) + 1e-15 * jnp.sum(p[0]),
    ),
    "weights with next to no gradient": (
        lambda: jnp.ones(3),
        lambda p, t: jnp.sum(jnp.array([1.0, 1e-10, 0.0]) * (p - 0.5) ** 2),
    ),
    "all at the optimum": (lambda: jnp.zeros(3), lambda p, t: jnp.sum(p**2)),
    "no gradient at all": (lambda: jnp.ones(3), lambda p, t: 0.0 * jnp.sum(p)),
    "gradients that come and go": (lambda: jnp.ones(3), lambda p, t: jnp.sum(p**2) * (t % 7 < 0.5)),
    "tiny weights": (lambda: jnp.full(3, 1e-8), lambda p, t: jnp.sum((p - 0.5) ** 2)),
}
SETTINGS: dict[str, Optimizer] = {
    "sgd": sgd(0.1, 0.9),
    "adam": adam(0.01),
    "adamw": adamw(0.01, weight_decay=1.0),
    "a rate that falls to 0": sgd(lambda h, t: 0.1 * (1 - t / 599), 0.5),
    "adabelief": adabelief(0.01),
    "rmsprop": rmsprop(0.001, momentum=0.9),
    "ema": ema(adam(0.01), 0.99),
}


def check_healthy(kinds: list[str], optimizer: Optimizer) -> None:
    def train_loss(p: Any, h: Any, t: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.stack([HEALTHY[kind][1](p[kind], t) for kind in kinds]).sum()

    problem = TrainingProblem(
        init=lambda key, h: {kind: HEALTHY[kind][0]() for kind in kinds},
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.stack([jnp.sum(x) for x in jax.tree.leaves(p)]).sum(),
        batches=lambda step: step.astype(jnp.float32),
        optimizer=optimizer,
        steps=600,
    )
    with jax.numpy_dtype_promotion("standard"):
        found = evaluate(problem, {}, key=KEY, gradient_below=-math.inf)
        assert (found.status, found.message) == (Status.OK, "")
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(train(problem, {}, KEY)))


@pytest.mark.parametrize(
    "optimizer",
    [
        "a rate that falls to 0",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "adabelief", "rmsprop", "ema")),
    ],
)
def test_what_is_well_is_left_alone(optimizer: str) -> None:
    check_healthy(list(HEALTHY), SETTINGS[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("kind", HEALTHY)
def test_what_is_well_by_itself_is_left_alone(kind: str, optimizer: str) -> None:
    check_healthy([kind], SETTINGS[optimizer])
