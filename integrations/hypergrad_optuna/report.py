"""`wants_gradient` and `report_gradient`, for objectives that compute gradients themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_optuna.attributes import AnyTrial
from hypergrad_optuna.sampler import sampler_of
from hypergrad_search.checks import number, shown
from hypergrad_search.hosting import joined


def wants_gradient(trial: AnyTrial, value: float) -> bool:
    """Return whether `HypergradSampler` would use the gradient of this trial, whose value came out as `value`.

    Call it in objectives that compute gradients themselves: a gradient costs several times as much as a value, and the
    gradient of a failed step is worth nothing. The result is always False under another sampler, and for a trial
    without a study, such as `study.best_trial`.

    Example:
        >>> from hypergrad_optuna import wants_gradient
        >>> trial = study.ask()
        >>> wants_gradient(trial, float("nan"))
        False
    """
    attributes.check_trial("wants_gradient", trial)
    return not isinstance(trial, FrozenTrial) and attributes.wanted(trial).wants_gradient(value)


def report_gradient(trial: AnyTrial, gradient: Mapping[str, Any], *, cost: float | None = None) -> None:
    """Tell `HypergradSampler` the gradient of the objective at this trial's parameters.

    A finished trial, such as `study.best_trial`, stays as it is.

    Args:
        trial: the trial that the objective was called with.
        gradient: by name the derivative of the objective itself, whether it is minimised or maximised, with respect to
            each float parameter in its own units (not in the logarithm's). It is an array of the same shape for an
            array of `suggest_array`. A parameter that is left out has the derivative 0.
        cost: the whole cost of the trial, in any unit that is the same for all trials; by default 4 where there is a
            gradient and 1 where there is none.

    Raises:
        ValueError: an argument is of another kind, a name is not a parameter of the trial, or a derivative is not a
            number or has another shape.

    Example:
        >>> import optuna
        >>> from hypergrad_optuna import HypergradSampler, report_gradient, wants_gradient
        >>> def squared(trial):
        ...     u = trial.suggest_float("u", 0.0, 1.0)
        ...     value = (u - 0.3) ** 2
        ...     if wants_gradient(trial, value):
        ...         report_gradient(trial, {"u": 2 * (u - 0.3)})
        ...     return value
        >>> by_hand = optuna.create_study(sampler=HypergradSampler(seed=0))
        >>> by_hand.optimize(squared, n_trials=10)
        >>> by_hand.best_value < 1e-3
        True
    """
    attributes.check_trial("report_gradient", trial)
    if not isinstance(gradient, Mapping):
        raise ValueError(f"report_gradient: gradient must be a dict from names to derivatives, got {shown(gradient)}")
    if cost is not None:
        cost = number("report_gradient: cost", cost, 0)
    known = {name: np.shape(value) for name, value in joined(trial.params).items()}
    known |= arrays.shapes(trial)
    derivatives = {name: _checked(known, name, derivative) for name, derivative in gradient.items()}
    if isinstance(trial, FrozenTrial):
        return
    sampler = sampler_of(trial)
    store = None if sampler is None else sampler.artifact_store
    trial.set_user_attr(attributes.GRADIENT, arrays.encode_all(derivatives, "<f4", trial, store))
    if cost is not None:
        trial.set_user_attr(attributes.COST, cost)


def _checked(known: Mapping[str, tuple[int, ...]], name: str, derivative: Any) -> Any:
    if name not in known:
        raise ValueError(
            f"report_gradient: {name!r} is no parameter of this trial, which has {sorted(known)}; suggest it first"
        )
    try:
        if derivative is None:
            raise TypeError("None is no number, though numpy takes it for NaN")
        values = np.asarray(derivative, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"report_gradient: every derivative must be a number, got {derivative!r}") from error
    if values.shape != known[name]:
        raise ValueError(
            f"report_gradient: the derivative of {name!r} must have shape {known[name]}, got {values.shape}"
        )
    return values if values.shape else float(values)
