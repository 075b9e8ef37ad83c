"""`HypergradSampler`: Optuna's side of the search. It stores and fetches, and decides nothing itself."""

import contextlib
import copy
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import arrays, attributes, claims
from hypergrad_optuna.explorer import Explorer
from hypergrad_optuna.history import History, Seen, Unusable, observe, params_of, space_of
from hypergrad_search import Float, Int
from hypergrad_search.checks import whole_number
from hypergrad_search.hosting import joined
from hypergrad_search.search import Attempt, Strategy
from hypergrad_search.search.ask_tell import AskTell, MissingGradients, Suggestion
from hypergrad_search.search.doubts import Doubts
from hypergrad_search.space import centre, floats, level
from hypergrad_search.trouble import see

SearchSpace = dict[str, BaseDistribution]

#: the number of trials for which the space must have been the same before a warning says what does not fit into it
BEFORE_A_WARNING = 3


@dataclass(frozen=True)
class _Step:
    """The values of a trial on a chain: the step gives the floats that it moves, and the parent all others.

    `params` has all parameters of the trial, in which an array is one number, its level.
    """

    parent: FrozenTrial
    params: dict[str, Any]
    moved: dict[str, Any]

    def array(self, name: str, shape: tuple[int, ...], store: Any | None) -> np.ndarray | None:
        """Return an array, which is read from the parent only if the step does not move it; None if there is none."""
        if name not in self.moved:
            known = self.by_elements(name)
            return arrays.find(self.parent, name, shape, store) if known is None else known
        array = self.moved[name]
        return array if isinstance(array, np.ndarray) else None

    def value(self, name: str, distribution: BaseDistribution) -> Any:
        """Return the value of a parameter; None where the step has none."""
        array = self.by_elements(name)
        if array is None or not isinstance(distribution, FloatDistribution):
            return self.params.get(name)
        return level(Float(distribution.low, distribution.high, log=distribution.log, shape=array.shape), array)

    def by_elements(self, name: str) -> np.ndarray | None:
        """Return an array whose elements are parameters of the step, since another sampler ran the parent."""
        array = None if name in self.params else joined(self.params).get(name)
        return array if isinstance(array, np.ndarray) else None


@dataclass
class _Memory:
    """A cache of one study's folded history. It is never a source of truth: storage is."""

    mind: AskTell
    explorer: Explorer
    missing_gradients: MissingGradients
    study_name: str
    history: History = field(default_factory=History)
    doubts: Doubts = field(default_factory=lambda: Doubts("HypergradSampler"))
    folded: Seen = field(default_factory=Seen)
    unusable: Counter[str] = field(default_factory=Counter)  # trials that do not fit the space, by what is wrong
    since: int = 0  # the number of trials when the space last changed
    warned: bool = False
    longest: timedelta = timedelta()  # the longest that a finished trial has taken
    steps: dict[int, _Step] = field(default_factory=dict)  # of running trials on a chain
    centres: set[int] = field(default_factory=set)  # the running trials at the centre of the space


