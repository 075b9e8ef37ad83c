"""Stochastic gradient descent with momentum."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import jax

from hypergrad_search.checks import boolean
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.base import AdditiveOptimizer, Arrays, Optimizer, Scalars, Setting
from hypergrad_search.optimizers.settings import checked_optimizer


@final
@dataclass(frozen=True, eq=False)
class _Sgd(AdditiveOptimizer):
    learning_rate: Setting
    momentum: Setting
    _: KW_ONLY
    dampening: bool
    transform: OptaxOptimizer | None

    name = "sgd"
    decays = {"velocity": "momentum"}  # noqa: RUF012 (nobody changes it)
    divisors = ()
    fraction_bits = {"weights": 48, "velocity": 44}  # noqa: RUF012 (nobody changes it)
    smallest_decays = {"velocity": 0.5}  # noqa: RUF012 (nobody changes it)

    @property
    def settings(self) -> dict[str, Setting]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def weight_decay(self, settings: Scalars) -> None:
        return None

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        return _dampened(gradient, settings) if self.dampening else gradient

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        return -settings["learning_rate"] * slots["velocity"]


@final
@dataclass(frozen=True, eq=False)
class _Nesterov(Optimizer):
    learning_rate: Setting
    momentum: Setting
    _: KW_ONLY
    dampening: bool
    transform: OptaxOptimizer | None

    name = "sgd(nesterov=True)"
    slots = ("velocity",)

    @property
    def settings(self) -> dict[str, Setting]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def float_step(
        self, weights: jax.Array, slots: Arrays, gradient: jax.Array, settings: Scalars, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        rate, momentum = settings["learning_rate"], settings["momentum"]
        ahead = weights + rate * momentum * slots["velocity"]
        velocity = momentum * slots["velocity"] + (_dampened(gradient, settings) if self.dampening else gradient)
        return ahead - rate * (1 + momentum) * velocity, {"velocity": velocity}


def _dampened(gradient: jax.Array, settings: Scalars) -> jax.Array:
    return (1 - settings["momentum"]) * gradient


def sgd(
    learning_rate: Setting,
    momentum: Setting,
    nesterov: bool = False,
    *,
    dampening: bool = False,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum, as optax's `sgd`: `v <- momentum * v + g; w <- w - rate * v`.

    `nesterov=True` steps by `-rate * (momentum * v + g)` instead, and works with `Unrolled` only: such a step can take
    different weights and velocities to the same ones, so that the way back is not unique.

    `dampening=True` scales the gradient by `1 - momentum` (Maclaurin et al. 2015), so that the size of a step does
    not depend on the momentum.

    Each setting is one of the following, or a pytree prefix of the parameters with one of them at each leaf:

    - a number; an array of length `steps`, which is a schedule; or an array that broadcasts to shape `(leaves, steps)`,
      with a row for each leaf of the parameters that the setting is for, in the order of `jax.tree.leaves`;
    - a string: the name of a hyperparameter that holds one of these;
    - a function of (hyperparameters, step) that returns a number, or a pytree prefix of numbers; where it would return
      an array, since a hyperparameter has the shape `(leaves, steps)`, it gets the numbers of this array one by one;
    - a schedule of optax, which is a function of the step alone. `warmup_cosine` has hyperparameters in it.

    `transform` is a function of the hyperparameters that returns a transformation of optax. Each gradient goes through
    it before the optimizer sees it, as in `lambda h: optax.clip_by_global_norm(h["clip"])`, and hyperparameters in it
    have gradients. It must keep no state. It does no harm to exact reversal: on the way back the gradient is computed
    again, and so is its transformation. `gradient_noise` adds noise. `optax.masked` freezes leaves
    with it, but for weight decay, which is no part of the gradient: give frozen leaves a `weight_decay` of 0 as well.
    Clipping by the norm has no slope at a gradient that is 0 everywhere, and such a step ends as "exploded".

    `Reversible` needs a momentum from 1/256 to 1. Use `Unrolled` for a momentum of 0. Raises `ValueError` where a
    setting is of the wrong kind.

    Example:
        >>> import optax
        >>> from hypergrad_search import sgd
        >>> optimizer = sgd("rate", momentum=0.9, transform=lambda h: optax.clip_by_global_norm(h["clip"]))
    """
    kind = _Nesterov if boolean("sgd: nesterov", nesterov) else _Sgd
    return checked_optimizer(
        kind(learning_rate, momentum, dampening=boolean("sgd: dampening", dampening), transform=transform)
    )
