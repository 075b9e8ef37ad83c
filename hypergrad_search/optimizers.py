"""The optimizers of training runs, with the steps that plain floats take and those that exact reversal takes.

An additive optimizer keeps slots (momentum's velocity, Adam's moments) beside the weights. One step with the gradient g
and the settings s is

    slot    <- decay(s) * slot + increment(g, s)                  for each slot
    weights <- (1 - weight_decay(s)) * weights + step(slots, s)

Both lines can be undone in the opposite order: the weights' step depends on the slots alone, and once the weights
are back the gradient can be computed again. So every optimizer of this form is exactly reversible:

- SGD with momentum has one slot, the velocity (Maclaurin et al. 2015).
- Adam has two slots. Both moments are exponential averages, of g and of g**2, and their corrections for the bias depend
  on the number of steps alone.
- AdamW has a decay that multiplies the weights. The bits that it would lose are kept like those of the slots.

Nesterov's momentum does not have this form and cannot be reversed to the bit. Its step `-rate * (momentum * v' + g)`
uses the gradient itself. With `g = v' - momentum * v` it is the sum of `rate * momentum * v`, which is added before the
slots change, and of a step that depends on v' alone. To undo it one must solve `w = z - rate * (v' - g(w))` for w, of
which plain gradient descent is a part. Iterating gradient steps solves it where the rate is small for the curvature,
but the solution is not unique: in finite arithmetic several w round to the same z and v', so the bits are gone.

The formulas of additive optimizers add no product to anything, except where the product is exact. A compiler may round
such a sum once or twice, and differently forwards and backwards.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad_search.checks import boolean, check_arguments, takes
from hypergrad_search.optax_optimizers import OptaxOptimizer

Setting = float | str | Callable[[Mapping[str, Any], jax.Array], Any] | Any
Scalars = Mapping[str, jax.Array]  # the settings of one leaf at one step


class Optimizer(abc.ABC):
    """A rule that trains weights: it names its settings, and takes one step in plain floats.

    `sgd(...)`, `adam(...)` and `adamw(...)` return one. Write a subclass to train with another rule; where its steps
    are additions, make it an `AdditiveOptimizer`, which `Reversible` can run backwards. `transform` is a function of
    the hyperparameters that returns a transformation of optax for gradients, or None; see `sgd`.
    """

    transform: OptaxOptimizer | None = None

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
        """The names of the arrays, all 0 at the start, that the optimizer keeps beside each array of weights."""

    @abc.abstractmethod
    def float_step(
        self,
        weights: jax.Array,
        slots: Mapping[str, jax.Array],
        gradient: jax.Array,
        settings: Scalars,
        count: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the weights and slots of one leaf after step number `count`, which is 1 for the first step."""

    @final
    def check_names(self, hyperparameters: Mapping[str, Any]) -> None:
        """Raise `ValueError` where a setting names a hyperparameter that is not among `hyperparameters`."""
        for setting, value in self.settings.items():
            for leaf in jax.tree.leaves(value):
                if isinstance(leaf, str) and leaf not in hyperparameters:
                    raise ValueError(
                        f"optimizer: {setting} names the hyperparameter {leaf!r}, which is not among "
                        f"{sorted(hyperparameters)}; add it there, or correct the name"
                    )


