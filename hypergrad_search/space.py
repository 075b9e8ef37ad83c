"""Search spaces, and the map between hyperparameters and the unit box in which the search moves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np

from hypergrad_search.checks import boolean, number, shown, whole_number
from hypergrad_search.trouble import see


@dataclass(frozen=True)
class Float:
    """A real hyperparameter, or an array of them: the only kind that has a gradient.

    `low` and `high` bound every element, both included. With `log=True` the search moves in the logarithm, and
    `low` must be above 0. With `shape=()` it is a single number, with any other shape an array.

    `lift` is the shape of an array that may take the place of a single number: a penalty for each weight instead of one
    for all. `HypergradSampler` and `HypergradSearch` search the number first, and continue with the array from the best
    that they found; other searches keep to the number. The problem must take both: write `jnp.sum(l2 * w**2)`, not
    `l2 * jnp.sum(w**2)`. With `lift=None` a number that is a setting of the optimizer may be lifted for you, as
    `lift_settings` says; with `lift=False` it stays a number.

    Raises `ValueError` where the bounds are not finite, are reversed, do not suit `log` or are too far apart for
    floats, a length is not a whole number from 1, or an array has a `lift`.

    Example:
        >>> from hypergrad_search import Float
        >>> Float(1e-6, 1.0, log=True, shape=(64, 10)).size
        640
    """

    low: float
    high: float
    _: KW_ONLY
    log: bool = False
    shape: tuple[int, ...] = ()
    lift: tuple[int, ...] | Literal[False] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = number(f"Float: {name}", getattr(self, name))
            if not math.isfinite(bound):
                raise ValueError(f"Float: {name} must be finite, got {bound!r}")
            object.__setattr__(self, name, bound)
        _check_bounds(self)
        object.__setattr__(self, "shape", _checked_shape("shape", self.shape))
        if self.lift is not None and self.lift is not False:
            object.__setattr__(self, "lift", _checked_shape("lift", self.lift))
            if self.shape:
                raise ValueError(
                    f"Float: lift is for a single number, got shape={self.shape!r} too; leave one of them out"
                )

    @property
    def size(self) -> int:
        """The number of elements that this hyperparameter has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Int:
    """A whole-number hyperparameter from `low` to `high`, both included.

    It has no gradient, so the explorer chooses it.

    Raises `ValueError` where a bound is no whole number, the bounds are reversed, or `log=True` and `low` is below 1.

    Example:
        >>> from hypergrad_search import Int
        >>> space = {"width": Int(16, 512, log=True)}
    """

    low: int
    high: int
    _: KW_ONLY
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            try:
                object.__setattr__(self, name, whole_number(f"Int: {name}", getattr(self, name)))
            except ValueError as error:
                raise ValueError(f"{error}; is it a Float?") from None
        _check_bounds(self)


@dataclass(frozen=True)
class Categorical:
    """A hyperparameter with several possible values (None, bool, int, float or str).

    It has no gradient, so the explorer chooses it. A problem gets the choice as it was written here.

    Raises `ValueError` where `choices` is empty, a choice is of another kind, or two choices are equal, as 1 and True.

    Example:
        >>> from hypergrad_search import Categorical
        >>> Categorical(["relu", "silu"]).choices
        ('relu', 'silu')
    """

    choices: tuple[bool | int | float | str | None, ...]

    def __init__(self, choices: Sequence[bool | int | float | str | None]) -> None:
        if isinstance(choices, str | bytes) or not isinstance(choices, Sequence | np.ndarray) or not len(choices):
            raise ValueError(f"Categorical: choices must be a list of at least one value, got {choices!r}")
        plain = tuple(choice.item() if isinstance(choice, np.generic) else choice for choice in choices)
        for i, choice in enumerate(plain):
            if not isinstance(choice, bool | int | float | str | None) or choice != choice:
                raise ValueError(f"Categorical: each choice must be None, a bool, a number or a str, got {choice!r}")
            if choice in plain[:i]:
                raise ValueError(f"Categorical: choices must differ, got {choice!r} and a choice that equals it")
        object.__setattr__(self, "choices", plain)


