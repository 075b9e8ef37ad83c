"""The other sampler in the role of the explorer: it chooses points, and is told of the trials that it has chosen."""

import copy
import warnings
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState


class Explorer:
    """A sampler that chooses the points of some trials of a study, whose other trials it has not chosen.

    What it cannot choose, such as a parameter that is not in the grid of `GridSampler`, is drawn at random, and a
    warning says so once. `exhausted` tells whether it has asked to stop since it has nothing left to choose.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler = sampler
        self.exhausted = False
        self._complete = True  # whether it can choose every parameter

    def sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], order: Iterable[str]
    ) -> dict[str, Any]:
        """Return a value for each parameter of `search_space`; those chosen one by one come in the given order."""
        shown = self._shown(study)
        self.sampler.before_trial(shown, trial)
        trial = copy.copy(trial)
        trial.system_attrs = study._storage.get_trial_system_attrs(trial._trial_id)  # what before_trial has written
        jointly = self.sampler.infer_relative_search_space(shown, trial)
        sampled = self.sampler.sample_relative(shown, trial, jointly)
        for name in order:
            if name not in sampled:
                sampled[name] = self.sample_independent(study, trial, name, search_space[name])
            trial.params = {**trial.params, name: sampled[name]}
            trial.distributions = {**trial.distributions, name: search_space[name]}
        return {name: sampled[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """Return a value for one parameter."""
        try:
            return self.sampler.sample_independent(self._shown(study), self._visible(trial), name, distribution)
        except ValueError as error:
            self._say_once(name, error)
        draw = RandomSampler(seed=zlib.crc32(f"{study.study_name} {trial.number} {name}".encode()))
        return draw.sample_independent(study, trial, name, distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
        *,
        chosen: bool,
    ) -> None:
        """Tell the sampler of a finished trial; of those that it has not chosen only where it computes constraints."""
        if chosen or getattr(self.sampler, "_constraints_func", None) is not None:
            self.sampler.after_trial(self._shown(study), self._visible(trial), state, values)

    def _say_once(self, name: str, error: ValueError) -> None:
        if self._complete:
            self._complete = False
            warnings.warn(
                f"HypergradSampler: {type(self.sampler).__name__} cannot choose {name!r} ({error}), so this and other "
                "such parameters are drawn at random",
                stacklevel=4,
            )

    def _shown(self, study: optuna.Study) -> optuna.Study:
        return cast(optuna.Study, _Shown(study, self))

    def stop(self) -> None:
        """Take the sampler's wish to end the study, which it cannot know of where it does not choose everything."""
        self.exhausted = self._complete

    def _visible(self, trial: FrozenTrial) -> FrozenTrial:
        return _without_continuous(trial) if isinstance(self.sampler, BruteForceSampler) else trial


class _Shown:
    """A study as the explorer sees it: it cannot end it, and `BruteForceSampler` sees no floats without a step."""

    def __init__(self, study: optuna.Study, explorer: Explorer) -> None:
        self._study = study
        self.stop = explorer.stop
        if isinstance(explorer.sampler, BruteForceSampler):
            self._storage = _Steps(study._storage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


class _Steps:
    """A storage whose trials have no floats without a step."""

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        self._whole = storage

    def get_all_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return [_without_continuous(trial) for trial in self._whole.get_all_trials(*args, **kwargs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def _without_continuous(trial: FrozenTrial) -> FrozenTrial:
    kept = {
        name: distribution
        for name, distribution in trial.distributions.items()
        if not (isinstance(distribution, FloatDistribution) and distribution.step is None)
    }
    trial = copy.copy(trial)
    trial.distributions, trial.params = kept, {name: trial.params[name] for name in kept}
    return trial
