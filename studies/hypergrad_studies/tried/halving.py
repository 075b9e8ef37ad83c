"""Successive halving in the explorer: what it explores trains on only where its loss is among the best so far.

A point that the explorer has chosen stops after a quarter of its steps, and after half of them, unless its loss there
is among the best third of all explored points that came as far. When others have come as far, a point that was stopped
may be among the best third of them, and then it trains on before anything new is explored. That is ASHA (L. Li et al.,
*A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020), with two rungs.

Training is deterministic to the bit, so a stopped run could go on from a checkpoint. Here it trains again from the
start, and is charged only for the steps that it had not trained before.

It changed nothing: so few points are explored that there is little to stop.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes

KEPT = 3  # one of so many goes on

Point = tuple[tuple[str, Any], ...]


def quarter(steps: int) -> int:
    """Return how many steps a quarter of a training run of so many has."""
    return max(steps // 4, 1)


def rungs(steps: int) -> tuple[int, int]:
    """Return after how many steps a training run may be stopped."""
    return quarter(steps), 2 * quarter(steps)


class HalvingPruner(BasePruner):
    """Stops explored trials at the rungs; `steps` is how many a whole training run has."""

    def __init__(self, steps: int) -> None:
        self._rungs = rungs(steps)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is at a rung, and not among the best there."""
        step, finished = trial.last_step, _finished(study)
        if step not in self._rungs or attributes.wanted(trial).parent is not None:
            return False
        return step > _trained(trial, finished) and not _is_promising(trial, step, [*finished, trial])


class HalvingTpe(TPESampler):
    """TPE that lets stopped trials go on where they have become promising."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of the most promising trial that was stopped, or a new one where none is promising."""
        resumed = to_resume(_finished(study))
        return super().sample_relative(study, trial, search_space) if resumed is None else resumed.params

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Take from the cost of a trial that went on what its steps before the stop have cost already."""
        super().after_trial(study, trial, state, values)
        paid = _trained(trial, _finished(study))
        cost = trial.user_attrs.get(attributes.COST)
        if paid and cost is not None:
            study._storage.set_trial_user_attr(trial._trial_id, attributes.COST, cost - paid)


def to_resume(finished: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the stopped trial that may go on and is the best of those that have come farthest; None where none may."""
    newest = {_point(t): t for t in finished}
    stopped = [t for t in newest.values() if t.state is TrialState.PRUNED]
    promising = [t for t in stopped if _is_promising(t, t.last_step or 0, finished)]
    return min(promising, key=lambda t: (-(t.last_step or 0), _loss(t, t.last_step or 0)), default=None)


def _is_promising(trial: FrozenTrial, step: int, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a trial's loss after so many steps is among the best of the explored points that came as far."""
    losses: Mapping[Point, float] = {_point(t): _loss(t, step) for t in trials if step in t.intermediate_values}
    better = sum(loss < _loss(trial, step) for loss in losses.values())
    return better < math.ceil(len(losses) / KEPT)


def _trained(trial: FrozenTrial, finished: Sequence[FrozenTrial]) -> int:
    """Return how many steps the point of a trial had trained before."""
    return max((t.last_step or 0 for t in finished if _point(t) == _point(trial)), default=0)


def _loss(trial: FrozenTrial, step: int) -> float:
    return trial.intermediate_values[step]


def _point(trial: FrozenTrial) -> Point:
    return tuple(sorted(trial.params.items()))


def _finished(study: Study) -> list[FrozenTrial]:
    """Return the finished trials whose points were explored."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study._get_trials(deepcopy=False, states=states, use_cache=False)
    return [t for t in trials if attributes.wanted(t).parent is None]
