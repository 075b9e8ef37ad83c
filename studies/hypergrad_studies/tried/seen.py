"""Finished trials of a study as points of the unit box, with values and gradients."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_search import Float
from hypergrad_search.space import gradient_to_unit, to_unit


@dataclass(frozen=True)
class Seen:
    """A point of the unit box, its value, and its gradient in the box; both arrays have shape `(d,)`."""

    point: np.ndarray
    value: float
    gradient: np.ndarray | None


def box(distributions: Mapping[str, BaseDistribution]) -> dict[str, Float]:
    """Return the numbers without a step among the distributions, as the search knows them."""
    return {
        name: Float(d.low, d.high, log=d.log)
        for name, d in distributions.items()
        if isinstance(d, FloatDistribution) and d.step is None
    }


def seen(trial: FrozenTrial, space: Mapping[str, Float]) -> Seen:
    """Return a complete trial as a point of the space, whose numbers it must have."""
    reported = arrays.decode_all(trial.user_attrs.get(attributes.GRADIENT) or {}, None)
    gradient = None
    if reported:
        gradient = gradient_to_unit(space, trial.params, {name: reported.get(name, 0.0) for name in space})
    assert trial.value is not None
    return Seen(to_unit(space, trial.params), trial.value, gradient)
