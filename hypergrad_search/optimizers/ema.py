"""An exponential moving average of the weights, kept beside any optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import jax

from hypergrad_search.checks import shown
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.base import AdditiveOptimizer, Arrays, Optimizer, Scalars, Setting, moved_average
from hypergrad_search.optimizers.proximal import ProximalOptimizer
from hypergrad_search.optimizers.settings import checked_optimizer

_AVERAGE = "ema"
_DECAY = "ema_decay"


@final
@dataclass(frozen=True, eq=False)
class _AdditiveEma(AdditiveOptimizer):
    """The average beside an additive optimizer, which is then additive too."""

    inner: AdditiveOptimizer
    decay: Setting
    transform: OptaxOptimizer | None
    whole_leaves: bool

    average = _AVERAGE

    @property
    def name(self) -> str:
        return f"ema({self.inner.name})"

    @property
    def settings(self) -> dict[str, Setting]:
        return {**self.inner.settings, _DECAY: self.decay}

    @property
    def decays(self) -> Mapping[str, str]:
        return {**self.inner.decays, _AVERAGE: _DECAY}

    @property
    def divisors(self) -> tuple[str, ...]:
        return self.inner.divisors

    @property
    def fraction_bits(self) -> Mapping[str, int]:
        # Training never reads the average, so it may be coarser than the weights, and has room for larger ones.
        return {**self.inner.fraction_bits, _AVERAGE: 40}

    @property
    def smallest_decays(self) -> Mapping[str, float]:
        return {**self.inner.smallest_decays, _AVERAGE: 0.9}

    def weight_decay(self, settings: Scalars) -> jax.Array | None:
        return self.inner.weight_decay(settings)

    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        return self.inner.increment(slot, gradient, others, settings, count)

    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        return self.inner.step(slots, settings, count)


@final
@dataclass(frozen=True, eq=False)
class _FloatEma(Optimizer):
    """The average beside an optimizer that cannot be run backwards."""

    inner: Optimizer
    decay: Setting
    transform: OptaxOptimizer | None
    whole_leaves: bool

    average = _AVERAGE

    @property
    def name(self) -> str:
        return f"ema({self.inner.name})"

    @property
    def settings(self) -> dict[str, Setting]:
        return {**self.inner.settings, _DECAY: self.decay}

    @property
    def slots(self) -> tuple[str, ...]:
        return (*self.inner.slots, _AVERAGE)

    def float_step(
        self, weights: jax.Array, slots: Arrays, gradient: jax.Array, settings: Scalars, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        own = {name: slots[name] for name in self.inner.slots}
        weights, own = self.inner.float_step(weights, own, gradient, settings, count)
        return weights, {**own, _AVERAGE: moved_average(slots[_AVERAGE], weights, settings[_DECAY])}


def ema(optimizer: Optimizer, decay: Setting) -> Optimizer:
    """Keep an exponential moving average of the weights (Polyak and Juditsky 1992), and judge training by it.

    After each step, `average <- decay * average + (1 - decay) * weights`, as `optax.incremental_update` has it with a
    step size of `1 - decay`. Training goes on with the weights. The validation and test losses, and all that returns
    trained parameters, see the average in their place.

    The average starts as a copy of the initial weights, as is usual in training loops, and not at 0 as that of
    `optax.ema`, whose bias must then be corrected. So after T steps the initial weights still count with
    `decay**T`: choose a decay below `1 - 3 / steps`, or a schedule that rises, such as
    `lambda h, step: jnp.minimum(h["decay"], (1 + step) / (10 + step))`.

    The average is undone first on the way back, by the weights, which are known then. So an exactly reversible
    optimizer stays exactly reversible. Bits that the decay would lose are kept, log2(1 / decay) of them a weight and
    step. The arithmetic of "ema" has 40 fraction bits, and a range of +-512 or more.

    Args:
        optimizer: what trains the weights, such as `adamw(...)`; any optimizer of this package but `proximal_sgd`, or
            one of your own. For an average beside an optimizer of optax there is nothing here.
        decay: a setting, as `sgd` describes it: a number, a schedule, the name of a hyperparameter or a function, and
            different ones for different leaves. It has a gradient. `Reversible` needs it from 1/256 to 1.

    Raises:
        ValueError: `optimizer` is not an `Optimizer`, has an average already or is proximal, or `decay` is of the wrong
            kind.

    Example:
        >>> from hypergrad_search import adamw, ema
        >>> optimizer = ema(adamw("rate", weight_decay="decay"), decay="ema_decay")
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"ema: optimizer must be an Optimizer, as adamw(...) returns it, got {shown(optimizer)}")
    if optimizer.average is not None or _AVERAGE in optimizer.slots or _DECAY in optimizer.settings:
        raise ValueError(f"ema: optimizer must not have an average already, got {optimizer.name}; leave one out")
    if isinstance(optimizer, ProximalOptimizer):
        raise ValueError(
            f"ema: optimizer must not be proximal, since an average has no zeros, got {optimizer.name}; leave ema out"
        )
    rest = (decay, optimizer.transform, optimizer.whole_leaves)
    if isinstance(optimizer, AdditiveOptimizer):
        return checked_optimizer(_AdditiveEma(optimizer, *rest))
    return checked_optimizer(_FloatEma(optimizer, *rest))
