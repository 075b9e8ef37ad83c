"""A trial's config: the names that it may have, and the hyperparameters in it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hypergrad_search import Categorical, Float, Int, Space
from hypergrad_search.checks import shown
from hypergrad_search.space import check_space, coordinates

_COORDINATE = re.compile(r"(.+)\[(\d+(?:,\d+)*)\]")  # as `coordinates` names an array's elements
RESERVED = "hypergrad"  # the key in a trial's config under which the searcher says what it wants
METRIC = "metric"  # the key there of the searcher's metric
ROUNDING = 1e-6  # the relative distance past a bound that is taken for rounding


def check_names(space: Space) -> None:
    """Raise `ValueError` unless `space` is a space whose names fit Ray's configs and results."""
    check_space(space)
    for name in space:
        array, index = split(name)
        parameter = space.get(array) if index else None
        shape = parameter.shape if isinstance(parameter, Float) else ()
        is_coordinate = len(index) == len(shape) > 0 and all(i < n for i, n in zip(index, shape, strict=True))
        if name == RESERVED or is_coordinate:
            raise ValueError(f"space: {name!r} is reserved, or stands for two things; rename it")


def split(name: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of an array and an index in it, of a name such as `"w[0,1]"`; the index of others is ()."""
    coordinate = _COORDINATE.fullmatch(name)
    return (name, ()) if coordinate is None else (coordinate[1], tuple(map(int, coordinate[2].split(","))))


def join(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in a trial's config, which has one dict for all names, with arrays put together.

    Numbers come out plain: a whole number for a `Float` as a float, one of numpy's for an `Int` or a choice as one of
    Python's. Raises `ValueError` where one is missing, is no value of its parameter's kind, or has neither its own
    shape nor that of its `lift`.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"the trial's config must be a dict, got {shown(config)}")
    return {name: _hyperparameter(name, parameter, config) for name, parameter in space.items()}


def check_bounds(space: Space, hyperparameters: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a number is out of the bounds of its parameter by more than its rounding."""
    for name, parameter in space.items():
        if not isinstance(parameter, Float | Int):
            continue
        low, high, value = parameter.low, parameter.high, np.asarray(hyperparameters[name])
        size = max(abs(low), abs(high))
        below, above = (low, high) if parameter.log else (size, size)
        if np.any((value < low - ROUNDING * below) | (value > high + ROUNDING * above)):
            raise ValueError(
                f"the trial's config has {name!r} = {shown(hyperparameters[name])}, out of the bounds of {parameter}; "
                "give HypergradSearch and trainable the same space"
            )


def keys(name: str, parameter: Float | Int | Categorical) -> list[str]:
    """Return the keys that a parameter has in a config in which an array has one for each coordinate."""
    return coordinates(name, parameter.shape if isinstance(parameter, Float) else ())


def _hyperparameter(name: str, parameter: Float | Int | Categorical, config: Mapping[str, Any]) -> Any:
    """Return a hyperparameter from its own key, or from those of its coordinates."""
    if name in config:
        return _value(name, parameter, config[name])
    missing = [key for key in keys(name, parameter) if key not in config]
    if missing or not isinstance(parameter, Float):
        raise ValueError(
            f"the trial's config lacks {(missing if len(missing) == 1 else [name])[0]!r}; search with "
            "HypergradSearch(space, ...), or with param_space=param_space(space)"
        )
    number = replace(parameter, shape=())
    values = [_value(key, number, config[key]) for key in coordinates(name, parameter.shape)]
    return np.reshape(values, parameter.shape)


def _value(name: str, parameter: Float | Int | Categorical, value: Any) -> Any:
    if isinstance(parameter, Float):
        return _real(name, parameter, value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.shape):
        value = value.item()
    if isinstance(parameter, Categorical):
        fits = isinstance(value, bool | int | float | str | None) and value in parameter.choices
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    if not fits:
        raise ValueError(_misfit(name, parameter, value))
    return int(value) if isinstance(parameter, Int) else value


def _real(name: str, parameter: Float, value: Any) -> Any:
    try:
        given = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        raise ValueError(_misfit(name, parameter, value)) from None
    if given.dtype.kind not in "iuf" or not np.isfinite(given).all():
        raise ValueError(_misfit(name, parameter, value))
    if given.shape not in (parameter.shape, parameter.lift):
        raise ValueError(
            f"the trial's config has {name!r} of shape {given.shape}, the space has {parameter}; give "
            "HypergradSearch and trainable the same space"
        )
    array = given.astype(np.float64)
    return array if array.shape else float(array)


def _misfit(name: str, parameter: Float | Int | Categorical, value: Any) -> str:
    return (
        f"the trial's config has {name!r} = {shown(value)}, which does not fit {parameter}; give HypergradSearch and "
        "trainable the same space"
    )
