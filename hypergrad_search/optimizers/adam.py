"""Adam, AdamW and AdaBelief: steps along a mean of the gradients, divided by the root of a second moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp

from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.base import AdditiveOptimizer, Arrays, Optimizer, Scalars, Setting, rounded
from hypergrad_search.optimizers.settings import checked_optimizer


@final
@dataclass(frozen=True, eq=False)
class _Adam(AdditiveOptimizer):
    """Adam; AdamW where `decay_of_weights` is not None."""

    learning_rate: Setting
    b1: Setting
    b2: Setting
    eps: Setting
    eps_root: Setting
    decay_of_weights: Setting | None
    transform: OptaxOptimizer | None

    decays = {"mu": "b1", "nu": "b2"}  # noqa: RUF012 (nobody changes it)
    divisors = ("nu",)

    @property
    def name(self) -> str:
        return "adam" if self.decay_of_weights is None else "adamw"

    @property
    def fraction_bits(self) -> Mapping[str, int]:
        # The square of a gradient far below eps must count beside that of a large one, which takes three limbs.
        return {"weights": 48 if self.decay_of_weights is None else 46, "mu": 46, "nu": 78}

    @property
    def smallest_decays(self) -> Mapping[str, float]:
        decays = {"mu": 0.5, "nu": 0.9}
        return decays if self.decay_of_weights is None else {**decays, "weights": 0.99}

    @property
    def settings(self) -> dict[str, Setting]:
        settings = {name: getattr(self, name) for name in ("learning_rate", "b1", "b2", "eps", "eps_root")}
        return settings if self.decay_of_weights is None else {**settings, "weight_decay": self.decay_of_weights}

    def weight_decay(self, settings: Scalars) -> jax.Array | None:
        return None if self.decay_of_weights is None else settings["learning_rate"] * settings["weight_decay"]

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        share = 1 - settings[self.decays[slot]]
        return share * gradient if slot == "mu" else share * gradient * gradient

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        second = slots["nu"] / one_minus_power(settings["b2"], count) + settings["eps_root"]
        moves = (slots["mu"] != 0) | (slots["nu"] != 0)
        size = settings["learning_rate"] / one_minus_power(settings["b1"], count)
        return adaptive_step(slots["mu"], second, moves, size, settings["eps"])


@final
@dataclass(frozen=True, eq=False)
class _AdaBelief(AdditiveOptimizer):
    learning_rate: Setting
    b1: Setting
    b2: Setting
    eps: Setting
    eps_root: Setting
    transform: OptaxOptimizer | None

    name = "adabelief"
    decays = {"mu": "b1", "nu": "b2"}  # noqa: RUF012 (nobody changes it)
    divisors = ("nu",)
    fraction_bits = {"weights": 48, "mu": 46, "nu": 78}  # noqa: RUF012 (nobody changes it)
    smallest_decays = {"mu": 0.5, "nu": 0.9}  # noqa: RUF012 (nobody changes it)

    @property
    def settings(self) -> dict[str, Setting]:
        return {name: getattr(self, name) for name in ("learning_rate", "b1", "b2", "eps", "eps_root")}

    def weight_decay(self, settings: Scalars) -> None:
        return None

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        share = 1 - settings[self.decays[slot]]
        if slot == "mu":
            return share * gradient
        error = gradient - others["mu"]
        return rounded(share * error * error) + settings["eps_root"]

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        second = slots["nu"] / one_minus_power(settings["b2"], count)
        size = settings["learning_rate"] / one_minus_power(settings["b1"], count)
        moves = slots["mu"] != 0  # nu grows by eps_root at each step, even without a gradient
        return adaptive_step(slots["mu"], second, moves, size, settings["eps"])


def adam(
    learning_rate: Setting,
    b1: Setting = 0.9,
    b2: Setting = 0.999,
    eps: Setting = 1e-8,
    eps_root: Setting = 0.0,
    *,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba 2015), as optax's `adam`; `sgd` says what a setting and `transform` may be.

    With m and v the exponential averages of g and g**2, and m' = m / (1 - b1**t), v' = v / (1 - b2**t):
    `w <- w - learning_rate * m' / (sqrt(v' + eps_root) + eps)`. A schedule of b1 or b2 corrects the bias, as optax
    does, as if its present value had held from the start.

    A weight without any gradient so far does not move, and has no hypergradient. The hypergradient of a weight whose
    gradient is tiny but not 0 is huge, since Adam divides by it: an `eps` or `eps_root` nearer to the size of the
    gradients makes it smaller. `Reversible` needs b1 and b2 from 1/256 to below 1.

    Example:
        >>> from hypergrad_search import adam
        >>> optimizer = adam("rate", b1=lambda h, step: 1 - h["rest"], eps=1e-4)
    """
    return checked_optimizer(_Adam(learning_rate, b1, b2, eps, eps_root, None, transform))


