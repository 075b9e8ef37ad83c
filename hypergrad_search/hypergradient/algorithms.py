"""The algorithms of `Hypernet`: where its network is trained, and when the hyperparameters move."""

import abc
import math
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from hypergrad_search.checks import boolean, number, whole_number
from hypergrad_search.cost import HESSIAN_VECTOR_PRODUCT, TRAINING_STEP

SMALLEST_SCALE = 1e-6
LARGEST_SCALE = 0.5  # a larger one would draw most points at the ends of the box
REACH = 3.0  # hyperparameters may move this many scales away from the start, around which the network was trained
VALIDATION_STEP = 1  # one gradient of the validation loss costs as much as one of the training loss

_State = TypeVar("_State")


class Moving(NamedTuple):
    """The hyperparameters in the unit box, arrays of shape `(inputs,)`.

    `point` is where they are now, and `origin` where the stretch began. `log_scales` are the logarithms of the standard
    deviations with which they are drawn.
    """

    point: jax.Array
    origin: jax.Array
    log_scales: jax.Array


class Algorithm(abc.ABC):
    """How the network and the hyperparameters take turns; `Joint`, `Local` and `Global` are the choices."""

    @property
    @abc.abstractmethod
    def centred(self) -> bool:
        """Whether the network is learned from the training gradient linearised at the present hyperparameters."""

    @property
    @abc.abstractmethod
    def entropy(self) -> float | None:
        """The weight of the entropy bonus by which scales are learned; None where scales stay as they are."""

    @property
    @abc.abstractmethod
    def first_log_scale(self) -> float:
        """The logarithm of the standard deviation with which each hyperparameter is drawn at first."""

    @abc.abstractmethod
    def draw(self, moving: Moving, key: jax.Array) -> jax.Array:
        """Return the hyperparameters that the network is trained on next."""

    @abc.abstractmethod
    def turn(
        self,
        state: _State,
        steps_left: jax.Array,
        train: Callable[[_State], _State],
        move: Callable[[_State], _State],
    ) -> _State:
        """Take one step, by `train` (the network), `move` (the hyperparameters) or both."""

    @abc.abstractmethod
    def bound(self, point: jax.Array, moving: Moving) -> jax.Array:
        """Return `point`, or the nearest point that a step of the hyperparameters may reach."""

    @abc.abstractmethod
    def next_centre(self, centre: jax.Array, point: jax.Array) -> jax.Array:
        """Return the point from which the network's input is measured, after the hyperparameters moved to `point`."""

    @abc.abstractmethod
    def cost(self, done: int, steps: int, of_move: int = VALIDATION_STEP) -> float:
        """Return how many gradient evaluations the first `done` of `steps` steps cost.

        `of_move` is the cost of moving the hyperparameters once.
        """

    @abc.abstractmethod
    def check(self, steps: int) -> None:
        """Raise `ValueError` where a stretch of `steps` steps is too short."""

    @property
    def _training_step(self) -> int:
        return TRAINING_STEP + (HESSIAN_VECTOR_PRODUCT if self.centred else 0)


@dataclass(frozen=True)
class Joint(Algorithm):
    """Each step moves the network and then the hyperparameters (Lorraine and Duvenaud 2018, algorithm 3).

    The network is trained on hyperparameters drawn around the present ones.

    - `scale`: the standard deviation of the drawn hyperparameters, in units of the box, from 0 to 0.5. With 0, nothing
      is drawn: the network then learns a slope only as far as the hyperparameters happen to move, and learns none from
      the middle of the box. This needs `centred=False` and `entropy=None`.
    - `entropy`: the weight of an entropy bonus, by which the scale of each hyperparameter is learned: the bonus rewards
      large scales, and the validation loss, averaged over what is drawn, opposes them (Self-Tuning Networks, MacKay et
      al. 2019). With None the scale stays as it is.
    - `centred`: whether the network outputs a change from weights that are trained at the present hyperparameters
      themselves. It learns the change from the training gradient linearised there, in weights and hyperparameters, so
      that it learns the slope however small the scale is (Delta-STN, Bae and Grosse 2020, linearises the model's
      outputs instead). With `Linear()` and enough steps it is then the response of the implicit function theorem.

    A step costs 2 gradient evaluations, one for training and one for the validation loss. Where it is `centred` it
    costs 4, since it takes a Hessian-vector product too. Raises `ValueError` where the settings do not fit.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Joint
        >>> method = Hypernet(algorithm=Joint())
    """

    _: KW_ONLY
    scale: float = 0.05
    entropy: float | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale("Joint", self.scale))
        object.__setattr__(self, "centred", boolean("Joint: centred", self.centred))
        if self.entropy is not None:
            object.__setattr__(self, "entropy", number("Joint: entropy", self.entropy, 0, sys.float_info.max))
        if self.scale == 0 and (self.centred or self.entropy is not None):
            raise ValueError("Joint: scale=0 draws nothing, which needs centred=False and entropy=None")

    @property
    def first_log_scale(self) -> float:
        """See `Algorithm`."""
        return math.log(self.scale) if self.scale else -math.inf

    def draw(self, moving: Moving, key: jax.Array) -> jax.Array:
        """See `Algorithm`."""
        return drawn_around(moving.point, moving.log_scales, key)

    def turn(
        self,
        state: _State,
        steps_left: jax.Array,
        train: Callable[[_State], _State],
        move: Callable[[_State], _State],
    ) -> _State:
        """See `Algorithm`."""
        return move(train(state))

    def bound(self, point: jax.Array, moving: Moving) -> jax.Array:
        """See `Algorithm`."""
        return point

    def next_centre(self, centre: jax.Array, point: jax.Array) -> jax.Array:
        """See `Algorithm`."""
        return point if self.centred else centre

    def cost(self, done: int, steps: int, of_move: int = VALIDATION_STEP) -> float:
        """See `Algorithm`."""
        return done * (self._training_step + of_move)

    def check(self, steps: int) -> None:
        """See `Algorithm`."""