class AdditiveOptimizer(Optimizer):
    """An optimizer whose steps decay and add, in the form that this module describes; it is exactly reversible."""

    @property
    @abc.abstractmethod
    def decays(self) -> Mapping[str, str]:
        """The name of the setting by which each slot decays."""

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
    def increments(self, gradient: jax.Array, settings: Scalars) -> dict[str, jax.Array]:
        """Return the increment of each slot, which is added after the slot has decayed."""

    @abc.abstractmethod
    def step(self, slots: Mapping[str, jax.Array], settings: Scalars, count: jax.Array) -> jax.Array:
        """Return the change of the weights in step number `count`, which is 1 for the first step.

        It may divide by all slots but the first, so these count for half a unit where exact training rounded them to 0.
        """

    @property
    @final
    def slots(self) -> tuple[str, ...]:
        """See `Optimizer`."""
        return tuple(self.decays)

    @final
    def float_step(
        self,
        weights: jax.Array,
        slots: Mapping[str, jax.Array],
        gradient: jax.Array,
        settings: Scalars,
        count: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Optimizer`."""
        increments = self.increments(gradient, settings)
        slots = {name: settings[decay] * slots[name] + increments[name] for name, decay in self.decays.items()}
        weight_decay = self.weight_decay(settings)
        if weight_decay is not None:
            weights = weights - weight_decay * weights
        return weights + self.step(slots, settings, count), slots


@final
@dataclass(frozen=True, eq=False)
class _Sgd(AdditiveOptimizer):
    learning_rate: Setting
    momentum: Setting
    _: KW_ONLY
    dampening: bool
    transform: OptaxOptimizer | None

    name = "sgd"
    decays = {"velocity": "momentum"}  # noqa: RUF012
    fraction_bits = {"weights": 48, "velocity": 44}  # noqa: RUF012
    smallest_decays = {"velocity": 0.5}  # noqa: RUF012

    @property
    def settings(self) -> dict[str, Setting]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def weight_decay(self, settings: Scalars) -> None:
        return None

    def increments(self, gradient: jax.Array, settings: Scalars) -> dict[str, jax.Array]:
        return {"velocity": _dampened(gradient, settings) if self.dampening else gradient}

    def step(self, slots: Mapping[str, jax.Array], settings: Scalars, count: jax.Array) -> jax.Array:
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
        self,
        weights: jax.Array,
        slots: Mapping[str, jax.Array],
        gradient: jax.Array,
        settings: Scalars,
        count: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        rate, momentum = settings["learning_rate"], settings["momentum"]
        ahead = weights + rate * momentum * slots["velocity"]
        velocity = momentum * slots["velocity"] + (_dampened(gradient, settings) if self.dampening else gradient)
        return ahead - rate * (1 + momentum) * velocity, {"velocity": velocity}


def _dampened(gradient: jax.Array, settings: Scalars) -> jax.Array:
    return (1 - settings["momentum"]) * gradient


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

    decays = {"mu": "b1", "nu": "b2"}  # noqa: RUF012

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

    def increments(self, gradient: jax.Array, settings: Scalars) -> dict[str, jax.Array]:
        return {"mu": (1 - settings["b1"]) * gradient, "nu": (1 - settings["b2"]) * gradient * gradient}

    def step(self, slots: Mapping[str, jax.Array], settings: Scalars, count: jax.Array) -> jax.Array:
        corrected = slots["nu"] / _one_minus_power(settings["b2"], count) + settings["eps_root"]
        size = settings["learning_rate"] / _one_minus_power(settings["b1"], count)
        # A weight that never had a gradient takes no part in training. Its slope, size / eps, would grow on the way
        # back until it is infinite, and infinite times 0 is NaN: it has none.
        moves = (slots["mu"] != 0) | (slots["nu"] != 0)
        divisor = jnp.where(moves, _root(corrected) + settings["eps"], 1)
        return jnp.where(moves, -size * slots["mu"] / divisor, 0 * size)


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

    - a number, or an array of length `steps`: a schedule;
    - a string: the name of a hyperparameter that holds a number or a schedule;
    - a function of (hyperparameters, step) that returns a number, or a pytree prefix of numbers;
    - a schedule of optax, which is a function of the step alone. `warmup_cosine` has hyperparameters in it.

    `transform` is a function of the hyperparameters that returns a transformation of optax. Each gradient goes through
    it before the optimizer sees it, as in `lambda h: optax.clip_by_global_norm(h["clip"])`, and hyperparameters in it
    have gradients. It must keep no state. It does no harm to exact reversal: on the way back the gradient is computed
    again, and so is its transformation. `gradient_noise` adds noise. Mask with it what should not be trained.

    `Reversible` needs a momentum from 1/256 to 1. Use `Unrolled` for a momentum of 0. Raises `ValueError` where a
    setting is of the wrong kind.
    """
    kind = _Nesterov if boolean("sgd: nesterov", nesterov) else _Sgd
    return _checked(kind(learning_rate, momentum, dampening=boolean("sgd: dampening", dampening), transform=transform))


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
    """
    return _checked(_Adam(learning_rate, b1, b2, eps, eps_root, None, transform))


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
    """
    if weight_decay is None:
        raise ValueError("adamw: weight_decay must be a setting, got None; use adam, or 0.0")
    return _checked(_Adam(learning_rate, b1, b2, eps, eps_root, weight_decay, transform))


def _checked(optimizer: Optimizer) -> Optimizer:
    if optimizer.transform is not None:
        if not callable(optimizer.transform) or isinstance(optimizer.transform, optax.GradientTransformation):
            raise ValueError(
                f"{optimizer.name}: transform must be a function of the hyperparameters that returns a transformation "
                f"of optax, such as lambda h: optax.clip_by_global_norm(h['clip']), got {optimizer.transform!r}"
            )
        check_arguments(f"{optimizer.name}: transform", optimizer.transform, ("hyperparameters",))
    for name, setting in optimizer.settings.items():
        for leaf in jax.tree.leaves(setting) or [setting]:
            if not (isinstance(leaf, str) or callable(leaf) or _is_number(leaf)):
                raise ValueError(
                    f"{optimizer.name}: {name} must be numbers, names of hyperparameters or functions of "
                    f"(hyperparameters, step), got {leaf!r}"
                )
    return optimizer


def _one_minus_power(decay: jax.Array, count: jax.Array) -> jax.Array:
    return -jnp.expm1(count.astype(decay.dtype) * jnp.log(decay))


def _root(x: jax.Array) -> jax.Array:
    """Return the square root. Its slope at 0 is set to 0: a weight that never had a gradient has no hypergradient."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _of_step_alone(name: str, schedule: Callable[[Any], Any], step: jax.Array) -> Any:
    try:
        return schedule(step)
    except (TypeError, IndexError) as error:  # of which JAX's errors about traced values are subclasses
        raise ValueError(
            f"optimizer: {name}: a function of one argument gets the step, and this one failed "
            f"({type(error).__name__}); write lambda h, step: ... to use hyperparameters"
        ) from error


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float | int | np.number | np.ndarray | jax.Array) and not isinstance(leaf, bool)


def resolve(
    optimizer: Optimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int
) -> tuple[dict[str, jax.Array], tuple[int, ...]]:
    """Return every setting as an array of shape `(steps, groups)`, and the group of each leaf of `params`.

    Leaves that share all settings form a group. All settings have one type, the finest among them and the leaves, and
    float32 at least: rounded to half precision, Adam's usual b2 would be 1.
    """
    optimizer.check_names(hyperparameters)
    leaves = jax.tree.leaves(params)
    values, sources = {}, []
    for name, setting in optimizer.settings.items():
        values[name], source = _resolve(name, setting, hyperparameters, params, steps)
        sources.append(source)
    of_leaves = list(zip(*sources, strict=True))
    groups = list(dict.fromkeys(of_leaves))
    chosen = [x for schedules in values.values() for x in schedules if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = finest(*(leaf.dtype for leaf in leaves), *(x.dtype for x in chosen if not x.weak_type))
    settings = {
        name: jnp.stack([values[name][group[i]] for group in groups], axis=1).astype(dtype)
        for i, name in enumerate(values)
    }
    return settings, tuple(groups.index(group) for group in of_leaves)


def finest(*dtypes: Any) -> Any:
    """Return the widest of these floating-point types, float32 at least."""
    return max((jnp.dtype(jnp.float32), *dtypes), key=lambda dtype: dtype.itemsize)


def _resolve(
    name: str, setting: Setting, hyperparameters: Mapping[str, Any], params: Any, steps: int
) -> tuple[list[jax.Array], list[int]]:
    """Return the schedules of a setting, each of shape `(steps,)`, and for each leaf the index of its own."""

    def over_time(leaf: Any) -> Any:
        if isinstance(leaf, str):
            return hyperparameters[leaf]
        if callable(leaf):
            at = functools.partial(_of_step_alone, name, leaf)  # such as a schedule of optax
            if not takes(leaf, ("step",)) or takes(leaf, ("hyperparameters", "step")):
                check_arguments(f"optimizer: {name}", leaf, ("hyperparameters", "step"))
                at = functools.partial(leaf, hyperparameters)
            return jax.vmap(lambda step: checked(at(step)))(jnp.arange(steps, dtype=jnp.int32))
        return leaf

    def checked(found: Any) -> Any:
        for leaf in jax.tree.leaves(found) or [found]:
            if not _is_number(leaf):
                raise ValueError(f"optimizer: {name} must be numbers, got {leaf!r} for {setting!r}")
        return found

    values, structure = jax.tree.flatten(jax.tree.map(lambda leaf: checked(over_time(leaf)), setting))
    try:
        sources = jax.tree.leaves(jax.tree.broadcast(jax.tree.unflatten(structure, range(len(values))), params))
    except ValueError as error:
        raise ValueError(
            f"optimizer: {name} must be one value or a pytree prefix of the parameters, got the structure "
            f"{structure} for parameters of structure {jax.tree.structure(params)}"
        ) from error
    for value in values:
        if jnp.shape(value) not in ((), (steps,)):
            raise ValueError(
                f"optimizer: {name} must be a number or a schedule of length steps={steps} for each leaf, "
                f"got shape {jnp.shape(value)}"
            )
    return [jnp.broadcast_to(jnp.asarray(value), (steps,)) for value in values], sources
