"""The other sampler in the role of the explorer: it chooses points, and is told of the trials that it has chosen."""

import copy
import warnings
import zlib
from collections.abc import Container, Iterable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

#: How many trials of a long study an explorer that forgets sees: the best, and the newest.
BEST, NEWEST = 100, 400


class Explorer:
    """A sampler that chooses the points of some trials of a study, whose other trials it has not chosen.

    What it cannot choose, such as a parameter that is not in the grid of `GridSampler`, is drawn at random, and a
    warning says so once. `exhausted` tells whether it has asked to stop since it has nothing left to choose.

    One that `forgets` sees only the best trials of a long study and the newest, so that it does not get slower and
    slower, as TPE does; a sampler of the user's own may count on all of them.
    """

    def __init__(self, sampler: BaseSampler, *, forgets: bool = False) -> None:
        self.sampler = sampler
        self.forgets = forgets
        self._best: list[tuple[float, int, FrozenTrial]] = []
        self._newest: list[FrozenTrial] = []  # both lists are replaced and never changed, as threads may read them
        self.exhausted = False
        self._complete = True  # whether it can choose every parameter

    def remember(self, trial: FrozenTrial, *, maximise: bool) -> None:
        """Learn of a finished trial, so that it is not forgotten at once."""
        if not self.forgets:
            return
        self._newest = [*self._newest, trial][-NEWEST:]
        if trial.state is TrialState.COMPLETE and len(trial.values) == 1:  # several objectives are refused elsewhere
            loss = -trial.values[0] if maximise else trial.values[0]
            self._best = sorted([*self._best, (loss, trial.number, trial)])[:BEST]

    def known(self) -> list[FrozenTrial]:
        """Return the trials that are not forgotten, by their numbers."""
        by_number = {trial.number: trial for trial in [*(trial for *_, trial in self._best), *self._newest]}
        return [by_number[number] for number in sorted(by_number)]

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
        self._explorer = explorer
        self.stop = explorer.stop
        if isinstance(explorer.sampler, BruteForceSampler):
            self._storage = _Steps(study._storage)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if not self._explorer.forgets:
            return self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return [trial for trial in self._explorer.known() if states is None or trial.state in states]

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