class _InTwoPhases(Algorithm):
    """The network is trained first; in the last `hyper_steps` steps it stands still, and the hyperparameters move."""

    hyper_steps: int
    entropy = None

    def turn(
        self,
        state: _State,
        steps_left: jax.Array,
        train: Callable[[_State], _State],
        move: Callable[[_State], _State],
    ) -> _State:
        """See `Algorithm`."""
        result: _State = jax.lax.cond(steps_left > self.hyper_steps, train, move, state)
        return result

    def next_centre(self, centre: jax.Array, point: jax.Array) -> jax.Array:
        """See `Algorithm`."""
        return centre

    def cost(self, done: int, steps: int, of_move: int = VALIDATION_STEP) -> float:
        """See `Algorithm`."""
        training = max(steps - self.hyper_steps, 0)
        return min(done, training) * self._training_step + max(done - training, 0) * of_move

    def check(self, steps: int) -> None:
        """See `Algorithm`."""
        if steps <= self.hyper_steps:
            raise ValueError(
                f"Hypernet: of the {steps} steps of a stretch the last hyper_steps={self.hyper_steps} move the "
                f"hyperparameters alone, with algorithm={self!r}; raise steps, or lower hyper_steps"
            )


@dataclass(frozen=True)
class Local(_InTwoPhases):
    """The network learns the neighbourhood of the start; then the hyperparameters move within it.

    The network is trained on hyperparameters drawn around those at the start. In the last `hyper_steps` steps it
    stands still, and the hyperparameters move, by at most 3 scales.

    `scale` and `centred` are as in `Joint`, but `scale` must be above 0. A step of the network costs 1 gradient
    evaluation, or 3 where it is `centred`; a step of the hyperparameters costs 1. Raises `ValueError` where the
    settings do not fit.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Local
        >>> method = Hypernet(algorithm=Local())
    """

    _: KW_ONLY
    scale: float = 0.05
    centred: bool = True
    hyper_steps: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale("Local", self.scale))
        if self.scale == 0:
            raise ValueError("Local: scale must be above 0, or nothing is learned of the neighbourhood; got 0")
        object.__setattr__(self, "hyper_steps", whole_number("Local: hyper_steps", self.hyper_steps, 1))

    @property
    def first_log_scale(self) -> float:
        """See `Algorithm`."""
        return math.log(self.scale)

    def draw(self, moving: Moving, key: jax.Array) -> jax.Array:
        """See `Algorithm`."""
        return drawn_around(moving.point, moving.log_scales, key)

    def bound(self, point: jax.Array, moving: Moving) -> jax.Array:
        """See `Algorithm`."""
        reach = REACH * jnp.exp(moving.log_scales)
        return jnp.clip(point, moving.origin - reach, moving.origin + reach)


@dataclass(frozen=True)
class Global(_InTwoPhases):
    """The network learns the whole box; then the hyperparameters move (Lorraine and Duvenaud 2018, algorithm 2).

    The network is trained on hyperparameters drawn uniformly from the box. In the last `hyper_steps` steps it stands
    still, and the hyperparameters move. Each step costs 1 gradient evaluation. Raises `ValueError` where `hyper_steps`
    does not fit.

    Do not use it for more than a few hyperparameters, since no network learns a large box.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Global, Linear
        >>> method = Hypernet(network=Linear(), algorithm=Global())
    """

    _: KW_ONLY
    hyper_steps: int = 100
    centred = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hyper_steps", whole_number("Global: hyper_steps", self.hyper_steps, 1))

    @property
    def first_log_scale(self) -> float:
        """See `Algorithm`."""
        return math.log(LARGEST_SCALE)

    def draw(self, moving: Moving, key: jax.Array) -> jax.Array:
        """See `Algorithm`."""
        return jax.random.uniform(key, moving.point.shape, moving.point.dtype)

    def bound(self, point: jax.Array, moving: Moving) -> jax.Array:
        """See `Algorithm`."""
        return point


def drawn_around(point: jax.Array, log_scales: jax.Array, key: jax.Array) -> jax.Array:
    """Draw a point from a normal distribution around `point`, and return it clipped to the box."""
    noise = jax.random.normal(key, point.shape, point.dtype) * jnp.exp(log_scales)
    return jnp.clip(point + noise, 0.0, 1.0)


def _checked_scale(owner: str, scale: float) -> float:
    checked = number(f"{owner}: scale", scale, 0, LARGEST_SCALE)
    if 0 < checked < SMALLEST_SCALE:
        raise ValueError(
            f"{owner}: scale must be 0 or at least {SMALLEST_SCALE:g}, below which float32 rounds what is drawn, "
            f"got {scale!r}"
        )
    return checked
