"""Transformations of the gradient before an exact optimizer sees it: reversal stays exact, settings have gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Optimizer,
    Reversible,
    TrainingProblem,
    Unrolled,
    adam,
    adamw,
    evaluate,
    gradient_noise,
    sgd,
    train,
    warmup_cosine,
)
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 30
DRAWN = np.random.default_rng(0)
X, Y, X_VALID, Y_VALID = (DRAWN.normal(size=s) for s in ((40, 4), 40, (40, 4), 40))
H = {"peak": 0.05, "warmup": 7.5, "final": 0.004, "clip": 0.3, "noise": 0.05, "decay": 0.1, "l2": np.full(4, 0.1)}


def rate(h: Any, step: jax.Array) -> jax.Array:
    return warmup_cosine(h["peak"], h["warmup"], h["final"], steps=STEPS)(step)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "global norm": lambda h: optax.clip_by_global_norm(h["clip"]),
    "block norm": lambda h: optax.clip_by_block_rms(h["clip"]),
    "value": lambda h: optax.clip(h["clip"]),
    "adaptive": lambda h: optax.adaptive_grad_clip(h["clip"], eps=0.1),
    "centralisation": lambda h: optax.centralize(),
    "noise": lambda h: gradient_noise(h["noise"]),
    "frozen leaf": lambda h: optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
    "zero NaN": lambda h: optax.chain(optax.scale(0.5), optax.clip_by_global_norm(h["clip"])),
    "clip and noise": lambda h: optax.chain(optax.clip_by_global_norm(h["clip"]), gradient_noise(h["noise"])),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda transform: sgd(rate, 0.9, transform=transform),
    "adam": lambda transform: adam(rate, eps=1e-4, transform=transform),
    "adamw": lambda transform: adamw(rate, eps=1e-4, weight_decay="decay", transform=transform),
}


def squares(params: Any, x: np.ndarray, y: np.ndarray) -> jax.Array:
    dtype = params["w"].dtype
    return jnp.mean((jnp.asarray(x, dtype) @ params["w"] + params["b"] - jnp.asarray(y, dtype)) ** 2)


def problem(optimizer: Optimizer) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: {"w": jnp.full(4, 0.3, h["peak"].dtype), "b": jnp.full((), 0.2, h["peak"].dtype)},
        train_loss=lambda w, h, batch, key: squares(w, X, Y) + jnp.sum(h["l2"] * w["w"] ** 2),
        valid_loss=lambda w, h: squares(w, X_VALID, Y_VALID),
        batches=lambda step: None,
        optimizer=optimizer,
        steps=STEPS,
    )


# Each kind of transformation with one optimizer, and Adam with one of them; the slow target has all pairs.
LIKE_OTHERS = ("block norm", "value", "noise")
FAST = [("sgd", t) for t in TRANSFORMS if t not in LIKE_OTHERS] + [("adam", "clip and noise")]
PAIRS = [
    pytest.param(o, t, id=f"{o}, {t}", marks=() if (o, t) in FAST else pytest.mark.slow)
    for o in OPTIMIZERS
    for t in TRANSFORMS
]


@pytest.mark.parametrize(("optimizer", "transform"), PAIRS)
def test_reversal_is_exact_and_agrees_with_float64(optimizer: str, transform: str) -> None:
    run = problem(OPTIMIZERS[optimizer](TRANSFORMS[transform]))
    exact = evaluate(run, H, key=KEY)
    assert exact.diagnostics["exact"] is True
    assert exact.gradient is not None
    drawn = "noise" in transform  # other numbers in float64
    with jax.enable_x64(not drawn), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if drawn else jnp.float64), H)
        loss = jax.jit(jax.value_and_grad(lambda h: run.valid_loss(train_in_floats(run, h, KEY), h)))
        value, wanted = loss(h)
    assert exact.value == pytest.approx(float(value), rel=1e-5)
    largest = max(float(np.abs(slope).max()) for slope in wanted.values())
    for name, slope in wanted.items():
        np.testing.assert_allclose(exact.gradient[name], slope, rtol=2e-3, atol=2e-5 * largest, err_msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", pytest.param("adamw", marks=pytest.mark.slow)])
def test_no_transformation_and_one_that_does_nothing_are_the_same(optimizer: str) -> None:
    made = OPTIMIZERS[optimizer]
    plain, idle = (evaluate(problem(made(t)), H, key=KEY) for t in (None, lambda h: optax.identity()))
    assert plain.value == idle.value


def test_clipping_does_what_it_says() -> None:
    """With a momentum next to 0, the first step has the length of the clipped gradient times the rate."""
    run = TrainingProblem(
        init=lambda key, h: jnp.zeros(3),
        train_loss=lambda w, h, batch, key: jnp.sum(w * jnp.array([3.0, 0.0, 4.0])),
        valid_loss=lambda w, h: jnp.sqrt(jnp.sum(w**2)),
        batches=lambda step: None,
        optimizer=sgd(0.5, 1 / 256, transform=lambda h: optax.clip_by_global_norm(h["clip"])),
        steps=1,
    )
    result = evaluate(run, {"clip": 2.0}, key=KEY)
    assert result.value == pytest.approx(1.0)
    assert result.gradient is not None
    assert float(result.gradient["clip"]) == pytest.approx(0.5)


@pytest.mark.slow
def test_noise_is_new_at_each_step_and_the_same_again() -> None:
    run = problem(sgd(0.05, 0.9, transform=lambda h: gradient_noise(h["noise"])))
    values = [
        evaluate(run, H, key=key, method=m).value
        for key in (KEY, jax.random.key(1))
        for m in (Reversible(), Unrolled())
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[2] == pytest.approx(values[3], rel=1e-5)
    assert abs(values[0] - values[2]) > 1e-4
    assert evaluate(run, H, key=KEY).value == values[0]


@pytest.mark.slow
def test_train_takes_it_too() -> None:
    run = problem(OPTIMIZERS["sgd"](TRANSFORMS["clip and noise"]))
    loss = jax.jit(lambda h: run.valid_loss(train(run, h, KEY), h))
    assert float(loss(H)) == pytest.approx(evaluate(run, H, key=KEY).value, rel=1e-5)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda h: optax.scale_by_adam(), "transform must keep no state from step to step, got optax: scale_by_adam"),
        (lambda h: optax.add_noise(0.1, 0.5, jax.random.key(0)), "transform must keep no state"),
        (lambda h: 0.5, "a function must return a transformation of optax"),
    ],
)
def test_what_keeps_state_is_refused(transform: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(problem(sgd(0.1, 0.9, transform=transform)), H, key=KEY)


@pytest.mark.parametrize("transform", [optax.clip(0.1), 3, lambda: optax.clip(0.1)])
def test_what_is_no_function_is_named(transform: Any) -> None:
    with pytest.raises(ValueError, match="adamw: transform must"):
        adamw(0.1, transform=transform)
