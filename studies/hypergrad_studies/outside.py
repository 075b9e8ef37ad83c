"""Optuna's side of optimizers from other packages that are asked and told."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

Point = TypeVar("Point")
"""A point as the other package knows it."""

Distributions = Mapping[str, BaseDistribution]


class Outside(abc.ABC, Generic[Point]):
    """Another package's optimizer, which minimises; an adapter only translates."""

    @abc.abstractmethod
    def ask(self) -> Point:
        """Return what to try next."""

    @abc.abstractmethod
    def tell(self, point: Point, loss: float) -> None:
        """Learn the loss of a point, which is finite. It need not be one that was asked for."""

    @abc.abstractmethod
    def values(self, point: Point) -> dict[str, Any]:
        """Return a point as Optuna knows it."""

    @abc.abstractmethod
    def point(self, values: Mapping[str, Any]) -> Point:
        """Return the point of values that Optuna knows."""


class OutsideSampler(BaseSampler):
    """Samples by another package's optimizer, which is made from the search space.

    The first trial is at random, or where the user has put it, since the search space is known only after it, as for
    Optuna's own samplers. All trials are told; a trial that failed has the worst loss of those that did not. The
    study must minimise, and the optimizer's state is in memory, so one process must run all of it.
    """

    def __init__(self, seed: int, outside: Callable[[Distributions], Outside[Any]]) -> None:
        self._random = RandomSampler(seed)
        self._space = IntersectionSearchSpace()
        self._make = outside
        self._outside: Outside[Any] | None = None
        self._asked: dict[int, Any] = {}
        self._told: set[int] = set()

    def reseed_rng(self) -> None:
        """Reseed what is sampled at random."""
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what all trials so far have in common, without what has a single value."""
        return {name: d for name, d in self._space.calculate(study).items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Tell what is new, and ask."""
        if not search_space:
            return {}
        if self._outside is None:
            self._outside = self._make(search_space)
        self._tell(self._outside, study, search_space)
        asked = self._outside.ask()
        self._asked[trial.number] = asked
        return self._outside.values(asked)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _tell(self, outside: Outside[Any], study: Study, search_space: Distributions) -> None:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        worst = max((loss for loss in map(_loss, ended) if loss < math.inf), default=None)
        if worst is None:
            return
        for trial in ended:
            if trial.number not in self._told:
                asked = self._asked.pop(trial.number, None)
                point = outside.point({name: trial.params[name] for name in search_space}) if asked is None else asked
                outside.tell(point, min(_loss(trial), worst))
                self._told.add(trial.number)


def _loss(trial: FrozenTrial) -> float:
    return math.inf if trial.value is None else trial.value
