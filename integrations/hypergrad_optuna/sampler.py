"""`HypergradSampler`: Optuna's side of the search strategy. It translates, and decides nothing itself."""

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import arrays, attributes, refined
from hypergrad_search import Float
from hypergrad_search.search import strategy
from hypergrad_search.search.observation import Observation
from hypergrad_search.space import floats, from_unit, level

# Who works on a step for longer than twice the longest trial so far, and this long, has been killed.
PATIENCE = timedelta(seconds=5)


@dataclass
class _Memory:
    """What one study's history came to, so that it need not be folded again; never a source of truth."""

    search_space: IntersectionSearchSpace = field(default_factory=lambda: IntersectionSearchSpace(include_pruned=True))
    state: strategy.State | None = None
    folded: set[int] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    longest: timedelta = timedelta()  # that a finished trial has taken


@dataclass(frozen=True)
class _Step:
    """What a trial on a chain is to have: parameters, of arrays the level; and the arrays themselves."""

    params: dict[str, Any]
    arrays: dict[str, np.ndarray]


class HypergradSampler(BaseSampler):
    """Sample where the gradient of the objective points, taking turns with a global sampler.

    Floats follow gradients, which `Objective` or `report_gradient` provide; so do the arrays of `suggest_array`, which
    are one number each until then. Integers, categoricals, floats with a step, and whatever the gradient has no say in
    go to `independent_sampler`, and are held along a chain. Where no trial has reported a gradient it behaves as that
    sampler, and warns once. A trial that was pruned, failed or violates a constraint (`trial.set_constraint`, or
    `constraints_func` of the global sampler) is a step that failed. Any number of processes can share a study: all that
    the search knows is read from the study's trials. Who has worked on a step for longer than twice the longest trial
    so far is taken to have been killed, and the step is given to the next who asks.

    Args:
        independent_sampler: the global sampler; Optuna's `TPESampler` by default.
        seed: of the default global sampler; the rest of the search is deterministic.
        artifact_store: one of `optuna.artifacts`, to hold array hyperparameters, their gradients, and the checkpoints
            of `Hypernet`. By default they are attributes of the trials, in base64, which every storage takes up to
            tens of megabytes, except MySQL (64 KiB) and the gRPC proxy (4 MiB). Give all processes of a study the same.

    Not for several objectives (`ValueError`).
    """

    def __init__(
        self,
        *,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
        artifact_store: Any | None = None,
    ) -> None:
        if independent_sampler is not None and seed is not None:
            raise ValueError("HypergradSampler: give the seed to independent_sampler, or leave that out")
        self._independent_sampler = independent_sampler or TPESampler(seed=seed)
        self.artifact_store = artifact_store
        self._steps: dict[tuple[int, int], _Step] = {}  # of running trials, by study and number
        self._memories: dict[tuple[int, int], _Memory] = {}
        self._lock = threading.RLock()
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_memories": {}, "_steps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def reseed_rng(self) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self._independent_sampler.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that all finished trials have in common."""
        with self._lock:
            space = self._memory(study).search_space.calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A step along a gradient, or the global sampler's choice."""
        self._raise_error_if_multi_objective(study)
        trials, state, proposal = self._claim(study, trial, search_space)
        if proposal.point is None or proposal.parent is None or "fixed_params" in trial.system_attrs:
            attributes.propose(study, trial, replace(proposal, parent=None, held_back_below=math.inf))
            return self._sample_globally(study, trial, trials, search_space)
        parent = trials[int(proposal.parent)]
        chosen = {} if proposal.again else from_unit(state.space, proposal.point)
        new = {name: value for name, value in chosen.items() if isinstance(value, np.ndarray)}
        levels = {name: level(floats(state.space)[name], array) for name, array in new.items()}
        held = {name: arrays.read(parent, name, self.artifact_store) for name in arrays.shapes(parent)}
        step = _Step({**parent.params, **chosen, **levels}, {**held, **new})
        with self._lock:
            self._steps[study._study_id, trial.number] = step
        return {name: step.params[name] for name in search_space}

    def proposed_array(self, trial: optuna.Trial, name: str) -> np.ndarray | None:
        """The array that a trial on a chain is to have; None where all elements are to be at its level."""
        step = self._steps.get((trial.study._study_id, trial.number))
        return None if step is None else step.arrays.get(name)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The global sampler's choice; on a chain what the parent had, where it had this parameter."""
        self._raise_error_if_multi_objective(study)
        step = self._steps.get((study._study_id, trial.number))
        if step is not None and param_name in step.params:
            held = step.params[param_name]
            if param_distribution._contains(param_distribution.to_internal_repr(held)):
                return held
        return self._independent_sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        if "fixed_params" in trial.system_attrs:  # enqueued: where all is fixed, nothing else is asked of a sampler
            state = self._memory(study).state or strategy.State({})
            attributes.propose(study, trial, strategy.explore(state))
        self._independent_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        with self._lock:
            self._steps.pop((study._study_id, trial.number), None)
        silent = attributes.GRADIENT not in trial.user_attrs and attributes.COST not in trial.user_attrs
        asked = attributes.gradient_below(trial) == math.inf
        if state == TrialState.COMPLETE and asked and silent and not self._warned:
            self._warned = True
            warnings.warn(
                "HypergradSampler: the objective reported no gradient, so this search is "
                f"{type(self._independent_sampler).__name__}'s alone; use hypergrad_optuna.Objective, or call "
                "report_gradient(trial, {...}) in the objective",
                stacklevel=2,
            )
        self._independent_sampler.after_trial(study, trial, state, values)

    def _memory(self, study: optuna.Study) -> _Memory:
        return self._memories.setdefault((id(study._storage), study._study_id), _Memory())

    def _claim(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> tuple[list[FrozenTrial], strategy.State, strategy.Proposal]:
        """A proposal that no other process is working on.

        The claim is written, and then looked at again: of two processes that claim the same step at once, at least one
        sees the other's claim, and chooses anew.
        """
        while True:
            trials, state, claims = self._read(study, trial, search_space)
            proposal = strategy.propose(state, claims)
            attributes.propose(study, trial, proposal)
            if proposal.parent is None:
                return trials, state, proposal
            _, _, claims = self._read(study, trial, search_space)
            if proposal.parent not in claims:
                return trials, state, proposal

    def _read(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> tuple[list[FrozenTrial], strategy.State, list[str | None]]:
        """The trials as they stand in storage, what they come to, and the parents that others are extending."""
        trials = study._get_trials(deepcopy=False, use_cache=False)
        state = self._fold(study, trials, search_space)
        earliest = datetime.now() - max(2 * self._memory(study).longest, PATIENCE)
        claims = [
            t.system_attrs[attributes.PARENT]
            for t in trials
            if t.state == TrialState.RUNNING
            and attributes.PARENT in t.system_attrs
            and t.number != trial.number
            and (t.datetime_start is None or t.datetime_start > earliest)
        ]
        return trials, state, claims

    def _fold(
        self, study: optuna.Study, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution]
    ) -> strategy.State:
        """The state that the finished trials come to; only those that are new are folded."""
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
            if memory.state is None or memory.state.space != space:
                memory.state, memory.folded = strategy.State(space), set()
                new = [t for t in trials if t.state.is_finished()]
            for trial in sorted(new, key=lambda t: (t.datetime_complete, t.number)):
                memory.folded.add(trial.number)
                memory.longest = max(memory.longest, trial.duration or timedelta())
                if _fits(trial, space):
                    memory.state = strategy.fold(memory.state, self._observe(study, trial, space))
            return memory.state

    def _observe(self, study: optuna.Study, trial: FrozenTrial, space: Mapping[str, Float]) -> Observation:
        sign = attributes.loss(study.direction, 1.0)
        feasible = trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.constraints.values())
        value = sign * trial.value if feasible and trial.value is not None else math.inf
        reported = attributes.gradient(trial, self.artifact_store)
        return Observation(
            trial=str(trial.number),
            parent=trial.system_attrs.get(attributes.PARENT),
            hyperparameters=self._floats(trial, space),
            value=value,
            gradient=None if reported is None else {n: sign * reported.get(n, np.zeros(space[n].shape)) for n in space},
            cost=trial.user_attrs.get(attributes.COST, 1.0 if reported is None else strategy.GRADIENT_COST),
            held_back=trial.user_attrs.get(attributes.HELD_BACK),
            refined=refined.hyperparameters(trial, self.artifact_store),
        )

    def _floats(self, trial: FrozenTrial, space: Mapping[str, Float]) -> dict[str, Any]:
        """A trial's numbers and arrays."""
        return {
            name: arrays.read(trial, name, self.artifact_store) if parameter.shape else trial.params[name]
            for name, parameter in space.items()
        }

    def _sample_globally(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        sampler = self._independent_sampler
        jointly = sampler.infer_relative_search_space(study, trial)
        sampled = sampler.sample_relative(study, trial, jointly)
        # in the order in which the objective suggests, which is what the sampler alone would see
        order = {name: i for t in trials if t.state.is_finished() for i, name in enumerate(t.params)}
        for name in sorted(search_space, key=lambda name: order.get(name, 0)):
            if name not in sampled:
                sampled[name] = sampler.sample_independent(study, trial, name, search_space[name])
        return {name: sampled[name] for name in search_space}


def _fits(trial: FrozenTrial, space: Mapping[str, Float]) -> bool:
    """Whether a trial has all floats of a space, as numbers or arrays of the same shape."""
    shapes = arrays.shapes(trial)
    return all(name in trial.params and shapes.get(name, ()) == p.shape for name, p in space.items())


def sampler_of(study: optuna.Study) -> HypergradSampler | None:
    """The `HypergradSampler` of a study, perhaps inside another sampler such as `PartialFixedSampler`."""
    sampler: Any = study.sampler
    while sampler is not None and not isinstance(sampler, HypergradSampler):
        sampler = getattr(sampler, "_base_sampler", None)
    return sampler
