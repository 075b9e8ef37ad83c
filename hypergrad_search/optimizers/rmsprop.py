"""RMSProp with momentum."""

from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp

from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.base import AdditiveOptimizer, Arrays, Optimizer, Scalars, Setting
from hypergrad_search.optimizers.settings import checked_optimizer


@final
@dataclass(frozen=True, eq=False)
class _RmsProp(AdditiveOptimizer):
    learning_rate: Setting
    decay: Setting
    eps: Setting
    momentum: Setting
    transform: OptaxOptimizer | None

    name = "rmsprop"
    decays = {"nu": "decay", "trace": "momentum"}  # noqa: RUF012 (nobody changes it)
    divisors = ("nu",)
    fraction_bits = {"weights": 48, "nu": 78, "trace": 46}  # noqa: RUF012 (nobody changes it)
    smallest_decays = {"nu": 0.5, "trace": 0.5}  # noqa: RUF012 (nobody changes it)

    @property
    def settings(self) -> dict[str, Setting]:
        return {name: getattr(self, name) for name in ("learning_rate", "decay", "eps", "momentum")}

    def weight_decay(self, settings: Scalars) -> None:
        return None

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        if slot == "nu":
            return (1 - settings["decay"]) * gradient * gradient
        rate, nu = settings["learning_rate"], others["nu"]
        has_moved = nu != 0  # a weight that never had a gradient has no slope: see `adaptive_step`
        divisor = jnp.sqrt(jnp.where(has_moved, nu + settings["eps"], 1))
        return jnp.where(has_moved, -rate * gradient / divisor, 0 * rate)

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        return slots["trace"]


def rmsprop(
    learning_rate: Setting,
    decay: Setting = 0.9,
    eps: Setting = 1e-8,
    *,
    momentum: Setting,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """RMSProp with momentum (Hinton 2012), as optax's `rmsprop`; `sgd` says what a setting and `transform` may be.

    `v <- decay * v + (1 - decay) * g**2; t <- momentum * t - learning_rate * g / sqrt(v + eps); w <- w + t`. The
    learning rate is part of what the momentum adds up, so a rate that falls slows training down with a delay.

    It is exactly reversible because the momentum comes last: the weights step by it alone. Without momentum they step
    by the gradient itself, which reversal cannot undo: give optax's version to `Unrolled`, or use `adam` with a small
    b1. `Reversible` needs decay and momentum from 1/256 to 1. Raises `ValueError` where a setting is of the wrong kind.

    Example:
        >>> from hypergrad_search import rmsprop
        >>> optimizer = rmsprop("rate", momentum="momentum")
    """
    return checked_optimizer(_RmsProp(learning_rate, decay, eps, momentum, transform))