class HypergradSampler(BaseSampler):
    """Sample where the gradient of the objective points, taking turns with another sampler, the explorer.

    Floats follow gradients, which `Objective` or `report_gradient` provide; so do the arrays of `suggest_array`,
    which are one number each while the search explores. The explorer chooses integers, categoricals, floats with a
    step, and all other parameters that gradients do not cover; they stay as they are along a chain of descent. If no
    trial reports a gradient, the explorer alone decides, and a warning says so once.

    Any history will do. The parameters that follow gradients are those that the newest trials share, with their present
    bounds; older trials, and those of other samplers, count where their points fit. The best one that has no gradient
    yet is evaluated once more. A warning says once how many trials do not fit. A trial made from another, as a retried
    one, has the other's arrays, and nothing else that the other reported. One sampler may search many studies.

    A trial that was pruned, failed or violates a constraint (`trial.set_constraint`, or `constraints_func` of the
    explorer) is a step that failed. Any number of processes can share a study: all that the search knows is read from
    the study's trials. A trial that has been running for more than twice as long as the longest one so far, and for at
    least 5 seconds, is taken to be dead, and its step is given to the next process that asks.

    Args:
        explorer: the other sampler; Optuna's `TPESampler` by default. By default the first trial of a study is at the
            centre of the space; an explorer that you give chooses that one too. Each study has a copy of it. What it
            cannot choose is drawn at random. One that asks to stop, as `GridSampler` does when its grid is done, ends
            the study once no chain goes on.
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

    Example:
        >>> import optuna
        >>> from hypergrad_optuna import HypergradSampler, Objective
        >>> study = optuna.create_study(sampler=HypergradSampler(seed=1))
        >>> study.optimize(Objective(problem, space), n_trials=3)
        >>> first = study.trials[0]
        >>> round(first.params["l2"], 6), first.user_attrs["hypergrad:status"]  # the centre of the space
        (0.001, 'ok')
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
        if seed is not None:
            seed = whole_number("HypergradSampler: seed", seed, 0)
        arrays.check_store("HypergradSampler", artifact_store)
        self.artifact_store = artifact_store
        self._explorer = explorer or TPESampler(seed=seed)
        self._own_explorer = explorer is not None
        self._strategy = AskTell.begin({}, strategy).strategy
        self._memories: WeakKeyDictionary[BaseStorage, dict[int, _Memory]] = WeakKeyDictionary()
        self._explorers: dict[str, BaseSampler] = {}  # those of studies that were pickled with this sampler, by name
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            explorers = {m.study_name: m.explorer.sampler for of in self._memories.values() for m in of.values()}
        return {**self.__dict__, "_lock": None, "_memories": None, "_explorers": {**self._explorers, **explorers}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._memories = WeakKeyDictionary()

    def reseed_rng(self) -> None:
        """See `optuna.samplers.BaseSampler`."""
        with self._lock:
            self._explorer.reseed_rng()
            for memory in [m for of in self._memories.values() for m in of.values()]:
                memory.explorer.sampler.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> SearchSpace:
        """Return the parameters that the newest trials have in common."""
        fixed = getattr(self._explorer, "_fixed_params", {})  # of a PartialFixedSampler
        shared = self._read(study, claims.read(study)).history.shared()
        return {name: distribution for name, (distribution, _) in shared.items() if name not in fixed}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Say what is wanted of a trial that was queued: if all its parameters are fixed, Optuna calls only this."""
        if attributes.own(trial):  # another process has begun it
            return
        attributes.forget(study._storage, trial)
        if trial.params or "fixed_params" in trial.system_attrs:
            trials = claims.read(study)
            mind = self._fold(study, trials, self.infer_relative_search_space(study, trial))
            attributes.want(study, trial, claims.lost_step(trial, trials) or mind.explore().wanted)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: SearchSpace) -> dict[str, Any]:
        """Return a step along a gradient, or the explorer's choice."""
        self._raise_error_if_multi_objective(study)
        if "fixed_params" in trial.system_attrs or not search_space.keys().isdisjoint(trial.params):
            trials = claims.read(study)
            attributes.want(study, trial, self._fold(study, trials, search_space).explore().wanted)
            return self._explore(study, trial, search_space)

        def ask(trials: Sequence[FrozenTrial], running: list[Attempt]) -> Suggestion:
            return self._fold(study, trials, search_space).ask(running)

        trials, suggestion = claims.claim(
            study, trial, ask, lambda: self._memory(study).longest, lambda: self._memory(study).history.seen.settled
        )
        if suggestion.wanted.parent is None:
            if not suggestion.centre or self._own_explorer:
                return self._explore(study, trial, search_space)
            self._memory(study).centres.add(trial.number)
            return {name: _centre(distribution) for name, distribution in search_space.items()}
        memory, number = self._memory(study), int(suggestion.wanted.parent)
        parent = trials[number] if number < len(trials) else claims.read(study)[number]  # other threads may be faster
        params = {**params_of(parent, floats(memory.mind.space), self.artifact_store), **suggestion.levels}
        memory.steps[trial.number] = _Step(parent, params, suggestion.moved or {})
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the explorer's choice; on a chain the parent's value, if the parent had this parameter."""
        self._raise_error_if_multi_objective(study)
        memory = self._memory(study)
        step = memory.steps.get(trial.number)
        if step is not None and (kept := step.value(param_name, param_distribution)) is not None:
            if param_distribution._contains(param_distribution.to_internal_repr(kept)):
                return kept
            if param_name in step.moved:
                self._leave(study, trial)
        if trial.number in memory.centres:
            return _centre(param_distribution)
        return memory.explorer.sample_independent(study, trial, param_name, param_distribution)

    def proposed_array(self, trial: optuna.Trial, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the array of a trial on a chain; None where all elements have the same value, the level."""
        step = self._memory(trial.study).steps.get(trial.number)
        if step is None:
            return None
        array = step.array(name, shape, self.artifact_store)
        if array is not None and array.shape != shape:
            self._leave(trial.study, trial)
            return None
        return array

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        memory = self._memory(study)
        memory.steps.pop(trial.number, None)
        reported = any(trial.user_attrs.get(key) is not None for key in (attributes.GRADIENT, attributes.COST))
        value = values[0] if state == TrialState.COMPLETE and values else None
        if value is not None and attributes.wanted(trial).wants_gradient(value):
            memory.missing_gradients.check(memory.mind, value, reported=reported)
        others_chose = trial.number in memory.centres or "fixed_params" in trial.system_attrs
        chosen = attributes.wanted(trial).parent is None and not others_chose
        memory.centres.discard(trial.number)
        memory.explorer.after_trial(study, trial, state, values, chosen=chosen)
        may_go_on = memory.mind.goes_on or trial.user_attrs.get(attributes.GRADIENT) is not None
        if memory.explorer.exhausted and not may_go_on:
            with contextlib.suppress(RuntimeError):  # where the user asks and tells, there is no loop to stop
                study.stop()

    def _leave(self, study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
        """Take a trial off its chain, since the objective has changed, so that the trial cannot take its step."""
        memory = self._memory(study)
        memory.steps.pop(trial.number, None)
        attributes.want(study, trial, memory.mind.explore().wanted)

    def _memory(self, study: optuna.Study) -> _Memory:
        with self._lock:
            of_storage = self._memories.setdefault(study._storage, {})
            if study._study_id not in of_storage:
                of_storage[study._study_id] = self._begin(study)
            return of_storage[study._study_id]

    def _begin(self, study: optuna.Study) -> _Memory:
        """Return what is known of a study before any trial is read, with an explorer of its own."""
        explorer = self._explorers.pop(study.study_name, None) or copy.deepcopy(self._explorer)
        remedy = "use hypergrad_optuna.Objective, or call report_gradient(trial, {...}) in the objective"
        return _Memory(
            AskTell.begin({}, self._strategy, maximise=study.directions == [StudyDirection.MAXIMIZE]),
            Explorer(explorer, forgets=not self._own_explorer),
            MissingGradients("HypergradSampler", "objective", explorer, remedy),
            study.study_name,
        )

    def _read(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> _Memory:
        """Return the memory of a study after all its finished trials have been read."""
        with self._lock:
            memory = self._memory(study)
            if not memory.history.belongs_to(trials):
                memory = self._memories[study._storage][study._study_id] = self._begin(study)
            for trial in memory.history.read(trials):
                memory.longest = max(memory.longest, trial.duration or timedelta())
                memory.explorer.remember(trial, maximise=memory.mind.maximise)
            return memory

    def _fold(self, study: optuna.Study, trials: Sequence[FrozenTrial], search_space: SearchSpace) -> AskTell:
        """Return the search after all finished trials; only the new ones are folded, unless the space has changed."""
        with self._lock:
            memory = self._read(study, trials)
            if not memory.history.has_parameters:
                return memory.mind
            shared = memory.history.shared()
            space = space_of(shared, [name for name in search_space if name in shared])
            if memory.mind.space != space:
                memory.mind = AskTell.begin(space, self._strategy, maximise=memory.mind.maximise)
                memory.folded, memory.unusable, memory.since = Seen(), Counter(), len(trials)
            for trial in memory.folded.new(trials):
                try:
                    observation = observe(memory.mind, trial, trials, self.artifact_store)
                except Unusable as why:
                    memory.unusable[str(why)] += trial.state == TrialState.COMPLETE
                    continue
                memory.mind = memory.mind.tell(observation)
                memory.doubts.look_at_value(observation, trial.user_attrs.get(attributes.MESSAGE))
                if trial.user_attrs.get(attributes.STATUS) is None:  # the user's own gradient
                    memory.doubts.look(space, observation, maximise=memory.mind.maximise)
            self._say_what_is_unusable(memory, trials)
            return memory.mind

    def _say_what_is_unusable(self, memory: _Memory, trials: Sequence[FrozenTrial]) -> None:
        unusable, lasting = memory.unusable.total(), len(trials) - memory.since >= BEFORE_A_WARNING
        if memory.warned or not unusable or not lasting or not memory.mind.has_gradients:
            return
        memory.warned = True
        complete = sum(t.state == TrialState.COMPLETE for t in trials)
        reasons = ", ".join(f"{number} {why}" for why, number in memory.unusable.items() if number)
        warnings.warn(
            f"HypergradSampler: {unusable} of {complete} finished trials are not used: {reasons}{see('unusable')}",
            stacklevel=4,
        )

    def _explore(self, study: optuna.Study, trial: FrozenTrial, search_space: SearchSpace) -> dict[str, Any]:
        # The order is that of the objective's suggestions, as it would be under the explorer alone.
        memory = self._memory(study)
        order = sorted(search_space, key=lambda name: memory.history.positions.get(name, 0))
        return memory.explorer.sample(study, trial, search_space, order)


def _centre(distribution: BaseDistribution) -> Any:
    """Return the middle of a distribution's numbers, or the first of its choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, FloatDistribution) and step is None:
        return centre({"": Float(low, high, log=distribution.log)})[""]
    if distribution.log:
        return centre({"": Int(int(low), int(high), log=True)})[""]
    assert step is not None  # only floats have none
    return type(low)(low + int((high - low) / step) // 2 * step)


def sampler_of(owner: optuna.Study | attributes.AnyTrial) -> HypergradSampler | None:
    """Return the `HypergradSampler` of a study or of a trial's study; None for a trial without a study.

    It may be inside another sampler such as `PartialFixedSampler`.
    """
    study = owner if isinstance(owner, optuna.Study) else getattr(owner, "study", None)
    sampler: Any = None if study is None else study.sampler
    while sampler is not None and not isinstance(sampler, HypergradSampler):
        sampler = getattr(sampler, "_base_sampler", None)
    return sampler


def store_of(study: optuna.Study, given: Any | None) -> Any | None:
    """Return the store that holds the arrays of a study: the one that is given, or that of the study's sampler."""
    sampler = sampler_of(study)
    return sampler.artifact_store if given is None and sampler is not None else given
