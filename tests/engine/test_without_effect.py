"""What has no effect is said before a search wastes its trials on it; what has one is never doubted."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad_search import (
    Float,
    Int,
    Reversible,
    Smoothed,
    Space,
    TrainingProblem,
    Unrolled,
    adamw,
    evaluate,
    proximal_sgd,
)
from hypergrad_search.hypergradient import evaluate_batch

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (20, 3))
LABELS = (IMAGES[:, 0] > 0).astype(jnp.int32)
SPACE: Space = {"rate": Float(1e-3, 0.1, log=True), "decay": Float(1e-4, 1.0, log=True), "l2": Float(0.0, 1.0)}
POINT = {"rate": 0.01, "decay": 0.1, "l2": 0.1}


def losses(weights: jax.Array, h: dict[str, Any]) -> jax.Array:
    of_each: jax.Array = optax.softmax_cross_entropy_with_integer_labels(IMAGES @ weights, LABELS)
    return of_each


def hits(weights: jax.Array, h: dict[str, Any]) -> jax.Array:
    return (jnp.argmax(IMAGES @ weights, axis=1) == LABELS).astype(jnp.float32)


def problem(**parts: Any) -> TrainingProblem:
    return TrainingProblem(
        **{
            "init": lambda key, h: jnp.zeros((3, 2)),
            "train_loss": lambda w, h, batch, key: losses(w, h).mean() + h["l2"] * jnp.sum(w**2),
            "valid_loss": losses,
            "batches": lambda step: None,
            "optimizer": adamw("rate", weight_decay="decay"),
            "steps": 3,
            **parts,
        }
    )


@pytest.mark.parametrize("valid_loss", [hits, lambda w, h: hits(w, h).mean(), lambda w, h: jnp.zeros(3)])
@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_a_validation_loss_without_a_slope_is_named(valid_loss: Callable[..., Any], method: Any) -> None:
    flat = problem(valid_loss=valid_loss)
    with pytest.warns(UserWarning, match="valid_loss: its derivative by the model is zero everywhere") as heard:
        evaluate(flat, POINT, key=KEY, method=method, space=SPACE)
    assert [warning.filename for warning in heard] == [__file__]
    evaluate(flat, POINT, key=KEY, method=method, space=SPACE)  # it is said once


def test_gradients_that_are_not_zero_are_believed() -> None:
    of_penalty = evaluate(problem(valid_loss=lambda w, h: h["l2"] + 0.0), POINT, key=KEY, space=SPACE)
    assert of_penalty.gradient is not None
    assert of_penalty.gradient["l2"] == 1
    smoothed = Smoothed(sigma=0.3, pairs=10)  # it takes no derivatives, so an accuracy is as good as another loss
    found = evaluate(problem(valid_loss=hits, steps=30), POINT, key=KEY, method=smoothed, space=SPACE)
    assert found.gradient is not None
    assert any(slope != 0 for slope in found.gradient.values())


def test_a_name_that_nothing_reads_is_said() -> None:
    constants = problem(optimizer=adamw(1e-3))
    evaluate(constants, POINT, key=KEY)  # without a space, nobody has said what is to be searched
    with pytest.warns(UserWarning, match="nothing in this problem reads 'decay', 'rate': neither"):
        evaluate(constants, POINT, key=KEY, space=SPACE)
    with pytest.warns(UserWarning, match="nothing in this problem reads 'rate'"):
        evaluate_batch(problem(optimizer=adamw(1e-3, weight_decay="decay")), [POINT, POINT], key=KEY, space=SPACE)


@jax.custom_vjp
def rounded(x: jax.Array) -> jax.Array:
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, slope: (slope,))


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        ({}, Reversible()),
        ({"optimizer": lambda h: optax.adamw(h["rate"], weight_decay=h["decay"])}, Unrolled()),
        ({"optimizer": proximal_sgd("rate", l1="decay")}, Unrolled()),
        ({"optimizer": adamw("rate", transform=lambda h: optax.clip_by_global_norm(h["decay"]))}, Reversible()),
        ({"optimizer": adamw("rate"), "init": lambda key, h: h["decay"] * jnp.ones((3, 2))}, Reversible()),
        ({"optimizer": adamw("rate"), "batches": lambda step, h: h["decay"], "steps": 2}, Reversible()),
        ({"valid_loss": lambda w, h: losses(rounded(w), h)}, Reversible()),
    ],
)
def test_what_has_an_effect_is_not_doubted(parts: dict[str, Any], method: Any) -> None:
    if "batches" in parts:
        parts = {**parts, "train_loss": lambda w, h, batch, key: losses(w * batch, h).mean() + h["l2"] * jnp.sum(w**2)}
    evaluate(problem(**parts), POINT, key=KEY, method=method, space=SPACE)  # a warning is an error here


def test_values_alone_need_no_slope() -> None:
    flat = problem(valid_loss=hits, optimizer=adamw(1e-3))
    evaluate(flat, POINT, key=KEY, space=SPACE, gradient_below=-math.inf)  # another search may well be after these


def test_a_loss_without_a_reverse_mode_is_not_looked_at() -> None:
    def valid_loss(w: jax.Array, h: dict[str, Any]) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() > 100.0, lambda x: x / 2, losses(w, h))

    assert evaluate(problem(valid_loss=valid_loss), POINT, key=KEY, method=Smoothed(), space=SPACE).status == "ok"


def test_plain_values_may_decide_what_others_are_for() -> None:
    width: Space = {**SPACE, "width": Int(1, 9)}
    evaluate(problem(optimizer=adamw(1e-3)), {**POINT, "width": 3}, key=KEY, space=width)
    evaluate(problem(optimizer=adamw(1e-3)), POINT, key=KEY)  # nobody has said that these are meant to be searched


def test_a_validation_loss_that_is_nan_by_itself_is_told_from_a_model_that_diverged() -> None:
    some = problem(valid_loss=lambda w, h: losses(w, h).at[0].set(jnp.nan))
    assert evaluate(some, POINT, key=KEY).message.startswith("1 of the 20 losses that valid_loss returned are not")
    whole = problem(valid_loss=lambda w, h: losses(w, h).mean() * jnp.nan)
    assert evaluate(whole, POINT, key=KEY).message.startswith("a gradient or loss was NaN; mostly the learning rate")
    whole = replace(whole, test_loss=losses)
    assert evaluate(whole, POINT, key=KEY).message.startswith("valid_loss returned NaN for a model whose test loss")
