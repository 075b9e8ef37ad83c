"""The attributes of a trial through which sampler and objective talk; they work in every storage."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays
from hypergrad_search.search.strategy import Proposal

PARENT = "hypergrad:parent"
GRADIENT_BELOW = "hypergrad:gradient_below"
HELD_BACK_BELOW = "hypergrad:held_back_below"
HELD_BACK = "hypergrad:held_back_loss"
GRADIENT = "hypergrad:gradient"
COST = "hypergrad:cost"

Trial = optuna.Trial | FrozenTrial


def propose(study: optuna.Study, trial: FrozenTrial, proposal: Proposal) -> None:
    """Note what a trial is for, before it runs; an infinite threshold is stored as text, since JSON has no infinity."""
    study._storage.set_trial_system_attr(trial._trial_id, PARENT, proposal.parent)
    study._storage.set_trial_system_attr(trial._trial_id, GRADIENT_BELOW, _json(proposal.gradient_below))
    study._storage.set_trial_system_attr(trial._trial_id, HELD_BACK_BELOW, _json(proposal.held_back_below))


def parent(trial: optuna.Trial) -> FrozenTrial | None:
    """The trial whose chain this one extends; None where a global sampler chose it."""
    number = _system_attributes(trial).get(PARENT)
    if number is None:
        return None
    return trial.storage.get_trial(
        trial.storage.get_trial_id_from_study_id_trial_number(trial.study._study_id, int(number))
    )


def gradient_below(trial: Trial) -> float:
    """The loss below which `HypergradSampler` wants this trial's gradient; -inf under any other sampler."""
    attributes = _system_attributes(trial)
    return float(attributes.get(GRADIENT_BELOW, -math.inf))


def held_back_below(trial: Trial) -> float:
    """The held-back loss from which on this trial has failed."""
    return float(_system_attributes(trial).get(HELD_BACK_BELOW, math.inf))


def gradient(trial: FrozenTrial, store: Any | None) -> dict[str, Any] | None:
    """What `report_gradient` wrote: a number or an array for each name; None where it was not called."""
    reported = trial.user_attrs.get(GRADIENT)
    return None if reported is None else arrays.decode_all(reported, store)


def loss(direction: StudyDirection, value: float) -> float:
    """An objective value as something to minimise."""
    return -value if direction == StudyDirection.MAXIMIZE else value


def _json(threshold: float) -> float | str:
    return threshold if math.isfinite(threshold) else str(threshold)


def _system_attributes(trial: Trial) -> Mapping[str, Any]:
    if isinstance(trial, FrozenTrial):
        return trial.system_attrs
    return trial.storage.get_trial_system_attrs(trial._trial_id)
