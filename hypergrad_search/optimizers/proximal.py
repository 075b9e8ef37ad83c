"""Gradient descent with a proximal step, by which penalties with a kink make weights exactly 0."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers.adam import root
from hypergrad_search.optimizers.base import Arrays, Optimizer, Scalars, Setting
from hypergrad_search.optimizers.settings import checked_optimizer, finest, resolve


class ProximalOptimizer(Optimizer):
    """An optimizer that minimises penalties beside the training loss, and makes weights exactly 0 by their kinks.

    `Implicit` differentiates the minimum of the training loss and `penalty` together. It keeps the weights that
    `is_held` names at 0. So steps must settle at that minimum, whatever the other settings are.
    """

    @property
    @abc.abstractmethod
    def penalties(self) -> tuple[str, ...]:
        """The names of the settings that are strengths of penalties."""

    @abc.abstractmethod
    def penalty(self, weights: jax.Array, settings: Scalars) -> jax.Array:
        """Return the penalty of one leaf, a scalar, whose derivatives are finite at 0 too."""

    @abc.abstractmethod
    def is_held(self, weights: jax.Array, settings: Scalars) -> jax.Array:
        """Return for each weight of a leaf whether it is 0 at a kink of the penalty, where small changes leave it."""


@final
@dataclass(frozen=True, eq=False)
class _ProximalSgd(ProximalOptimizer):
    learning_rate: Setting
    l1: Setting
    l2: Setting
    group: Setting
    momentum: Setting

    name = "proximal_sgd"
    slots = ("change",)
    penalties = ("l1", "l2", "group")
    whole_leaves = True

    @property
    def settings(self) -> dict[str, Setting]:
        return {name: getattr(self, name) for name in ("learning_rate", *self.penalties, "momentum")}

    def float_step(
        self, weights: jax.Array, slots: Arrays, gradient: jax.Array, settings: Scalars, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        rate, (l1, l2, group) = settings["learning_rate"], (_from_zero(settings[name]) for name in self.penalties)
        moved = weights - rate * gradient + settings["momentum"] * slots["change"]
        found = _by_rows(_by_elements(moved, rate * l1), rate * group) / (1 + rate * l2)
        return found, {"change": found - weights}

    def penalty(self, weights: jax.Array, settings: Scalars) -> jax.Array:
        of_elements = settings["l1"] * jnp.abs(weights) + 0.5 * settings["l2"] * weights**2
        return jnp.sum(of_elements) + settings["group"] * jnp.sum(_norms(weights))

    def is_held(self, weights: jax.Array, settings: Scalars) -> jax.Array:
        in_group = (settings["group"] > 0) & (_norms(weights) == 0)
        return (weights == 0) & ((settings["l1"] > 0) | in_group)


def proximal_sgd(
    learning_rate: Setting,
    l1: Setting = 0.0,
    l2: Setting = 0.0,
    group: Setting = 0.0,
    *,
    momentum: Setting = 0.0,
) -> Optimizer:
    """Gradient descent with a proximal step, for the lasso, the elastic net and the group lasso: zeros are exact zeros.

    It minimises `train_loss + l1 * sum(|w|) + l2 / 2 * sum(w**2) + group * sum(norms of rows)`. So leave these
    penalties out of `train_loss`. With r the learning rate and d the last change of the weights, which is 0 at first,

    `v = w - r * g + momentum * d; u = sign(v) * max(|v| - r * l1, 0)`, then for each row
    `w <- u * max(1 - r * group / |u|, 0) / (1 + r * l2)`.

    The second line minimises the penalties near v (forward-backward splitting). It is ISTA without momentum (Beck and
    Teboulle 2009), and iPiano with it (Ochs et al. 2014). With a constant rate and no penalties it takes the steps of
    `sgd(learning_rate, momentum)`.

    scikit-learn's `ElasticNet(alpha, l1_ratio=share)` is the minimum for a training loss of
    `0.5 * mean((x @ w - y)**2)`, `l1=alpha * share` and `l2=alpha * (1 - share)`.

    All penalties have a gradient. By `Unrolled` and `Forward` it is that of the steps. `Implicit` differentiates the
    minimum, with the weights that are 0 held there (Feng and Simon 2017), and sees the penalties, but not the learning
    rate. `Reversible` cannot be used: what is taken to 0 cannot be recovered. There is no `transform`, since
    the gradient is not 0 at this minimum, so that clipping it would move the minimum.

    Do not use it where minibatches differ much and the rate stays high: the noise takes weights away from 0 again. For
    `l2` alone, a penalty in `train_loss` leaves the choice of the optimizer.

    Args:
        learning_rate: a setting, as `sgd` describes it, and so are all others. It must be below 2 divided by the
            largest curvature of the training loss.
        l1: the strength of the sum of absolute values, from 0. For weights without a penalty, such as biases, give a
            pytree prefix of the parameters with 0 there, as in `l1={"w": "l1", "b": 0.0}`.
        l2: the strength of half of the sum of squares, from 0.
        group: the strength of the sum of the norms of rows, from 0. A row is what has the same first index: the weights
            of one input, where the loss computes `x @ w`. In a vector each number is a row by itself.
        momentum: the share of the last change that a step repeats, from 0 to below 1.

    Where a hyperparameter makes a strength fall below 0, the weights become NaN, and so the status of the run is "nan".

    Raises:
        ValueError: a setting is of the wrong kind, or a number that is the strength of a penalty is below 0.

    Example:
        >>> from hypergrad_search import proximal_sgd
        >>> optimizer = proximal_sgd(0.1, l1={"w": "l1", "b": 0.0}, l2={"w": "l2", "b": 0.0}, momentum=0.9)
    """
    optimizer = checked_optimizer(_ProximalSgd(learning_rate, l1, l2, group, momentum))
    for name, leaf in optimizer.leaves():
        if name in _ProximalSgd.penalties and not (isinstance(leaf, str) or callable(leaf)) and not np.all(leaf >= 0):
            raise ValueError(f"proximal_sgd: {name} is the strength of a penalty and must be from 0, got {leaf!r}")
    return optimizer


def penalty_of(
    optimizer: Optimizer | OptaxOptimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int, step: jax.Array
) -> jax.Array:
    """Return the penalty that a step minimises beside the training loss, a scalar; 0 unless steps are proximal."""
    if not isinstance(optimizer, ProximalOptimizer):
        return jnp.zeros(())
    parts = _leaves_with_settings(optimizer, hyperparameters, params, steps, step)
    return jnp.sum(jnp.stack([optimizer.penalty(weights, settings) for weights, settings in parts]))


def held_at_zero(
    optimizer: Optimizer | OptaxOptimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int
) -> Any:
    """Return for each weight whether the penalties of the last step hold it at 0, as a pytree like `params`."""
    if not isinstance(optimizer, ProximalOptimizer):
        return jax.tree.map(lambda weights: jnp.zeros(weights.shape, bool), params)
    parts = _leaves_with_settings(optimizer, hyperparameters, params, steps, jnp.int32(steps - 1))
    return jax.tree.unflatten(jax.tree.structure(params), [optimizer.is_held(*part) for part in parts])


def _leaves_with_settings(
    optimizer: Optimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int, step: jax.Array
) -> list[tuple[jax.Array, Scalars]]:
    """Return each leaf, in the type of the settings, and its settings at a step."""
    settings, groups = resolve(optimizer, hyperparameters, params, steps)
    now = {name: schedule[step] for name, schedule in settings.items()}
    return [
        (weights.astype(finest(weights.dtype, *(x.dtype for x in now.values()))), {n: x[group] for n, x in now.items()})
        for weights, group in zip(jax.tree.leaves(params), groups, strict=True)
    ]


def _from_zero(strength: jax.Array) -> jax.Array:
    return jnp.where(strength >= 0, strength, jnp.nan)


def _by_elements(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Return the soft threshold. Where it is 0 the slope is 1, at 0 too."""
    return jnp.where(jnp.abs(x) < threshold, 0, x - threshold * jnp.sign(x))


def _by_rows(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Return the soft threshold of the norm of each row. Where it is 0 the slope is 1, at 0 too."""
    norms = _norms(x)
    return jnp.where(norms < threshold, 0, x - threshold * x / jnp.where(norms == 0, 1, norms))


def _norms(x: jax.Array) -> jax.Array:
    """Return the norm of what has the same first index, in an array that broadcasts; its slope at 0 is 0."""
    return root(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))
