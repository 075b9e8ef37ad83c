"""What a study's finished trials tell the search: the parameters that they share, and an observation of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import arrays, attributes
from hypergrad_search import Float
from hypergrad_search.search import Observation
from hypergrad_search.search.ask_tell import AskTell, Outcome
from hypergrad_search.space import coordinates, floats, level

#: A parameter that a trial lacks may belong to a branch of the objective. It has to stay for as many trials as this,
#: for each that lacked it, before it counts as one that trials share.
STAY_AFTER_A_GAP = 10

#: a distribution, and the shape of the array whose level it is of
Kind = tuple[BaseDistribution, tuple[int, ...]]


@dataclass
class _Stay:
    """How long a parameter has been as it is.

    `trials` counts the newest trials in a row that have it so, `changes` how often its bounds or its shape changed, and
    `gaps` the trials that lacked it.
    """

    kind: Kind
    trials: int = 0
    changes: int = 0
    gaps: int = 0

    @property
    def settled(self) -> bool:
        """Whether it has stayed for as long as one can expect it to stay, judging by the past."""
        return self.trials >= max(1, self.changes, STAY_AFTER_A_GAP * self.gaps)


@dataclass
class _Shared:
    """The parameters that some trials share, as the newest of them have them."""

    parameters: dict[str, _Stay] = field(default_factory=dict)

    def add(self, trial: FrozenTrial) -> None:
        shapes = arrays.shapes(trial)
        for name, distribution in trial.distributions.items():
            kind = distribution, shapes.get(name, ())
            stay = self.parameters.setdefault(name, _Stay(kind))
            if stay.kind != kind:
                stay.kind, stay.trials, stay.changes = kind, 0, stay.changes + 1
            stay.trials += 1
        for name in self.parameters.keys() - trial.distributions.keys():
            stay = self.parameters[name]
            stay.trials, stay.gaps = 0, stay.gaps + 1


@dataclass
class Seen:
    """The finished trials that have been seen; those numbered below `settled` all have, and are not looked at again."""

    settled: int = 0
    _beyond: set[int] = field(default_factory=set)

    def new(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that have finished since the last call, in their order; they have now been seen."""
        found = in_order([t for t in trials[self.settled :] if t.state.is_finished() and t.number not in self._beyond])
        self._beyond |= {trial.number for trial in found}
        while self.settled in self._beyond:
            self._beyond.remove(self.settled)
            self.settled += 1
        return found


