"""An average of the weights: it is optax's, its decay has the gradient of float64, and training reverses to the bit."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Float,
    Hypernet,
    Method,
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adamw,
    ema,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 40
DRAWN = np.random.default_rng(0)
X, Y = DRAWN.normal(size=(40, 4)), DRAWN.normal(size=40)
H = {"rate": 0.05, "average": 0.9, "scale": 0.4, "l2": 0.02}

Params = dict[str, jax.Array]


def init(key: jax.Array, h: Any) -> Params:
    return {"w": h["scale"] * jnp.linspace(-1.0, 1.0, 4, dtype=h["scale"].dtype), "b": h["scale"]}


def error(p: Params, rows: slice) -> jax.Array:
    x, y = jnp.asarray(X[rows], p["w"].dtype), jnp.asarray(Y[rows], p["w"].dtype)
    return jnp.square(jnp.tanh(x @ p["w"]) + p["b"] - y)


def train_loss(p: Params, h: Any, step: jax.Array, key: jax.Array) -> jax.Array:
    wave = jnp.sin(step.astype(p["w"].dtype))  # so that the weights never come to rest
    loss: jax.Array = jnp.mean(error(p, slice(20))) + h["l2"] * jnp.sum(p["w"] ** 2) + 0.3 * wave * p["b"]
    return loss


def problem(optimizer: Optimizer, steps: int = STEPS) -> TrainingProblem:
    return TrainingProblem(
        init, train_loss, lambda p, h: error(p, slice(20, None)), lambda step: step, optimizer, steps
    )


RULES: dict[str, tuple[Optimizer, optax.GradientTransformation]] = {
    "sgd": (sgd(0.05, 0.8), optax.sgd(0.05, 0.8)),
    "nesterov": (sgd(0.05, 0.8, nesterov=True), optax.sgd(0.05, 0.8, nesterov=True)),
    "adamw": (adamw(0.05, eps=1e-4, weight_decay=0.3), optax.adamw(0.05, eps=1e-4, weight_decay=0.3)),
}


def averaged_by_optax(rule: optax.GradientTransformation, decay: Any, h: Any) -> Params:
    """Return the average that a plain loop keeps, in the type of the hyperparameters."""
    params = average = init(KEY, h)
    state = rule.init(params)
    decays = jnp.broadcast_to(jnp.asarray(decay, h["scale"].dtype), STEPS)
    gradient = jax.jit(jax.grad(train_loss))
    for step in range(STEPS):
        updates, state = rule.update(gradient(params, h, jnp.int32(step), KEY), state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 1 - decays[step])
    return average


DECAYS: dict[str, Any] = {
    "constant": 0.9,
    "schedule": np.minimum(0.99, (1 + np.arange(STEPS)) / (10 + np.arange(STEPS))),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", ["sgd", "nesterov", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_average_is_that_of_a_plain_loop(name: str, decay: str) -> None:
    rule, theirs = RULES[name]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wanted = averaged_by_optax(theirs, DECAYS[decay], jax.tree.map(jnp.float64, H))
    run, h = problem(ema(rule, DECAYS[decay])), jax.tree.map(jnp.float32, H)
    trainers: list[Callable[..., Params]] = [train_in_floats] + ([] if name == "nesterov" else [train])
    for trainer in trainers:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), trainer(run, h, KEY), wanted)


def test_it_is_the_ema_of_optax_but_for_the_start() -> None:
    """That of optax starts at 0. Without its correction it is the average of how far weights are from their start."""
    kept, average = optax.ema(0.9, debias=False), 0.0
    state = kept.init(0.0)
    for weight in (1.5, 1.7, 1.2):
        average, state = kept.update(weight - 1.0, state)
    ours = 1.0
    for weight in (1.5, 1.7, 1.2):
        ours = 0.9 * ours + 0.1 * weight
    assert 1.0 + float(average) == pytest.approx(ours)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "number": ("average", {"average": 0.9}),
    "schedule": ("average", {"average": np.linspace(0.5, 0.95, STEPS)}),
    "by leaf": ({"w": "average", "b": "other"}, {"average": 0.9, "other": 0.7}),
    "function": (lambda h, step: jnp.minimum(h["average"], (1.0 + step) / (10.0 + step)), {"average": 0.77}),
}


@pytest.mark.parametrize("kind", ["number", "schedule", "function", pytest.param("by leaf", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_decay_has_the_gradient_of_float64(rule: str, kind: str) -> None:
    decay, chosen = KINDS[kind]
    run, h = problem(ema(RULES[rule][0], decay)), {**H, **chosen}
    with jax.numpy_dtype_promotion("standard"):
        found = evaluate(run, h, key=KEY)
        with jax.enable_x64(True):
            doubles = {name: jnp.asarray(np.asarray(x, np.float32), jnp.float64) for name, x in h.items()}
            exact = evaluate(run, doubles, key=KEY, method=Unrolled())
    assert found.diagnostics["exact"] is True
    assert found.value == pytest.approx(exact.value, rel=1e-5)
    assert found.gradient is not None
    assert exact.gradient is not None
    for name, slope in exact.gradient.items():
        distance = np.linalg.norm(found.gradient[name] - slope)
        assert distance <= 5e-5 * np.linalg.norm(slope), name


def test_the_way_back_starts_at_the_average() -> None:
    """Two steps of plain descent on a slope: by hand the average is w - rate * (1 - d) * (d + 2)."""
    run = TrainingProblem(
        init=lambda key, h: jnp.full((1,), 2.0),
        train_loss=lambda w, h, batch, key: jnp.sum(w),
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: None,
        optimizer=ema(sgd(0.5, 1 / 256, dampening=True), "d"),
        steps=2,
    )
    d = 0.75
    first, second = 2 - 0.5 * 255 / 256, 2 - 0.5 * (255 / 256) * (2 + 1 / 256)
    result = evaluate(run, {"d": d}, key=KEY)
    assert result.value == pytest.approx(d**2 * 2 + d * (1 - d) * first + (1 - d) * second, rel=1e-6)
    assert result.gradient is not None
    assert result.gradient["d"] == pytest.approx(2 * d * 2 + (1 - 2 * d) * first - second, rel=1e-5)


# They are made once, so that all decays share what is compiled.
LONGER = {name: problem(ema(RULES[name][0], "average"), 300) for name in ("sgd", "adamw")}


@pytest.mark.parametrize("decay", [1.0, 1 / 256, 0.5, 0.999])
@pytest.mark.parametrize("rule", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_training_reverses_to_the_bit_with_any_decay(rule: str, decay: float) -> None:
    run = LONGER[rule]
    result = evaluate(run, {**H, "average": decay}, key=KEY)
    assert (result.status, result.diagnostics["exact"]) == (Status.OK, True)
    if decay == 1:  # the average stays where it began
        assert result.value == pytest.approx(
            float(jnp.mean(run.valid_loss(init(KEY, jax.tree.map(jnp.float32, H)), H)))
        )


@pytest.mark.slow
def test_all_see_the_average(recwarn: pytest.WarningsRecorder) -> None:
    """What is returned, what is reported on the way, and what is judged."""
    run, seen = problem(ema(RULES["adamw"][0], "average")), []
    result = evaluate(run, H, key=KEY, report=lambda now: seen.append((now.step, now.loss)), report_every=10)
    shorter = [problem(ema(RULES["adamw"][0], "average"), steps) for steps in (10, 20, 30)]
    expected = [evaluate(p, H, key=KEY, gradient_below=-math.inf).value for p in shorter]
    np.testing.assert_allclose([loss for _, loss in seen], expected, rtol=1e-6)
    methods: list[Method] = [Reversible(), Unrolled()]
    for method in methods:
        params = method.params(run, H, key=KEY)
        assert float(jnp.mean(run.valid_loss(params, H))) == pytest.approx(result.value, rel=1e-5)
    plain = evaluate(problem(RULES["adamw"][0]), H, key=KEY)
    assert abs(plain.value - result.value) > 1e-3


def test_the_last_steps_alone() -> None:
    run = problem(ema(RULES["adamw"][0], np.linspace(0.5, 0.9, STEPS)))
    schedule = problem(ema(RULES["adamw"][0], "average"))
    whole = {**H, "average": np.linspace(0.5, 0.9, STEPS)}
    full = evaluate(schedule, whole, key=KEY).gradient
    part = evaluate(schedule, whole, key=KEY, method=Reversible(last=10)).gradient
    assert full is not None
    assert part is not None
    np.testing.assert_allclose(part["average"][-10:], full["average"][-10:], rtol=1e-5)
    assert not part["average"][:-10].any()
    assert evaluate(run, H, key=KEY, method=Reversible(last=10)).diagnostics["exact"] is True


@pytest.mark.slow
def test_the_gradient_goes_through_a_transformation() -> None:
    run = problem(ema(sgd(0.05, 0.8, transform=lambda h: optax.clip_by_global_norm(h["clip"])), "average"))
    results = [evaluate(run, {**H, "clip": 0.1}, key=KEY, method=m) for m in (Reversible(), Unrolled())]
    assert results[0].gradient is not None
    assert results[1].gradient is not None
    assert abs(results[1].gradient["clip"]) > 1e-3
    assert results[0].gradient["clip"] == pytest.approx(float(results[1].gradient["clip"]), rel=1e-4)


@pytest.mark.slow
def test_jax_transforms_training_with_an_average() -> None:
    run = problem(ema(RULES["adamw"][0], "average"))

    def loss(decay: jax.Array) -> jax.Array:
        return jnp.mean(run.valid_loss(train(run, {**H, "average": decay}, KEY), H))

    decays = jnp.array([0.9, 0.99])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(decays)
    for decay, value, slope in zip(decays, values, slopes, strict=True):
        result = evaluate(run, {**H, "average": decay}, key=KEY)
        assert result.gradient is not None
        assert (value, slope) == pytest.approx((result.value, float(result.gradient["average"])), rel=1e-4)


def test_an_average_of_half_precision_moves() -> None:
    """It is kept in float32: at a decay of 0.999 an increment is too small for bfloat16 to add."""
    run = TrainingProblem(
        init=lambda key, h: jnp.ones(3, jnp.bfloat16),
        train_loss=lambda w, h, batch, key: jnp.sum(w.astype(jnp.float32) ** 2),
        valid_loss=lambda w, h: jnp.sum(w.astype(jnp.float32) ** 2),
        batches=lambda step: None,
        optimizer=ema(sgd(0.3, 0.1), 0.999),
        steps=100,
    )
    params = train_in_floats(run, {}, KEY)
    assert params.dtype == jnp.bfloat16
    np.testing.assert_allclose(params.astype(jnp.float32), 0.999**100, rtol=0.01)


def test_hypernetworks_train_without_it() -> None:
    run = problem(ema(RULES["adamw"][0], 0.9))
    fixed = {"scale": 0.4, "rate": 0.05, "average": 0.9}
    space = {"l2": Float(1e-3, 1.0, log=True)}
    assert evaluate(run, {**fixed, "l2": 0.02}, key=KEY, method=Hypernet(steps=3), space=space).refined is not None


@functools.cache
def still(size: float) -> TrainingProblem:
    """Weights that grow by their size at each step."""
    return TrainingProblem(
        init=lambda key, h: jnp.full(3, size),
        train_loss=lambda w, h, batch, key: -size * jnp.sum(w),
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: None,
        optimizer=ema(sgd(1.0, 0.5), 0.9),
        steps=20,
    )


def test_numbers_out_of_range_and_below_the_resolution_are_named() -> None:
    over = evaluate(still(100.0), {}, key=KEY, method=Reversible(fraction_bits={"ema": 52}))
    assert (over.status, "ema of params left the range" in over.message) == (Status.OVERFLOW, True)
    assert evaluate(still(100.0), {}, key=KEY).status is Status.OK
    under = evaluate(still(1e-7), {}, key=KEY, method=Reversible(fraction_bits={"ema": 30}))
    assert (under.status, "ema of params is too small" in under.message) == (Status.UNDERFLOW, True)
    found, expected = (evaluate(still(1e-7), {}, key=KEY, method=m) for m in (Reversible(), Unrolled()))
    assert found.status is Status.OK
    assert found.value == pytest.approx(expected.value, rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_decays_that_cannot_be_reversed_are_refused(decay: float) -> None:
    run = problem(ema(RULES["sgd"][0], decay))
    with pytest.raises(ValueError, match=r"ema_decay must be from .* to train reversibly"):
        evaluate(run, H, key=KEY)
    with pytest.raises(ValueError, match="train: the decay of ema must be from"):
        train(run, H, KEY)
    assert math.isfinite(evaluate(run, H, key=KEY, method=Unrolled()).value)
