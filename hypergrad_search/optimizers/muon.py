"""Muon: the momentum of each matrix, made orthogonal."""

from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp

from hypergrad_search.checks import whole_number
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.adam import adaptive_step, one_minus_power
from hypergrad_search.optimizers.base import (
    AdditiveOptimizer,
    Arrays,
    ByRank,
    Optimizer,
    Scalars,
    Setting,
    rounded,
)
from hypergrad_search.optimizers.settings import checked_optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan 2024; in float64 they are those of optax
# Settings of matrices, and those that take their place in other leaves.
_RATE = "learning_rate or adam_learning_rate"
_FIRST = "beta or adam_b1"
_SHRINK = "weight_decay or adam_weight_decay"


@final
@dataclass(frozen=True, eq=False)
class _Muon(AdditiveOptimizer):
    learning_rate: Setting
    ns_steps: int
    beta: Setting
    eps: Setting
    shrink: Setting
    adam_b1: Setting
    adam_b2: Setting
    adam_eps_root: Setting
    adam_weight_decay: Setting
    adam_learning_rate: Setting
    transform: OptaxOptimizer | None

    name = "muon"
    whole_leaves = True
    # Matrices do not use nu, which stays 0 there.
    decays = {"mu": _FIRST, "nu": "adam_b2"}  # noqa: RUF012 (nobody changes it)
    divisors = ("nu",)
    fraction_bits = {"weights": 46, "mu": 46, "nu": 78}  # noqa: RUF012 (nobody changes it)
    smallest_decays = {"mu": 0.5, "nu": 0.9, "weights": 0.99}  # noqa: RUF012 (nobody changes it)

    @property
    def settings(self) -> dict[str, Setting]:
        return {
            _RATE: ByRank(self.learning_rate, self.adam_learning_rate),
            _FIRST: ByRank(self.beta, self.adam_b1),
            _SHRINK: ByRank(self.shrink, self.adam_weight_decay),
            "eps": self.eps,
            "adam_b2": self.adam_b2,
            "adam_eps_root": self.adam_eps_root,
        }

    def weight_decay(self, settings: Scalars) -> jax.Array:
        return settings[_RATE] * settings[_SHRINK]

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        share = 1 - settings[self.decays[slot]]
        if slot == "mu":
            return share * gradient
        return share * (jnp.zeros_like(gradient) if gradient.ndim == 2 else gradient * gradient)

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        mu, nu, rate = slots["mu"], slots["nu"], settings[_RATE]
        correction = one_minus_power(settings[_FIRST], count)
        if mu.ndim == 2:
            width = max(1.0, mu.shape[1] / mu.shape[0]) ** 0.5 if mu.size else 1.0
            return -rate * width * _orthogonal(mu / correction, settings["eps"], self.ns_steps)
        second = nu / one_minus_power(settings["adam_b2"], count) + settings["adam_eps_root"]
        moves = (mu != 0) | (nu != 0)
        return adaptive_step(mu, second, moves, rate / correction, settings["eps"])


def muon(
    learning_rate: Setting,
    ns_steps: int = 5,
    beta: Setting = 0.95,
    eps: Setting = 1e-8,
    weight_decay: Setting = 0.0,
    *,
    adam_b1: Setting = 0.9,
    adam_b2: Setting = 0.999,
    adam_eps_root: Setting = 0.0,
    adam_weight_decay: Setting = 0.0,
    adam_learning_rate: Setting | None = None,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """Muon without Nesterov's momentum (Jordan 2024), as optax's `contrib.muon` with `nesterov=False`.

    For each leaf of rank 2: with m the exponential average of gradients, and m' = m / (1 - beta**t),
    `w <- w - learning_rate * (weight_decay * w + sqrt(max(1, columns / rows)) * orthogonal(m'))`, where `orthogonal`
    takes all singular values to about 1, by Newton and Schulz's iteration. All other leaves are trained by `adamw` with
    the settings whose names begin with `adam_`, and the same `eps`.

    It is exactly reversible, since the step depends on m alone. Nesterov's momentum, optax's default, has the gradient
    in the step, and is not. Matrices carry Adam's second moment too, which stays 0 there: `Reversible` takes as much
    memory as with `adamw`. Do not use it for embeddings or kernels of convolutions: those of rank 2 would be taken for
    matrices, and all others are trained by `adamw`.

    Args:
        learning_rate: a setting, as `sgd` describes it, and so are all others but `ns_steps`.
        ns_steps: the number of iterations that make a matrix orthogonal, from 1.
        beta: the decay of the momentum of matrices, from 1/256 to below 1 for `Reversible`, as are `adam_b1` and
            `adam_b2`.
        eps: what is added to the norm of m', and to Adam's root.
        weight_decay: matrices lose `learning_rate * weight_decay` of themselves before each step.
        adam_b1: see `adamw`, and so for the other names that begin with `adam_`.
        adam_b2: see `adamw`.
        adam_eps_root: see `adamw`.
        adam_weight_decay: see `adamw`.
        adam_learning_rate: the learning rate of the other leaves; None for that of matrices.
        transform: see `sgd`.

    Raises:
        ValueError: a setting is of the wrong kind, or `ns_steps` is not a whole number from 1.

    Example:
        >>> from hypergrad_search import muon
        >>> optimizer = muon("rate", adam_learning_rate=1e-3)
    """
    steps = whole_number("muon: ns_steps", ns_steps, 1)
    of_others = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam = (adam_b1, adam_b2, adam_eps_root, adam_weight_decay, of_others)
    return checked_optimizer(_Muon(learning_rate, steps, beta, eps, weight_decay, *adam, transform))


def _orthogonal(x: jax.Array, eps: jax.Array, steps: int) -> jax.Array:
    """Return the orthogonal matrix next to one, roughly, for an `eps` that is a scalar or an array of its shape.

    Products of matrices are not merged with sums by any compiler, and products of numbers are `rounded`.
    """
    a, b, c = _COEFFICIENTS
    has_moved = jnp.any(x != 0)  # a matrix that never had a gradient has no slope, as in `adaptive_step`
    norm = jnp.where(has_moved, jnp.sqrt(jnp.sum(jnp.where(has_moved, x * x, 1))), 1)
    x = jnp.where(has_moved, x / (norm + eps), 0)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(steps):
        square = x @ x.T
        x = rounded(a * x) + (rounded(b * square) + rounded(c * (square @ square))) @ x
    return x.T if is_tall else x