Space = Mapping[str, Float | Int | Categorical]
#: A space that may have dicts within dicts; `hypergrad_search.nesting.flat` returns it as a `Space`.
NestedSpace = Mapping[str, Float | Int | Categorical | Mapping[str, Any]]
Hyperparameters = Mapping[str, Any]


def _check_bounds(parameter: Float | Int) -> None:
    kind, low, high = type(parameter).__name__, parameter.low, parameter.high
    object.__setattr__(parameter, "log", boolean(f"{kind}: log", parameter.log))
    if low > high:
        raise ValueError(f"{kind}: low must not be above high, got low={low!r}, high={high!r}; swap them")
    if parameter.log and low <= 0:
        raise ValueError(f"{kind}: log=True needs low above 0, got low={low!r}; raise it, or drop log=True")
    if not math.isfinite(high / low if parameter.log else high - low):
        raise ValueError(f"{kind}: low and high must not be so far apart, got low={low!r}, high={high!r}")


def _checked_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    return tuple(whole_number(f"Float: every length in {name}", n, 1) for n in lengths)


def check_space(space: Space) -> None:
    """Raise `ValueError` unless `space` is a mapping from names to `Float`, `Int` or `Categorical`."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space must be a dict of at least one name to Float, Int or Categorical, got {space!r}")
    for name, parameter in space.items():
        if not isinstance(name, str):
            raise ValueError(f"space: names must be strings, got {name!r}")
        if not isinstance(parameter, Float | Int | Categorical):
            raise ValueError(
                f"space[{name!r}] must be a Float, Int or Categorical, got {parameter!r}; a constant belongs in the "
                f"problem{see('space')}"
            )


def floats(space: Space) -> dict[str, Float]:
    """Return the differentiable part of a space, in the order of the space."""
    if not isinstance(space, Mapping):
        raise ValueError(f"space must be a dict from names to Float, Int or Categorical, got {space!r}")
    return {name: parameter for name, parameter in space.items() if isinstance(parameter, Float)}


def lifted(space: Space) -> dict[str, Float | Int | Categorical]:
    """Return the space with an array in place of every number that has a `lift`."""
    return {
        name: replace(p, shape=p.lift, lift=None) if isinstance(p, Float) and p.lift else p for name, p in space.items()
    }


def as_given(space: Space, hyperparameters: Hyperparameters) -> dict[str, Float | Int | Categorical]:
    """Return the space with an array in place of every number whose value has the shape of its `lift`."""
    shapes = {name: np.shape(value) for name, value in hyperparameters.items()}
    return {**space, **lifted({n: p for n, p in floats(space).items() if p.lift and shapes.get(n) == p.lift})}


def unlifted(space: Space) -> dict[str, Float | Int | Categorical]:
    """Return the space in which every number stays a number."""
    return {name: replace(p, lift=False) if isinstance(p, Float) and not p.shape else p for name, p in space.items()}


def dimension(space: Space) -> int:
    """Return the number of differentiable elements of a space, which is the length of a vector in its unit box.

    Example:
        >>> from hypergrad_search.search import dimension
        >>> dimension(space)
        2
    """
    return sum(parameter.size for parameter in floats(space).values())


def coordinates(name: str, shape: tuple[int, ...]) -> list[str]:
    """Return the names under which hosts know an array's elements, in C order: `name[0,0]`, `name[0,1]`, ...

    For `shape=()` it is the name itself.
    """
    return [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(*shape)]


def to_unit(space: Space, hyperparameters: Hyperparameters) -> np.ndarray[Any, Any]:
    """Return the floats of `hyperparameters` as one float64 vector in the unit box, 0 at `low` and 1 at `high`.

    Example:
        >>> from hypergrad_search.search import to_unit
        >>> to_unit({"l2": space["l2"]}, {"l2": 1e-3}).round(6)
        array([0.5])
    """
    return _concatenate([scaled(p, _array(name, p, hyperparameters)) for name, p in floats(space).items()])


def from_unit(space: Space, vector: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the inverse of `to_unit`, clipped to the bounds: a float for `shape=()`, else a float64 array.

    Example:
        >>> import numpy as np
        >>> from hypergrad_search.search import from_unit
        >>> round(from_unit({"l2": space["l2"]}, np.array([0.5]))["l2"], 6)
        0.001
    """
    if np.shape(vector) != (dimension(space),):
        raise ValueError(f"from_unit: vector must have {dimension(space)} numbers, got {np.size(vector)}")
    result: dict[str, Any] = {}
    start = 0
    for name, p in floats(space).items():
        values = _within_bounds(p, np.clip(vector[start : start + p.size], 0.0, 1.0)).reshape(p.shape)
        result[name] = values if p.shape else float(values)
        start += p.size
    return result


