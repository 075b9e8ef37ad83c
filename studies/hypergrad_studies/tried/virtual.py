"""Virtual observations: TPE sees two pseudo trials beside each point whose gradient is known.

The one lies a short step downhill, along the soft signs that `SignSteps` follows, and the other as far uphill. Their
values are those of the linear model. TPE, which knows only which points are good and which are bad, is so to learn on
which side of a point the better ones lie. Surrogate models of engineers are given gradients in this way, as "indirect"
cokriging: H.-S. Chung, J. J. Alonso, *Using Gradients to Construct Cokriging Approximation Models for High-Dimensional
Design Optimization Problems*, AIAA 2002.

It changed nothing: so few points are explored that TPE has no time to learn.
"""

import copy
from collections.abc import Container
from typing import Any, cast

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from hypergrad_search import Float
from hypergrad_search.search import Radii, SignSteps
from hypergrad_search.space import from_unit
from hypergrad_studies.tried.seen import Seen, box, seen


class VirtualTpe(TPESampler):
    """TPE that sees pseudo trials beside the real ones.

    - `reach`: how far from a point they lie at most in each coordinate, in units of the box.
    """

    def __init__(self, seed: int, reach: float) -> None:
        super().__init__(seed=seed)
        self._reach = reach

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return super()._sample(cast(Study, _WithNeighbours(study, self._reach)), trial, search_space)


class _WithNeighbours:
    """A study in which two pseudo trials follow each trial that has a gradient."""

    def __init__(self, study: Study, reach: float) -> None:
        self._study = study
        self._reach = reach

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return [each for trial in trials for each in (trial, *neighbours(trial, self._reach))]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def neighbours(trial: FrozenTrial, reach: float) -> list[FrozenTrial]:
    """Return a pseudo trial downhill of a trial and one uphill of it; none where its gradient is not known, or 0."""
    if trial.state is not TrialState.COMPLETE:
        return []
    space = box(trial.distributions)
    found = seen(trial, space)
    return [_moved(trial, space, found, point) for point in _beside(found, reach)]


def _beside(found: Seen, reach: float) -> list[np.ndarray]:
    if found.gradient is None or not np.isfinite(found.gradient).all() or not found.gradient.any():
        return []
    down = SignSteps(radii=Radii(start=reach)).around(found.point, found.value, found.gradient).step()
    return [down, np.clip(2 * found.point - down, 0.0, 1.0)]


def _moved(trial: FrozenTrial, space: dict[str, Float], found: Seen, point: np.ndarray) -> FrozenTrial:
    """Return the trial at another point, with the value that its gradient predicts there."""
    moved = copy.copy(trial)
    moved.params = {**trial.params, **from_unit(space, point)}
    assert found.gradient is not None
    moved.value = found.value + float(found.gradient @ (point - found.point))
    return moved
