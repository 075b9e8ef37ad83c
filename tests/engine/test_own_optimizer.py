"""Optimizers of a user's own, in the general additive form: a slot may read others, before it and behind it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import AdditiveOptimizer, TrainingProblem, Unrolled, ema, evaluate
from hypergrad_search.optimizers import rounded
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 30
DECAYS = {"last": "d3", "mean": "d1", "square": "d2"}


@dataclass(frozen=True, eq=False)
class Adopt(AdditiveOptimizer):
    """The mean reads the second moment behind it, as ADOPT's does, and the momentum, which changes before both."""

    rate: Any
    name = "adopt"
    decays = DECAYS
    divisors = ("square",)
    fraction_bits = {"weights": 48, "last": 46, "mean": 46, "square": 78}  # noqa: RUF012
    smallest_decays = {"last": 0.5, "mean": 0.5, "square": 0.5}  # noqa: RUF012

    @property
    def settings(self) -> dict[str, Any]:
        return {"rate": self.rate, "d1": "d1", "d2": "d2", "d3": "d3"}

    def weight_decay(self, settings: Any) -> None:
        return None

    def increment(self, slot: str, gradient: jax.Array, others: Any, settings: Any, count: jax.Array) -> jax.Array:
        added: jax.Array = (1 - settings[self.decays[slot]]) * gradient
        if slot == "last":
            added = gradient / count.astype(gradient.dtype)
        if slot == "mean":
            added = (1 - settings["d1"]) * (gradient + others["last"]) / jnp.sqrt(others["square"] + 1e-2)
        return added * gradient if slot == "square" else added

    def step(self, slots: Any, settings: Any, count: jax.Array) -> jax.Array:
        step: jax.Array = -settings["rate"] * slots["mean"]
        return step


def problem(optimizer: AdditiveOptimizer | Any) -> TrainingProblem:
    def train_loss(p: jax.Array, h: Any, step: jax.Array, key: jax.Array) -> jax.Array:
        wave = jnp.cos(step.astype(p.dtype))
        loss: jax.Array = jnp.sum(jnp.square(jnp.sin(p) - 0.3 * wave)) + 0.2 * jnp.sum(p)
        return loss

    return TrainingProblem(
        init=lambda key, h: h["scale"] * jnp.cos(jnp.arange(5.0, dtype=h["scale"].dtype)),
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.sum(jnp.square(p - 0.1)),
        batches=lambda step: step,
        optimizer=optimizer,
        steps=STEPS,
    )


H = {"scale": 0.5, "rate": 0.05, "d1": 0.8, "d2": 0.9, "d3": 0.6}


def plain_loop(h: dict[str, float]) -> np.ndarray[Any, Any]:
    weights: np.ndarray[Any, Any] = h["scale"] * np.cos(np.arange(5.0))
    last = mean = square = np.zeros(5)
    for step in range(STEPS):
        gradient = 2 * (np.sin(weights) - 0.3 * np.cos(step)) * np.cos(weights) + 0.2
        last = h["d3"] * last + gradient / (step + 1)
        mean = h["d1"] * mean + (1 - h["d1"]) * (gradient + last) / np.sqrt(square + 1e-2)  # the old square
        square = h["d2"] * square + (1 - h["d2"]) * gradient**2
        weights = weights - h["rate"] * mean
    return weights


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(Adopt("rate"), id="alone"),
        pytest.param(ema(Adopt("rate"), 0.9), id="with an average", marks=pytest.mark.slow),
    ],
)
def test_slots_that_read_one_another_reverse_to_the_bit(optimizer: AdditiveOptimizer) -> None:
    found = evaluate(problem(optimizer), H, key=KEY)
    with jax.enable_x64(True):
        doubles = {name: jnp.asarray(np.float32(x), jnp.float64) for name, x in H.items()}
        exact = evaluate(problem(optimizer), doubles, key=KEY, method=Unrolled())
        weights = train_in_floats(problem(Adopt("rate")), doubles, KEY)
    np.testing.assert_allclose(weights, plain_loop({name: float(x) for name, x in doubles.items()}), rtol=1e-10)
    assert found.diagnostics["exact"] is True
    assert found.value == pytest.approx(exact.value, rel=1e-5)
    assert found.gradient is not None
    assert exact.gradient is not None
    for name, slope in exact.gradient.items():
        assert found.gradient[name] == pytest.approx(float(slope), rel=5e-5), name


def test_a_slot_cannot_read_itself() -> None:
    class Reads(Adopt):
        def increment(self, slot: str, gradient: jax.Array, others: Any, settings: Any, count: jax.Array) -> jax.Array:
            return jnp.add(gradient, others[slot])

    with pytest.raises(KeyError):
        evaluate(problem(Reads("rate")), H, key=KEY)


def test_a_rounded_product_is_not_merged_with_a_sum() -> None:
    """The difference between a product and its rounded value is 0, where one instruction for both gives its error."""
    a, b = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    difference = jax.jit(lambda a, b, c: rounded(a * b) - c)(a, b, a * b)
    assert not np.asarray(difference).any()