def adamw(
    learning_rate: Setting,
    b1: Setting = 0.9,
    b2: Setting = 0.999,
    eps: Setting = 1e-8,
    eps_root: Setting = 0.0,
    *,
    weight_decay: Setting = 1e-4,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as optax's `adamw`: see `adam`.

    Before each step the weights lose `learning_rate * weight_decay` of themselves. For weights that should not decay,
    such as biases, give a pytree prefix of the parameters with 0 there, in place of optax's `mask`.

    Example:
        >>> from hypergrad_search import adamw
        >>> optimizer = adamw("rate", weight_decay={"w": "decay", "b": 0.0})
    """
    if weight_decay is None:
        raise ValueError("adamw: weight_decay must be a setting, got None; use adam, or 0.0")
    return checked_optimizer(_Adam(learning_rate, b1, b2, eps, eps_root, weight_decay, transform))


def adabelief(
    learning_rate: Setting,
    b1: Setting = 0.9,
    b2: Setting = 0.999,
    eps: Setting = 1e-16,
    eps_root: Setting = 1e-16,
    *,
    transform: OptaxOptimizer | None = None,
) -> Optimizer:
    """AdaBelief (Zhuang et al. 2020), as optax's `adabelief`; `sgd` says what a setting and `transform` may be.

    It is `adam` but for the second moment, which is that of the gradient's distance from its mean:
    `m <- b1 * m + (1 - b1) * g; v <- b2 * v + (1 - b2) * (g - m)**2 + eps_root`, with the new m in the second, and
    `w <- w - learning_rate * m' / (sqrt(v') + eps)` with `m' = m / (1 - b1**t)` and `v' = v / (1 - b2**t)`.

    Where gradients hardly change it divides by next to nothing, and takes long steps: raise `eps` there, or use `adam`.
    What `adam` says of weights without a gradient, and of hypergradients, holds here too. `Reversible` needs b1 and b2
    from 1/256 to below 1. Raises `ValueError` where a setting is of the wrong kind.

    Example:
        >>> from hypergrad_search import adabelief
        >>> optimizer = adabelief("rate", b2=0.99, eps=1e-8)
    """
    return checked_optimizer(_AdaBelief(learning_rate, b1, b2, eps, eps_root, transform))


def adaptive_step(mu: jax.Array, second: jax.Array, moves: jax.Array, size: jax.Array, eps: jax.Array) -> jax.Array:
    """Return the step along `mu`, of this size, divided by the root of the second moment.

    Where `moves` is false a weight never had a gradient, and takes no part in training. Its slope, size / eps, would
    grow on the way back until it is infinite, and infinite times 0 is NaN. So its step is divided by infinity, which
    leaves neither a step nor a slope.

    Example:
        >>> from hypergrad_search.optimizers import adaptive_step
        >>> mean, second = jnp.array([0.2, 0.0]), jnp.array([0.04, 0.0])
        >>> steps = adaptive_step(mean, second, mean != 0, size=jnp.float32(0.1), eps=jnp.float32(0.0))
        >>> [round(float(step), 3) + 0.0 for step in steps]
        [-0.1, 0.0]
    """
    return -size * mu / jnp.where(moves, root(second) + eps, jnp.inf)


def one_minus_power(decay: jax.Array, count: jax.Array) -> jax.Array:
    """Return `1 - decay**count`, by which an average that began at 0 is too small.

    Example:
        >>> from hypergrad_search.optimizers import one_minus_power
        >>> round(float(one_minus_power(jnp.float32(0.9), jnp.int32(2))), 6)
        0.19
    """
    return -jnp.expm1(count.astype(decay.dtype) * jnp.log(decay))


def root(x: jax.Array) -> jax.Array:
    """Return the square root. Its slope at 0 is set to 0: a weight that never had a gradient has no hypergradient."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))
