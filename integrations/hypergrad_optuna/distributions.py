"""Optuna's own distributions, and nested spaces: the space that the engine takes in their place."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hypergrad_search import Categorical, Float, Int
from hypergrad_search.nesting import flat
from hypergrad_search.trouble import see


def own_space(owner: str, space: Any) -> Any:
    """Return a space without dicts within it, in which each distribution is a `Float`, `Int` or `Categorical`.

    What is no distribution stays as it is, for others to refuse. Raises `ValueError` where a distribution has no such
    form; the message names the caller, `owner`.
    """
    flat_space = flat(space)
    if not isinstance(flat_space, Mapping):
        return flat_space
    return {name: _own(owner, name, parameter) for name, parameter in flat_space.items()}


def _own(owner: str, name: str, parameter: Any) -> Any:
    if not isinstance(parameter, BaseDistribution):
        return parameter
    try:
        if isinstance(parameter, CategoricalDistribution):
            return Categorical(parameter.choices)
        if isinstance(parameter, FloatDistribution) and parameter.step is None:
            return Float(parameter.low, parameter.high, log=parameter.log)
        if isinstance(parameter, IntDistribution) and parameter.step == 1:
            return Int(parameter.low, parameter.high, log=parameter.log)
    except ValueError as error:
        raise ValueError(f"{owner}: space[{name!r}]: {error}") from None
    if isinstance(parameter, FloatDistribution):
        remedy = "a step has no gradient; leave step out, or give a CategoricalDistribution of the values"
    elif isinstance(parameter, IntDistribution):
        remedy = "leave step out and multiply in the problem, or give a CategoricalDistribution of the values"
    else:
        remedy = "use FloatDistribution, IntDistribution or CategoricalDistribution"
    raise ValueError(f"{owner}: space[{name!r}] cannot be {parameter!r}: {remedy}{see('space')}")
