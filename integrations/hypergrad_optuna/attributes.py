"""The attributes of a trial through which sampler and objective talk; they work in every storage."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays

PARENT = "hypergrad:parent"
GRADIENT_BELOW = "hypergrad:gradient_below"
GRADIENT = "hypergrad:gradient"
COST = "hypergrad:cost"

Trial = optuna.Trial | FrozenTrial


def propose(study: optuna.Study, trial: FrozenTrial, parent: str | None, gradient_below: float) -> None:
    """Note what a trial is for, before it runs; an infinite threshold is stored as None, which is valid JSON."""
    threshold = gradient_below if math.isfinite(gradient_below) else None
    study._storage.set_trial_system_attr(trial._trial_id, PARENT, parent)
    study._storage.set_trial_system_attr(trial._trial_id, GRADIENT_BELOW, threshold)


def gradient_below(trial: Trial) -> float:
    """The loss below which `HypergradSampler` wants this trial's gradient; -inf under any other sampler."""
    attributes = _system_attributes(trial)
    if GRADIENT_BELOW not in attributes:
        return -math.inf
    threshold = attributes[GRADIENT_BELOW]
    return math.inf if threshold is None else threshold


def gradient(trial: FrozenTrial, store: Any | None) -> dict[str, Any] | None:
    """What `report_gradient` wrote: a number or an array for each name; None where it was not called."""
    reported = trial.user_attrs.get(GRADIENT)
    if reported is None:
        return None
    return {n: arrays.decode(g, store) if isinstance(g, dict) else g for n, g in reported.items()}


def loss(direction: StudyDirection, value: float) -> float:
    """An objective value as something to minimise."""
    return -value if direction == StudyDirection.MAXIMIZE else value


def _system_attributes(trial: Trial) -> Mapping[str, Any]:
    if isinstance(trial, FrozenTrial):
        return trial.system_attrs
    return trial.storage.get_trial_system_attrs(trial._trial_id)
