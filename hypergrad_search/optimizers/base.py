"""What every optimizer offers, and the form of those that can be run backwards.

An additive optimizer keeps slots (momentum's velocity, Adam's moments) beside the weights. One step with the gradient g
and the settings s is, for one slot after the other,

    slot    <- decay(s) * slot + increment(g, other slots, s)
    weights <- (1 - weight_decay(s)) * weights + step(slots, s)
    average <- decay(s) * average + (1 - decay(s)) * weights

where the last line is for optimizers with an average of the weights alone. Each line decays one array, and adds what
can be computed from the others as they are at that moment. So the lines can be undone from the last to the first: the
average by the new weights, and the weights by the new slots. Once the weights are back, the gradient can be computed
again, and the slots are undone in the opposite order, each by the others, which are as they were when it changed.
`docs/reversible_optimizers.md` says which optimizers have this form, and why others do not.

The formulas of additive optimizers add no product to anything, except where the product is exact or `rounded`. A
compiler may round such a sum once or twice, and differently forwards and backwards.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp

from hypergrad_search.optax_optimizers import OptaxOptimizer

Setting = float | str | Callable[[Mapping[str, Any], jax.Array], Any] | Any
Scalars = Mapping[str, jax.Array]  # the settings of one leaf at one step
Arrays = Mapping[str, jax.Array]  # slots of one leaf


@dataclass(frozen=True)
class ByRank:
    """A setting that matrices have from one setting, and all other leaves from another one."""

    matrices: Setting
    others: Setting


class Optimizer(abc.ABC):
    """A rule that trains weights: it names its settings, and takes one step in plain floats.

    `sgd(...)`, `adam(...)` and others return one. Write a subclass to train with another rule; where its steps are
    additions, make it an `AdditiveOptimizer`, which `Reversible` can run backwards.

    - `transform` is a function of the hyperparameters that returns a transformation of optax for gradients, or None;
      see `sgd`.
    - `average` is the name of a slot that starts as a copy of the weights. The losses after training see it in their
      place. It is None for an optimizer that keeps no average; see `ema`.
    - `whole_leaves` tells that a step is not the same for each weight by itself, but depends on the leaf as a whole.
    """

    transform: OptaxOptimizer | None = None
    average: str | None = None
    whole_leaves: bool = False

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of the optimizer in error messages, such as `"sgd(nesterov=True)"`."""

    @property
    @abc.abstractmethod
    def settings(self) -> dict[str, Setting]:
        """The settings as the user gave them, by name."""

    @property
    @abc.abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The names of the arrays that it keeps beside each array of weights; all but `average` start at 0."""

    @abc.abstractmethod
    def float_step(
        self, weights: jax.Array, slots: Arrays, gradient: jax.Array, settings: Scalars, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the weights and slots of one leaf after step number `count`, which is 1 for the first step."""

    @final
    def check_names(self, hyperparameters: Mapping[str, Any]) -> None:
        """Raise `ValueError` where a setting names a hyperparameter that is not among `hyperparameters`."""
        for setting, leaf in self.leaves():
            if isinstance(leaf, str) and leaf not in hyperparameters:
                raise ValueError(
                    f"optimizer: {setting} names the hyperparameter {leaf!r}, which is not among "
                    f"{sorted(hyperparameters)}; add it there, or correct the name"
                )

    @final
    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Yield the leaves of all settings, such as numbers and names, each with the name of its setting."""
        for name, setting in self.settings.items():
            for part in (setting.matrices, setting.others) if isinstance(setting, ByRank) else (setting,):
                for leaf in jax.tree.leaves(part) or [part]:
                    yield name, leaf


class AdditiveOptimizer(Optimizer):
    """An optimizer whose steps decay and add, in the form that this module describes; it is exactly reversible.

    Where its step or an increment depends on the leaf as a whole, say so by `whole_leaves`: arrays then have the shape
    of their leaf. Otherwise they may be parts of leaves, or several leaves in a row.
    """

    @property
    @abc.abstractmethod
    def decays(self) -> Mapping[str, str]:
        """The name of the setting by which each slot decays, in the order in which the slots change."""

    @property
    @abc.abstractmethod
    def divisors(self) -> tuple[str, ...]:
        """The slots by which a step or an increment divides; where exact training rounded one to 0, it is half a unit.

        A step divided by 0 would hide what was lost.
        """

    @property
    @abc.abstractmethod
    def fraction_bits(self) -> Mapping[str, int]:
        """The bits behind the binary point of "weights" and of each slot, unless the user chooses others."""

    @property
    @abc.abstractmethod
    def smallest_decays(self) -> Mapping[str, float]:
        """By the name of what decays, the decay that buffers are made for where the true one is traced."""

    @abc.abstractmethod
    def weight_decay(self, settings: Scalars) -> jax.Array | None:
        """Return the share of the weights that a step takes away first; None for an optimizer that never does."""

    @abc.abstractmethod
    def increment(
        self, slot: str, gradient: jax.Array, others: Arrays, settings: Scalars, count: jax.Array
    ) -> jax.Array:
        """Return what is added to a slot after it has decayed, in step number `count`, which is 1 for the first step.

        `others` are the other slots: those before it in `decays` have changed in this step, those behind it have not.
        """

    @abc.abstractmethod
    def step(self, slots: Arrays, settings: Scalars, count: jax.Array) -> jax.Array:
        """Return the change of the weights in step number `count`; all slots but the average have changed already."""

    @property
    @final
    def slots(self) -> tuple[str, ...]:
        """See `Optimizer`."""
        return tuple(self.decays)

    @property
    @final
    def own_slots(self) -> tuple[str, ...]:
        """The slots that are fed by gradients, which are all but the average, in the order in which they change."""
        return tuple(slot for slot in self.decays if slot != self.average)

    @final
    def float_step(
        self, weights: jax.Array, slots: Arrays, gradient: jax.Array, settings: Scalars, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Optimizer`."""
        own = {slot: slots[slot] for slot in self.own_slots}
        for slot in own:
            others = {name: x for name, x in own.items() if name != slot}
            increment = self.increment(slot, gradient, others, settings, count)
            own[slot] = settings[self.decays[slot]] * own[slot] + increment
        weight_decay = self.weight_decay(settings)
        if weight_decay is not None:
            weights = weights - weight_decay * weights
        weights = weights + self.step(own, settings, count)
        if self.average is None:
            return weights, own
        decay = settings[self.decays[self.average]]
        return weights, {**own, self.average: moved_average(slots[self.average], weights, decay)}


def moved_average(average: jax.Array, weights: jax.Array, decay: jax.Array) -> jax.Array:
    """Return `decay * average + (1 - decay) * weights`, in the form whose slope by the decay is rounded least."""
    return weights + decay * (average - weights)


def rounded(product: jax.Array) -> jax.Array:
    """Return a product, rounded as it is by itself wherever it is added to something.

    A compiler may merge a product and a sum into one instruction that rounds once, but not across a minimum, which it
    cannot leave out, since the product might be infinite. Barriers and `jax.lax.reduce_precision` do not prevent it.

    Example:
        >>> from hypergrad_search.optimizers import rounded
        >>> float(rounded(jnp.float32(3) * jnp.float32(0.5)) + 1)
        2.5
    """
    largest = jnp.finfo(product.dtype).max  # type: ignore[no-untyped-call]  # JAX has no types here
    return jnp.minimum(product, largest)
