"""Optimizers as what they add to each number: all that exact reversal, plain floats and the adjoint need to know.

An optimizer keeps slots (momentum's velocity) beside the weights. One step, with gradient g and settings s:

    slot    <- decay(s) * slot + increment(g, s)        for each slot
    weights <- weights + step(slots, s)

Both lines can be undone in the opposite order: the weights' step depends on the slots alone, and once the weights
are back the gradient can be computed again. `float_step` is the same in floats, for `Unrolled` and for the adjoint.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

Setting = float | str | Callable[[Mapping[str, Any], jax.Array], Any] | Any
Scalars = Mapping[str, jax.Array]  # the settings of one leaf at one step


class Optimizer(abc.ABC):
    """What `sgd(...)` returns; its fields are its settings."""

    #: slot -> the setting by which it decays
    decays: ClassVar[Mapping[str, str]]

    @property
    @abc.abstractmethod
    def settings(self) -> dict[str, Setting]:
        """The settings as the user gave them, by name."""

    @abc.abstractmethod
    def increments(self, gradient: jax.Array, settings: Scalars) -> dict[str, jax.Array]:
        """What is added to each slot after it has decayed."""

    @abc.abstractmethod
    def step(self, slots: Mapping[str, jax.Array], settings: Scalars) -> jax.Array:
        """What is added to the weights."""

    def check_names(self, hyperparameters: Mapping[str, Any]) -> None:
        """Raise `ValueError` where a setting names a hyperparameter that is not among `hyperparameters`."""
        for setting, value in self.settings.items():
            for leaf in jax.tree.leaves(value):
                if isinstance(leaf, str) and leaf not in hyperparameters:
                    raise ValueError(
                        f"optimizer: {setting} names the hyperparameter {leaf!r}, which is not among "
                        f"{sorted(hyperparameters)}; add it there, or correct the name"
                    )


@dataclass(frozen=True, eq=False)
class _Sgd(Optimizer):
    learning_rate: Setting
    momentum: Setting
    _: KW_ONLY
    dampening: bool

    decays = {"velocity": "momentum"}  # noqa: RUF012

    @property
    def settings(self) -> dict[str, Setting]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def increments(self, gradient: jax.Array, settings: Scalars) -> dict[str, jax.Array]:
        return {"velocity": (1 - settings["momentum"]) * gradient if self.dampening else gradient}

    def step(self, slots: Mapping[str, jax.Array], settings: Scalars) -> jax.Array:
        return -settings["learning_rate"] * slots["velocity"]


def sgd(learning_rate: Setting, momentum: Setting, *, dampening: bool = False) -> Optimizer:
    """Stochastic gradient descent with momentum, as optax's `sgd`: `v <- momentum * v + g; w <- w - rate * v`.

    `dampening=True` scales the gradient by `1 - momentum` (Maclaurin et al. 2015), so that the size of a step does
    not depend on the momentum.

    Each setting is one of, or a pytree prefix of the parameters whose leaves are each one of:

    - a number, or an array of length `steps`: a schedule;
    - a string: the name of a hyperparameter that holds either;
    - a function of (hyperparameters, step) that returns a number, or a pytree prefix of numbers.

    `Reversible` needs a momentum from 1/256 to below 1, and rounds it to multiples of 2**-16; the rounding errors
    cancel over the steps. Use `Unrolled` for a momentum of 0.
    """
    optimizer = _Sgd(learning_rate, momentum, dampening=dampening)
    for name, setting in optimizer.settings.items():
        for leaf in jax.tree.leaves(setting) or [setting]:
            if not (isinstance(leaf, str) or callable(leaf) or _is_number(leaf)):
                raise ValueError(
                    f"sgd: {name} must be numbers, names of hyperparameters or functions of "
                    f"(hyperparameters, step), got {leaf!r}"
                )
    return optimizer


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float | int | np.number | np.ndarray | jax.Array) and not isinstance(leaf, bool)


def resolve(optimizer: Optimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int) -> dict[str, jax.Array]:
    """Every setting as one array of shape `(steps, leaves)`, leaves in the order of `jax.tree.leaves(params)`."""
    optimizer.check_names(hyperparameters)
    dtype = jax.tree.leaves(params)[0].dtype
    return {
        name: _resolve(name, setting, hyperparameters, params, steps).astype(dtype)
        for name, setting in optimizer.settings.items()
    }


def _resolve(name: str, setting: Setting, hyperparameters: Mapping[str, Any], params: Any, steps: int) -> jax.Array:
    def over_time(leaf: Any) -> Any:
        if isinstance(leaf, str):
            return hyperparameters[leaf]
        if callable(leaf):
            return jax.vmap(lambda step: leaf(hyperparameters, step))(jnp.arange(steps))
        return leaf

    values = jax.tree.map(over_time, setting)
    try:
        leaves = jax.tree.leaves(jax.tree.broadcast(values, params))
    except ValueError as error:
        raise ValueError(
            f"optimizer: {name} must be one value or a pytree prefix of the parameters, got the structure "
            f"{jax.tree.structure(values)} for parameters of structure {jax.tree.structure(params)}"
        ) from error
    for leaf in leaves:
        if jnp.shape(leaf) not in ((), (steps,)):
            raise ValueError(
                f"optimizer: {name} must be a number or a schedule of length steps={steps} for each leaf, "
                f"got shape {jnp.shape(leaf)}"
            )
    return jnp.stack([jnp.broadcast_to(jnp.asarray(leaf), (steps,)) for leaf in leaves], axis=1)


def float_step(
    optimizer: Optimizer,
    weights: jax.Array,
    slots: Mapping[str, jax.Array],
    gradient: jax.Array,
    settings: Scalars,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One step on one leaf in plain floats."""
    increments = optimizer.increments(gradient, settings)
    slots = {name: settings[decay] * slots[name] + increments[name] for name, decay in optimizer.decays.items()}
    return weights + optimizer.step(slots, settings), slots
