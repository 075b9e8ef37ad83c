"""Optimizers that promise to need no tuning, at optax's defaults, for a given number of training steps.

DoG is judged at its last iterate. Its authors recommend an average of them all, with which its losses on the problems
of 100 steps are half as large again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hypergrad_search.optax_optimizers import OptaxOptimizer


def prodigy(steps: int) -> OptaxOptimizer:
    """Return Prodigy, with the schedule that its documentation recommends: from 1 to 0, linearly."""
    return lambda hyperparameters: optax.contrib.prodigy(optax.linear_schedule(1.0, 0.0, steps))


def dog(steps: int) -> OptaxOptimizer:
    """Return DoG (Ivgi et al. 2023)."""
    return lambda hyperparameters: optax.contrib.dog()


def dowg(steps: int) -> OptaxOptimizer:
    """Return DoWG (Khaled et al. 2023)."""
    return lambda hyperparameters: optax.contrib.dowg()


def schedule_free_adamw(steps: int) -> OptaxOptimizer:
    """Return schedule-free AdamW (Defazio et al. 2024), whose default rate is 0.0025, without a warm-up."""
    return lambda hyperparameters: ending_at(
        optax.contrib.schedule_free_eval_params, optax.contrib.schedule_free_adamw(), steps
    )


def schedule_free_sgd(steps: int) -> OptaxOptimizer:
    """Return schedule-free gradient descent (Defazio et al. 2024), whose default rate is 1, without a warm-up."""
    return lambda hyperparameters: ending_at(
        optax.contrib.schedule_free_eval_params, optax.contrib.schedule_free_sgd(), steps
    )


def ending_at(
    judged: Callable[[Any, Any], Any], optimizer: optax.GradientTransformationExtraArgs, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose last step of so many leads to `judged(state, parameters)`.

    It is for an optimizer that is judged at other parameters than those at which it takes gradients, such as their
    average. After the last step the latter are no longer needed.
    """

    def init(params: Any) -> tuple[jax.Array, Any]:
        return jnp.zeros([], jnp.int32), optimizer.init(params)

    def update(updates: Any, state: tuple[jax.Array, Any], params: Any = None, **extra: Any) -> tuple[Any, Any]:
        count, kept = state
        updates, kept = optimizer.update(updates, kept, params, **extra)
        end = judged(kept, optax.apply_updates(params, updates))
        last = count + 1 == steps
        updates = jax.tree.map(lambda at_end, now, u: jnp.where(last, at_end - now, u), end, params, updates)
        return updates, (count + 1, kept)

    return optax.GradientTransformationExtraArgs(init, update)
