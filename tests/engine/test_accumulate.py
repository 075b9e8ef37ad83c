"""Gradient accumulation gives the gradient of the whole batch, and training with it runs backwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Reversible, TrainingProblem, Unrolled, accumulate_gradients, evaluate, sgd

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(64, 30)).astype(np.float32)
Y = np.tanh(X[:, 0] - X[:, 1])
H = {"rate": 0.02, "l2": 0.01}


def train_loss(params: Any, h: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
    out = jnp.tanh(jnp.asarray(X, float)[rows] @ params["w"]) @ params["v"]
    loss: jax.Array = jnp.mean((out - jnp.asarray(Y, float)[rows]) ** 2) + h["l2"] * jnp.sum(params["w"] ** 2)
    return loss


def problem(loss: Any, **changes: Any) -> TrainingProblem:
    start = np.random.default_rng(1).normal(size=(30, 20)) / 5
    parts: dict[str, Any] = {
        "init": lambda key, h: {"w": jnp.asarray(start, float), "v": jnp.full(20, 0.1, float)},
        "train_loss": loss,
        "valid_loss": lambda params, h: train_loss(params, {"l2": 0.0}, jnp.arange(48, 64), KEY),
        "batches": lambda step: (jnp.arange(24, dtype=jnp.int32) + 24 * step) % 48,
        "optimizer": sgd("rate", 0.8),
        "steps": 20,
    }
    return TrainingProblem(**{**parts, **changes})


@pytest.mark.parametrize("method", [pytest.param(Reversible(), marks=pytest.mark.slow), Unrolled()], ids=str)
def test_the_gradient_is_that_of_the_whole_batch(method: Any) -> None:
    found = evaluate(problem(accumulate_gradients(train_loss, 4)), H, key=KEY, method=method)
    assert found.diagnostics["exact"] in (True, None)
    with jax.enable_x64(True):
        whole = evaluate(problem(train_loss), H, key=KEY, method=Unrolled())
    assert found.value == pytest.approx(whole.value, rel=1e-5)
    assert found.gradient is not None
    assert whole.gradient is not None
    for name, slope in whole.gradient.items():
        np.testing.assert_allclose(found.gradient[name], slope, rtol=2e-4)


@pytest.mark.slow
def test_statistics_go_from_part_to_part() -> None:
    def counting(params: Any, count: jax.Array, h: Any, rows: jax.Array, key: jax.Array) -> Any:
        return train_loss(params, h, rows, key), count + 1

    def valid_loss(params: Any, count: jax.Array, h: Any) -> jax.Array:
        return count.astype(jnp.float32) + 0 * jnp.sum(params["w"])

    plain = problem(train_loss).init
    counted = problem(
        accumulate_gradients(counting, 4), init=lambda key, h: (plain(key, h), jnp.int32(0)), valid_loss=valid_loss
    )
    for method in (Reversible(), Unrolled()):
        assert evaluate(counted, H, key=KEY, method=method).value == 80


def test_parts_have_keys_of_their_own() -> None:
    seen = accumulate_gradients(lambda w, h, batch, key: jax.random.normal(key) + 0 * jnp.sum(w), 2)
    keys = jax.random.split(KEY, 2)
    wanted = (jax.random.normal(keys[0]) + jax.random.normal(keys[1])) / 2
    assert float(seen(jnp.ones(2), {}, jnp.ones(4), KEY)) == pytest.approx(float(wanted))


def test_less_memory_is_needed() -> None:
    def wide(w: jax.Array, h: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)

    def temporary(loss: Any) -> int:
        gradient = jax.jit(jax.grad(lambda w, x: loss(w, {}, x, KEY)))
        analysis: Any = gradient.lower(jnp.ones((64, 64)), jnp.ones((4096, 64))).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    assert temporary(accumulate_gradients(wide, 8)) < temporary(wide) / 2


def test_a_batch_that_cannot_be_divided_is_named() -> None:
    with pytest.raises(ValueError, match=r"batch of shape \(24,\) cannot be divided into micro_batches=5 equal parts"):
        evaluate(problem(accumulate_gradients(train_loss, 5)), H, key=KEY)