@dataclass
class History:
    """The finished trials of a study, as far as they have been read; storage alone is the source of truth.

    The space is that of the newest trials. Older ones whose bounds were others do not shape it, and neither do trials
    that other samplers ran, once there are own ones; all whose points fit into it are observations nevertheless.

    `ends` are the trial of the lowest number that was read, and the one that was read last. `positions` has the place
    of each parameter in the newest trial that has it.
    """

    seen: Seen = field(default_factory=Seen)
    ends: tuple[FrozenTrial, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    _shared: dict[tuple[bool, bool], _Shared] = field(default_factory=dict)

    def read(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Read the trials that have finished since the last call, and return them in their order."""
        new = self.seen.new(trials)
        if new:
            self.ends = min([*self.ends, *new], key=lambda t: t.number), new[-1]
        for trial in sorted(new, key=lambda t: t.number):
            self.positions |= {name: place for place, name in enumerate(trial.params)}
        for trial in new:
            if trial.state != TrialState.FAIL and trial.distributions:
                kind = attributes.own(trial), trial.state == TrialState.COMPLETE
                self._shared.setdefault(kind, _Shared()).add(trial)
        return new

    def belongs_to(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether this is the history of these trials, not of a study that was deleted and made anew.

        Two trials tell, by when they began and ended. Another thread may have read them before they had.
        """
        pairs = [(trials[end.number], end) for end in self.ends if end.number < len(trials)]
        return bool(pairs or not self.ends) and all(
            now.datetime_start in (None, end.datetime_start) and now.datetime_complete in (None, end.datetime_complete)
            for now, end in pairs
        )

    @property
    def has_parameters(self) -> bool:
        """Whether any trial says which parameters there are."""
        return bool(self._shared)

    def shared(self) -> dict[str, Kind]:
        """Return the parameters that trials share, sorted by name."""
        if not self._shared:
            return {}
        parameters = self._shared[max(self._shared)].parameters
        return {
            name: stay.kind for name, stay in sorted(parameters.items()) if stay.settled and not stay.kind[0].single()
        }


def in_order(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return finished trials in the order in which they ended, each after its parent, whatever the clocks say."""
    ended: dict[int, datetime] = {}
    by_number = sorted(trials, key=lambda t: t.number)  # a parent has a lower number
    for trial in by_number:
        end, parent = trial.datetime_complete or datetime.max, attributes.wanted(trial).parent
        ended[trial.number] = end if parent is None else max(end, ended.get(int(parent), end))
    return sorted(by_number, key=lambda t: (ended[t.number], t.number))


class Unusable(Exception):
    """A trial tells the search nothing; the message goes on after "10 trials ..."."""


def space_of(kinds: Mapping[str, Kind], names: Iterable[str]) -> dict[str, Float]:
    """Return the floats among the named parameters, which follow gradients."""
    space = {}
    for name in names:
        distribution, shape = kinds[name]
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            space[name] = Float(distribution.low, distribution.high, log=distribution.log, shape=shape)
    return space


def observe(mind: AskTell, trial: FrozenTrial, trials: Sequence[FrozenTrial], store: Any | None) -> Observation:
    """Return the observation of a finished trial; raise `Unusable` where it does not fit the present space."""
    try:
        wanted, space = attributes.wanted(trial), floats(mind.space)
        feasible = trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.constraints.values())
        begun = Observation(
            trial=str(trial.number),
            parent=wanted.parent,
            hyperparameters=_hyperparameters(trial, space, store),
            # Another sampler around this one, such as PartialFixedSampler, may have changed some parameters.
            left_out=wanted.left_out,
            variant=wanted.variant,
            again=wanted.again and params_of(trials[int(wanted.parent or 0)], space, store) == trial.params,
            unasked=not attributes.own(trial),
        )
        reported = trial.user_attrs
        outcome = Outcome(
            value=trial.value if feasible else None,
            gradient=arrays.decode_all(reported.get(attributes.GRADIENT) or {}, store),
            cost=reported.get(attributes.COST),
            held_back=reported.get(attributes.HELD_BACK),
            blocks=reported.get(attributes.BLOCKS),
            cross_validated=reported.get(attributes.CROSS_VALIDATED),
            refined=arrays.decode_all(reported.get(attributes.REFINED) or {}, store),
            status=reported.get(attributes.STATUS),
            deterministic=reported.get(attributes.DETERMINISTIC),
            trust=reported.get(attributes.TRUST),
        )
    except (arrays.StoreMissing, ArtifactNotFound):
        raise Unusable("have arrays that artifact_store does not hold") from None
    return mind.read(begun, outcome)


def params_of(trial: FrozenTrial, space: Mapping[str, Float], store: Any | None) -> dict[str, Any]:
    """Return a finished trial's parameters as this sampler gives them: for each array of the space its level."""
    missing = {name: p for name, p in space.items() if p.shape and name not in trial.params}
    found = {name: arrays.find(trial, name, p.shape, store) for name, p in missing.items()}
    elements = {key for name, p in missing.items() for key in coordinates(name, p.shape)}
    own = {name: value for name, value in trial.params.items() if name not in elements}
    return {**own, **{name: level(space[name], array) for name, array in found.items() if array is not None}}


def _hyperparameters(trial: FrozenTrial, space: Mapping[str, Float], store: Any | None) -> dict[str, Any]:
    """Return the values of a space's floats in a trial; raise `Unusable` where one is missing or out of its bounds."""
    shapes, values = arrays.shapes(trial), {}
    for name, p in space.items():
        value = arrays.find(trial, name, p.shape, store) if p.shape else trial.params.get(name)
        if value is None or (not p.shape and name in shapes):
            raise Unusable(f"have {name!r} in another shape" if name in trial.params else f"lack {name!r}")
        if not np.all((p.low <= value) & (value <= p.high)):
            raise Unusable("lie outside of the present bounds")
        values[name] = value
    return values
