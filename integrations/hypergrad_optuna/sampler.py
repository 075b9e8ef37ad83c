"""`HypergradSampler`: Optuna's side of the search. It stores and fetches, and decides nothing itself."""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import arrays, attributes, claims
from hypergrad_search import Float
from hypergrad_search.search import Observation, Strategy
from hypergrad_search.search.ask_tell import AskTell, MissingGradients, Outcome, Suggestion
from hypergrad_search.space import floats

SearchSpace = dict[str, BaseDistribution]


@dataclass(frozen=True)
class _Step:
    """The values of a trial on a chain: the step gives the floats that it moves, and the parent all others."""

    parent: FrozenTrial
    suggestion: Suggestion

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of the trial; an array is one number, its level."""
        return {**self.parent.params, **self.suggestion.levels}

    def array(self, name: str, store: Any | None) -> np.ndarray | None:
        """Return an array, which is read from the parent only if the step does not move it; None if there is none."""
        moved = (self.suggestion.moved or {}).get(name)
        if moved is None and name in arrays.shapes(self.parent):
            return arrays.read(self.parent, name, store)
        return moved if isinstance(moved, np.ndarray) else None


@dataclass
class _Memory:
    """A cache of one study's folded history. It is never a source of truth: storage is."""

    mind: AskTell
    search_space: IntersectionSearchSpace = field(default_factory=lambda: IntersectionSearchSpace(include_pruned=True))
    folded: set[int] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    longest: timedelta = timedelta()  # the longest that a finished trial has taken
    steps: dict[int, _Step] = field(default_factory=dict)  # of running trials on a chain


