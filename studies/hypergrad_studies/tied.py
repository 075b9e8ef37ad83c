"""Tied arrays: one number for each array of a space, as a user would give it to a search without gradients."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hypergrad_search import Space
from hypergrad_search.space import floats


def tied(space: Space) -> Space:
    """The space with a number, of the same bounds, in place of each array."""
    return {**space, **{name: replace(parameter, shape=()) for name, parameter in floats(space).items()}}


def spread(space: Space, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of `space` at a point of `tied(space)`: each array has its number everywhere."""
    arrays = {name: np.full(p.shape, numbers[name]) for name, p in floats(space).items() if p.shape}
    return {**numbers, **arrays}


def has_array(space: Space) -> bool:
    """Whether there is an array to tie."""
    return any(parameter.shape for parameter in floats(space).values())
