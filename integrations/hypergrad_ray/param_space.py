"""A space in Ray Tune's own domains."""

from collections.abc import Mapping
from typing import Any

from ray import tune

from hypergrad_ray.config import check_names, keys
from hypergrad_ray.domains import own_space
from hypergrad_search import Categorical, Float, Int
from hypergrad_search.nesting import nested


def param_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return `space` as Ray's own domains, for `trainable` under any searcher: `Tuner(..., param_space=...)`.

    Ray's domains may stand in it already; they come out over the bounds that `trainable` and `HypergradSearch` see.
    An array becomes one domain for each coordinate, named `name[i,j]`, in C order; a number with a `lift` stays a
    number. Where `space` has dicts within it, so has the result. `HypergradSearch` can take the space itself, which is
    better for large arrays, and lifts numbers.

    Raises `ValueError` where `space` is not a space, or a name does not fit Ray's configs and results.

    Example:
        >>> from hypergrad_ray import param_space
        >>> sorted(param_space(space))
        ['l2', 'rate']
    """
    own = own_space(space)
    check_names(own)
    domains: dict[str, Any] = {}
    for name, parameter in own.items():
        domains.update(dict.fromkeys(keys(name, parameter), _domain(parameter)))
    return nested(domains)


def _domain(parameter: Float | Int | Categorical) -> Any:
    if isinstance(parameter, Categorical):
        return tune.choice(list(parameter.choices))
    if isinstance(parameter, Int):
        draw = tune.lograndint if parameter.log else tune.randint
        return draw(parameter.low, parameter.high + 1)
    return (tune.loguniform if parameter.log else tune.uniform)(parameter.low, parameter.high)