def centre(space: Space) -> dict[str, Any]:
    """Return the centre of a space in natural units: the middle of all numbers, and the first of all choices."""
    floats_at = from_unit(space, np.full(dimension(space), 0.5))
    return {name: floats_at[name] if isinstance(p, Float) else _middle(p) for name, p in space.items()}


def _middle(parameter: Int | Categorical) -> Any:
    if isinstance(parameter, Categorical):
        return parameter.choices[0]
    low, high = parameter.low, parameter.high
    return round(math.sqrt(low * high)) if parameter.log else (low + high) // 2


def level(parameter: Float, array: np.ndarray[Any, Any]) -> float:
    """Return the number that stands for an array: the mean of its elements in the unit box, in natural units."""
    mean = np.mean(scaled(parameter, np.asarray(array, np.float64)), keepdims=True)
    return float(_within_bounds(parameter, mean)[0])


def gradient_to_unit(space: Space, hyperparameters: Hyperparameters, gradient: Hyperparameters) -> np.ndarray[Any, Any]:
    """Return a gradient in natural units carried into the unit box by the chain rule, shape `(dimension(space),)`.

    Example:
        >>> import numpy as np
        >>> from hypergrad_search import Float
        >>> from hypergrad_search.search import gradient_to_unit
        >>> gradient_to_unit({"smoothing": Float(0.0, 0.2)}, {"smoothing": 0.1}, {"smoothing": np.array(3.0)}).round(6)
        array([0.6])
    """
    parts = []
    for name, p in floats(space).items():
        slope = np.ravel(_array(name, p, hyperparameters)) * math.log(p.high / p.low) if p.log else p.high - p.low
        parts.append(np.ravel(_array(name, p, gradient)) * slope)
    return _concatenate(parts)


def gradient_from_unit(
    space: Space, hyperparameters: Hyperparameters, unit: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return a gradient in the unit box carried to natural units, the inverse of `gradient_to_unit`.

    It is 0 where a box has no width.
    """
    gradient, start = {}, 0
    for name, p in floats(space).items():
        values = _array(name, p, hyperparameters)
        slope = values * math.log(p.high / p.low) if p.log else np.full(p.shape, p.high - p.low)
        part = unit[start : start + p.size].reshape(p.shape)
        gradient[name] = np.divide(part, slope, out=np.zeros(p.shape), where=slope != 0)
        start += p.size
    return gradient


def _array(name: str, parameter: Float, values: Hyperparameters) -> np.ndarray[Any, Any]:
    if name not in values:
        raise ValueError(f"hyperparameter {name!r} is missing; got {sorted(values)}")
    try:
        array = np.asarray(values[name], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"hyperparameter {name!r} must be numbers, got {shown(values[name])}") from None
    if array.shape != parameter.shape:
        raise ValueError(f"hyperparameter {name!r} must have shape {parameter.shape}, got {array.shape}")
    return array


def scaled(p: Float, values: Any, xp: Any = np) -> Any:
    """Return values in natural units as a flat vector in the unit box, computed by `xp`, numpy or `jax.numpy`."""
    flat = xp.ravel(values)
    if p.low == p.high:
        return xp.zeros_like(flat)
    if p.log:
        return xp.log(flat / p.low) / math.log(p.high / p.low)
    return (flat - p.low) / (p.high - p.low)


def unscaled(p: Float, unit: Any, xp: Any = np) -> Any:
    """Return the values in natural units, of the shape of `unit`; rounding may carry them past the bounds."""
    return p.low * xp.exp(unit * math.log(p.high / p.low)) if p.log else p.low + unit * (p.high - p.low)


def _within_bounds(p: Float, unit: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # The logarithm may miss the upper end.
    return np.where(unit == 1.0, p.high, np.clip(unscaled(p, unit), p.low, p.high))


def _concatenate(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(parts) if parts else np.zeros(0)