class HypergradSampler(BaseSampler):
    """Sample where the gradient of the objective points, taking turns with another sampler, the explorer.

    Floats follow gradients, which `Objective` or `report_gradient` provide; so do the arrays of `suggest_array`,
    which are one number each while the search explores. The explorer chooses integers, categoricals, floats with a
    step, and all other parameters that gradients do not cover; they stay as they are along a chain of descent. If no
    trial reports a gradient, the explorer alone decides, and a warning says so once.

    A trial that was pruned, failed or violates a constraint (`trial.set_constraint`, or `constraints_func` of the
    explorer) is a step that failed. Any number of processes can share a study: all that the search knows is read from
    the study's trials. A trial that has been running for more than twice as long as the longest one so far, and for at
    least 5 seconds, is taken to be dead, and its step is given to the next process that asks.

    Args:
        explorer: the other sampler; Optuna's `TPESampler` by default.
        strategy: the way to spend the budget; `hypergrad_search.search.ExploreDescend()` by default. All processes of a
            study should have the same.
        seed: the seed of the default explorer; the rest of the search is deterministic.
        artifact_store: a store of `optuna.artifacts` for array hyperparameters, their gradients, and checkpoints of
            methods such as `Hypernet`. By default they are attributes of the trials, in base64, which every storage
            takes up to tens of megabytes, except MySQL (64 KiB) and the gRPC proxy (4 MiB). All processes of a study
            need the same.

    Raises:
        ValueError: both `explorer` and `seed` are given, or `strategy` is not a `Strategy`. At the first trial: the
            study has several objectives, for which this sampler is not made.
    """

    def __init__(
        self,
        *,
        explorer: BaseSampler | None = None,
        strategy: Strategy[Any] | None = None,
        seed: int | None = None,
        artifact_store: Any | None = None,
    ) -> None:
        if explorer is not None and seed is not None:
            raise ValueError("HypergradSampler: give the seed to explorer, or leave it out")
        if explorer is not None and not isinstance(explorer, BaseSampler):
            raise ValueError(f"HypergradSampler: explorer must be a sampler such as TPESampler(), got {explorer!r}")
        self.artifact_store = artifact_store
        self._explorer = explorer or TPESampler(seed=seed)
        self._strategy = AskTell.begin({}, strategy).strategy
        remedy = "use hypergrad_optuna.Objective, or call report_gradient(trial, {...}) in the objective"
        self._missing_gradients = MissingGradients("HypergradSampler", "objective", self._explorer, remedy)
        self._memories: WeakKeyDictionary[BaseStorage, dict[int, _Memory]] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_memories": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._memories = WeakKeyDictionary()

    def reseed_rng(self) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self._explorer.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> SearchSpace:
        """Return the parameters that all finished trials have in common."""
        with self._lock:
            space = self._memory(study).search_space.calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        if "fixed_params" in trial.system_attrs:  # enqueued: if all is fixed, Optuna calls nothing but this
            space = self.infer_relative_search_space(study, trial)
            mind = self._fold(study, claims.read(study), space)
            attributes.want(study, trial, mind.explore().wanted)
        self._explorer.before_trial(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: SearchSpace) -> dict[str, Any]:
        """Return a step along a gradient, or the explorer's choice."""
        self._raise_error_if_multi_objective(study)
        if "fixed_params" in trial.system_attrs:
            return self._explore(study, trial, claims.read(study), search_space)

        def ask(trials: Sequence[FrozenTrial], running: list[str | None]) -> Suggestion:
            return self._fold(study, trials, search_space).ask(running)

        trials, suggestion = claims.claim(study, trial, ask, lambda: self._memory(study).longest)
        if suggestion.wanted.parent is None:
            return self._explore(study, trial, trials, search_space)
        step = self._memory(study).steps[trial.number] = _Step(trials[int(suggestion.wanted.parent)], suggestion)
        return {name: step.params[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the explorer's choice; on a chain the parent's value, if the parent had this parameter."""
        self._raise_error_if_multi_objective(study)
        step = self._memory(study).steps.get(trial.number)
        if step is not None and param_name in step.params:
            kept = step.params[param_name]
            if param_distribution._contains(param_distribution.to_internal_repr(kept)):
                return kept
        return self._explorer.sample_independent(study, trial, param_name, param_distribution)

    def proposed_array(self, trial: optuna.Trial, name: str) -> np.ndarray | None:
        """Return the array of a trial on a chain; None where all elements have the same value, the level."""
        step = self._memory(trial.study).steps.get(trial.number)
        return None if step is None else step.array(name, self.artifact_store)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        memory = self._memory(study)
        memory.steps.pop(trial.number, None)
        if state == TrialState.COMPLETE and values is not None and len(values) == 1:
            reported = not {attributes.GRADIENT, attributes.COST}.isdisjoint(trial.user_attrs)
            self._missing_gradients.check(memory.mind, values[0], reported=reported)
        self._explorer.after_trial(study, trial, state, values)

    def _memory(self, study: optuna.Study) -> _Memory:
        with self._lock:
            of_storage = self._memories.setdefault(study._storage, {})
            if study._study_id not in of_storage:
                maximise = study.directions == [StudyDirection.MAXIMIZE]
                of_storage[study._study_id] = _Memory(AskTell.begin({}, self._strategy, maximise=maximise))
            return of_storage[study._study_id]

    def _fold(self, study: optuna.Study, trials: Sequence[FrozenTrial], search_space: SearchSpace) -> AskTell:
        """Return the search after all finished trials; only the new ones are folded."""
        with self._lock:
            memory = self._memory(study)
            new = [t for t in trials if t.state.is_finished() and t.number not in memory.folded]
            for trial in new:
                memory.shapes.update(arrays.shapes(trial))
            space = {
                name: Float(d.low, d.high, log=d.log, shape=memory.shapes.get(name, ()))
                for name, d in search_space.items()
                if isinstance(d, FloatDistribution) and d.step is None
            }
            if memory.mind.space != space:
                memory.mind = AskTell.begin(space, self._strategy, maximise=memory.mind.maximise)
                memory.folded = set()
                new = [t for t in trials if t.state.is_finished()]
            for trial in sorted(new, key=lambda t: (t.datetime_complete, t.number)):
                memory.folded.add(trial.number)
                memory.longest = max(memory.longest, trial.duration or timedelta())
                if _fits(trial, space):
                    memory.mind = memory.mind.tell(self._observe(memory.mind, trial, trials))
            return memory.mind

    def _observe(self, mind: AskTell, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> Observation:
        """Return the observation of a finished trial."""
        wanted, reported = attributes.wanted(trial), trial.user_attrs
        feasible = trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.constraints.values())
        decode = functools.partial(arrays.decode_all, store=self.artifact_store)
        begun = Observation(
            trial=str(trial.number),
            parent=wanted.parent,
            hyperparameters={
                name: arrays.read(trial, name, self.artifact_store) if parameter.shape else trial.params[name]
                for name, parameter in floats(mind.space).items()
            },
            # Another sampler around this one, such as PartialFixedSampler, may have changed some parameters.
            again=wanted.again and trial.params == trials[int(wanted.parent or 0)].params,
        )
        outcome = Outcome(
            value=trial.value if feasible else None,
            gradient=decode(reported.get(attributes.GRADIENT, {})),
            cost=reported.get(attributes.COST),
            held_back=reported.get(attributes.HELD_BACK),
            refined=decode(reported.get(attributes.REFINED, {})),
            status=reported.get(attributes.STATUS),
        )
        return mind.read(begun, outcome)

    def _explore(
        self, study: optuna.Study, trial: FrozenTrial, trials: Sequence[FrozenTrial], search_space: SearchSpace
    ) -> dict[str, Any]:
        jointly = self._explorer.infer_relative_search_space(study, trial)
        sampled = self._explorer.sample_relative(study, trial, jointly)
        # The order is that of the objective's suggestions, as it would be under the explorer alone.
        order = {name: i for t in trials if t.state.is_finished() for i, name in enumerate(t.params)}
        for name in sorted(search_space, key=lambda name: order.get(name, 0)):
            if name not in sampled:
                sampled[name] = self._explorer.sample_independent(study, trial, name, search_space[name])
        return {name: sampled[name] for name in search_space}


def _fits(trial: FrozenTrial, space: Mapping[str, Float]) -> bool:
    """Return whether a trial has all floats of a space, as numbers or arrays of the same shape."""
    shapes = arrays.shapes(trial)
    return all(name in trial.params and shapes.get(name, ()) == p.shape for name, p in space.items())


def sampler_of(study: optuna.Study) -> HypergradSampler | None:
    """Return a study's `HypergradSampler`, which may be inside another sampler such as `PartialFixedSampler`."""
    sampler: Any = study.sampler
    while sampler is not None and not isinstance(sampler, HypergradSampler):
        sampler = getattr(sampler, "_base_sampler", None)
    return sampler
