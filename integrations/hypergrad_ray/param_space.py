"""A space in Ray Tune's terms, and the way back: an array is one number for each coordinate, or one ndarray."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune

from hypergrad_search import Categorical, Float, Int, Space
from hypergrad_search.hosting import joined
from hypergrad_search.space import check_space, coordinates

RESERVED = "hypergrad"  # the key in a trial's config under which the searcher says what it wants


def param_space(space: Space) -> dict[str, Any]:
    """Return `space` as Ray's own domains, for `trainable` under another searcher: `Tuner(..., param_space=...)`.

    An array becomes one domain for each coordinate, named `name[i,j]`, in C order; a number with a `lift` stays a
    number. Do not use it with `HypergradSearch`, which takes the space itself.

    Raises `ValueError` where `space` is not a space, or a name does not fit Ray's configs and results.
    """
    check_names(space)
    domains: dict[str, Any] = {}
    for name, parameter in space.items():
        domains.update(dict.fromkeys(_keys(name, parameter), _domain(parameter)))
    return domains


def check_names(space: Space) -> None:
    """Raise `ValueError` unless `space` is a space whose names fit Ray's configs and results."""
    check_space(space)
    seen = {RESERVED}
    for name, parameter in space.items():
        if "/" in name:
            raise ValueError(f"space: {name!r} must not contain '/', which Ray puts between nested keys; rename it")
        for key in {name, *_keys(name, parameter)}:
            if key in seen:
                raise ValueError(f"space: {key!r} is reserved, or stands for two things; rename it")
            seen.add(key)


def join(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in a trial's config, in which arrays are put together from their coordinates.

    Raises `ValueError` where one is missing, or has neither its own shape nor that of its `lift`.
    """
    config = joined(config)
    try:
        return {name: _value(name, parameter, config[name]) for name, parameter in space.items()}
    except KeyError as error:
        raise ValueError(
            f"the trial's config lacks {error}; search with HypergradSearch(space), or with "
            "param_space=param_space(space)"
        ) from error


def _keys(name: str, parameter: Float | Int | Categorical) -> list[str]:
    return coordinates(name, parameter.shape if isinstance(parameter, Float) else ())


def _value(name: str, parameter: Float | Int | Categorical, value: Any) -> Any:
    if isinstance(parameter, Categorical):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(parameter, Int):
        return int(value)
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in (parameter.shape, parameter.lift):
        raise ValueError(
            f"the trial's config has {name!r} of shape {array.shape}, the space has {parameter}; give "
            "HypergradSearch and trainable the same space"
        )
    return array if array.shape else float(array)


def _domain(parameter: Float | Int | Categorical) -> Any:
    if isinstance(parameter, Categorical):
        return tune.choice(list(parameter.choices))
    if isinstance(parameter, Int):
        draw = tune.lograndint if parameter.log else tune.randint
        return draw(parameter.low, parameter.high + 1)
    return (tune.loguniform if parameter.log else tune.uniform)(parameter.low, parameter.high)
