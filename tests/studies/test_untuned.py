"""Optimizers that need no tuning are optax's own, and end where their authors evaluate them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Unrolled, evaluate
from hypergrad_search.space import centre
from hypergrad_studies import untuned
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.rivals import RIVALS

STEPS = 7
Judged = Callable[[Any, Any], Any]


def by_hand(optimizer: optax.GradientTransformation, steps: int, judged: Judged | None = None) -> jax.Array:
    """Return where an optimizer ends on a paraboloid; `judged` says which parameters are judged at the end."""
    params = jnp.array([1.0, -2.0, 3.0])
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    return params if judged is None else judged(state, params)


@pytest.mark.parametrize(
    ("ours", "optimizer"),
    [
        (untuned.schedule_free_adamw, optax.contrib.schedule_free_adamw),
        (untuned.schedule_free_sgd, optax.contrib.schedule_free_sgd),
    ],
)
def test_schedule_free_training_ends_at_the_average(
    ours: Callable[[int], Any], optimizer: Callable[[], optax.GradientTransformation]
) -> None:
    expected = by_hand(optimizer(), STEPS, optax.contrib.schedule_free_eval_params)
    np.testing.assert_allclose(by_hand(ours(STEPS)({}), STEPS), expected, rtol=1e-5)
    assert not np.allclose(expected, by_hand(optimizer(), STEPS), rtol=1e-5)
    np.testing.assert_array_equal(by_hand(ours(STEPS)({}), STEPS - 1), by_hand(optimizer(), STEPS - 1))


def test_the_rate_of_prodigy_falls_to_zero() -> None:
    ours = by_hand(untuned.prodigy(STEPS)({}), STEPS + 1)
    np.testing.assert_array_equal(ours, by_hand(untuned.prodigy(STEPS)({}), STEPS))
    assert not np.array_equal(ours, by_hand(optax.contrib.prodigy(), STEPS))


@pytest.mark.slow
def test_the_optimizer_takes_the_place_of_the_problems_own() -> None:
    problem, space = RIVALS["dowg"].posed(PROBLEMS["digits-mlp"]())
    own, own_space = PROBLEMS["digits-mlp"]().posed()
    assert (problem.train_loss, space) == (own.train_loss, own_space)
    assert RIVALS["dowg"].posed(PROBLEMS["digits-mlp"]())[0] is problem
    values = [
        evaluate(
            problem,
            {**centre(space), "momentum": momentum},
            method=Unrolled(),
            key=jax.random.key(0),
            gradient_below=-math.inf,
        ).value
        for momentum in (0.5, 0.9)
    ]
    assert values[0] == values[1]
