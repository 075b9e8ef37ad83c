"""The attributes of a trial through which sampler and objective talk; they work in every storage."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

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


def wants_gradient(trial: optuna.Trial, value: float) -> bool:
    """Whether `HypergradSampler` would use the gradient of this trial, whose objective value came out as `value`.

    For objectives that compute gradients themselves: a gradient costs several times a value, and that of a step that
    failed is worth nothing. Always False under another sampler.
    """
    return loss(trial.study.direction, value) < gradient_below(trial)


def report_gradient(trial: optuna.Trial, gradient: Mapping[str, float], *, cost: float | None = None) -> None:
    """Tell `HypergradSampler` the gradient of the objective at this trial's parameters.

    Args:
        trial: the trial that the objective was called with.
        gradient: the derivative with respect to each float parameter, by its name and in its own units (not its
            logarithm's); of the objective itself, whether it is minimised or maximised.
        cost: what the trial took in all, in any unit that is the same for all trials; by default 4 where there is a
            gradient and 1 where there is none.

    Raises:
        ValueError: a name is no parameter of the trial, or a derivative is not a number.
    """
    unknown = sorted(set(gradient) - set(trial.params))
    if unknown:
        raise ValueError(
            f"report_gradient: {unknown} are no parameters of this trial, which has {sorted(trial.params)}; "
            "suggest them first"
        )
    try:
        plain = {name: float(derivative) for name, derivative in gradient.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"report_gradient: every derivative must be a number, got {dict(gradient)!r}") from error
    trial.set_user_attr(GRADIENT, plain)
    if cost is not None:
        trial.set_user_attr(COST, float(cost))


def loss(direction: StudyDirection, value: float) -> float:
    """An objective value as something to minimise."""
    return -value if direction == StudyDirection.MAXIMIZE else value


def _system_attributes(trial: Trial) -> Mapping[str, Any]:
    if isinstance(trial, FrozenTrial):
        return trial.system_attrs
    return trial.storage.get_trial_system_attrs(trial._trial_id)
