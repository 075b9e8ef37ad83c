"""`check_gradient` for objectives: it asks one for its value and gradient at a point, without a study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_search import Float, Space
from hypergrad_search.check_gradient import STEPS, GradientCheck, check
from hypergrad_search.checks import shown
from hypergrad_search.nesting import flat
from hypergrad_search.search.ask_tell import Wanted


def check_gradient(
    objective: Callable[[Any], float],
    point: Mapping[str, Any],
    *,
    directions: int = 3,
    steps: Sequence[float] = STEPS,
) -> GradientCheck:
    """Hold the gradient that an objective reports against finite differences of its value.

    It is `hypergrad_search.check_gradient`, which says more about the result, for objectives of Optuna: those that
    call `report_gradient`, and `Objective`. The objective is called with trials of type `optuna.trial.FixedTrial`,
    which have no study, so it must not use `trial.study`.

    Args:
        objective: a function of a trial that returns the value.
        point: all parameters, by name; an array is whole.
        directions: the number of random directions along which all floats move.
        steps: the lengths of the steps, in units of the box between each float's bounds.

    Raises:
        ValueError: an argument does not fit, the objective suggests no floats, or it reports no gradient at the point.

    Example:
        >>> from hypergrad_optuna import check_gradient, report_gradient, wants_gradient
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", 0.0, 1.0)
        ...     value = (x - 0.3) ** 2
        ...     if wants_gradient(trial, value):
        ...         report_gradient(trial, {"x": 2 * (0.3 - x)})
        ...     return value
        >>> print(check_gradient(objective, {"x": 0.8}).directions[0].verdict)
        WRONG SIGN: the gradient says -1, the value changes by 1
    """
    if not callable(objective):
        raise ValueError(f"check_gradient: objective must be a function of a trial, got {objective!r}")
    if not isinstance(point, Mapping):
        raise ValueError(f"check_gradient: point must be a dict from names to values, got {point!r}")
    trial, value = _run(objective, point, Wanted())
    reported = trial.user_attrs.get(attributes.GRADIENT)
    if reported is None:
        raise ValueError(
            "check_gradient: the objective reported no gradient at this point; call report_gradient(trial, {...}) "
            "where wants_gradient(trial, value) is true"
        )

    def value_at(point: dict[str, Any]) -> float:
        return _run(objective, point, Wanted.from_json(None))[1]

    gradient = arrays.decode_all(reported, None)
    point = flat(point)
    return check(value_at, value, gradient, _space(trial), point, directions=directions, steps=steps)


def _run(objective: Callable[[Any], float], point: Mapping[str, Any], wanted: Wanted) -> tuple[FixedTrial, float]:
    trial = FixedTrial(dict(point))
    attributes.flatten_given(trial)
    attributes.want_of(trial, wanted)
    value = objective(trial)
    try:
        return trial, float(value)
    except (TypeError, ValueError):
        raise ValueError(f"check_gradient: objective must return one number, got {shown(value)}") from None


def _space(trial: FixedTrial) -> Space:
    shapes = arrays.shapes(trial)
    return {
        name: Float(d.low, d.high, log=d.log, shape=shapes.get(name, ()))
        for name, d in trial.distributions.items()
        if isinstance(d, FloatDistribution) and d.step is None
    }
