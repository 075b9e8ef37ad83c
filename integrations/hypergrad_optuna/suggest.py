"""`suggest_array`: it does for arrays what `trial.suggest_float` does for numbers."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, FrozenTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_optuna.attributes import AnyTrial
from hypergrad_optuna.sampler import sampler_of
from hypergrad_search import Float
from hypergrad_search.space import coordinates, level
from hypergrad_search.trouble import see


def suggest_array(
    trial: AnyTrial, name: str, shape: int | Sequence[int], low: float, high: float, *, log: bool = False
) -> np.ndarray:
    """Suggest an array hyperparameter: a float64 array whose elements are from `low` to `high`, both included.

    With `HypergradSampler` the array is one parameter of the trial, its level, and one attribute, however large it is.
    With any other sampler each coordinate is a parameter, named `name[i,j]`, so that the same objective runs under
    both; beyond some hundreds of coordinates that is slow. `best_hyperparameters(study)` returns the best array.

    An array that is enqueued, as in `study.enqueue_trial({name: [[0.1, 0.2], [0.3, 0.4]]})`, and one in a `FixedTrial`,
    may be whole (a list, where the storage is a database), a number for all its elements, or `name[i,j]` for each. A
    finished trial, such as `study.best_trial`, gives its array again.

    Args:
        trial: the trial that the objective was called with.
        name: the name of the hyperparameter.
        shape: the shape of the array.
        low, high, log: the same as for `trial.suggest_float`.

    Raises:
        ValueError: the bounds or the shape do not fit, or what the user enqueued or fixed is no such array. What is out
            of range is used with a warning, as in Optuna.

    Example:
        >>> from hypergrad_optuna import suggest_array
        >>> trial = study.ask()
        >>> suggest_array(trial, "weights", (5,), 0.0, 1.0).shape
        (5,)
    """
    attributes.check_trial("suggest_array", trial)
    if not isinstance(name, str):
        raise ValueError(f"suggest_array: name must be a string, got {name!r}")
    parameter = Float(low, high, log=log, shape=tuple(shape) if isinstance(shape, Sequence) else (shape,))
    if not parameter.shape:
        raise ValueError("suggest_array: shape must have at least one length, got (); use trial.suggest_float")
    if isinstance(trial, FrozenTrial):
        return recorded_array(trial, name, parameter.shape, None)
    if isinstance(trial, FixedTrial):
        return _fixed(trial, name, parameter)
    sampler = sampler_of(trial)
    store = None if sampler is None else sampler.artifact_store
    recorded = _recorded(trial, name, parameter, store)
    chosen = _given({**trial._fixed_params, **trial.params}, name, parameter) if recorded is None else recorded
    if sampler is None and name not in trial.params:
        suggested = _by_elements(trial, name, parameter, chosen)
        if name in arrays.shapes(trial):  # of the trial that this one is a copy of
            arrays.write(trial, name, parameter, suggested, store)
        return suggested
    if chosen is not None and not np.isscalar(trial._fixed_params.get(name, ())):
        trial._fixed_params = {**trial._fixed_params, name: level(parameter, chosen)}
    number = float(trial.suggest_float(name, low, high, log=log))  # an enqueued trial may have a whole number
    array = chosen
    if array is None and sampler is not None:
        array = sampler.proposed_array(trial, name, parameter.shape)
        if array is not None and not _has_level(parameter, array, number):
            array = None  # the level was fixed by another sampler around this one, or the objective has changed
    if recorded is None:
        arrays.write(trial, name, parameter, array, store)
    return np.full(parameter.shape, number) if array is None else array


def _by_elements(trial: optuna.Trial, name: str, parameter: Float, chosen: np.ndarray | None) -> np.ndarray:
    """Suggest each element as a parameter of its own; `chosen` has their values if the user has chosen them."""
    keys = coordinates(name, parameter.shape)
    if chosen is not None:
        trial._fixed_params = {**trial._fixed_params, **dict(zip(keys, chosen.ravel().tolist(), strict=True))}
    flat = [float(trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)) for key in keys]
    return np.reshape(flat, parameter.shape)


def has_array(trial: FrozenTrial | FixedTrial, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a trial without a study has an array where it may have a number instead."""
    values = trial._params
    whole = arrays.shapes(trial).get(name) == shape or np.shape(values.get(name, ())) == shape
    return whole or all(key in values for key in coordinates(name, shape))


def _recorded(trial: optuna.Trial, name: str, parameter: Float, store: Any | None) -> np.ndarray | None:
    """Return the array that the trial has already, as at a second suggestion, or as the copy of another trial."""
    number = {**trial._fixed_params, **trial.params}.get(name)
    kept = arrays.shapes(trial).get(name) == parameter.shape
    if not kept or not isinstance(number, int | float) or (store is None and arrays.is_stored(trial, name)):
        return None
    array = arrays.read(trial, name, store, level=number)
    return array if _has_level(parameter, array, number) else None


def _has_level(parameter: Float, array: np.ndarray, number: float) -> bool:
    """Return whether an array fits the parameter, and `number` is its level, which bounds may have rounded."""
    within = array.shape == parameter.shape and np.all((parameter.low <= array) & (array <= parameter.high))
    return bool(within and math.isclose(level(parameter, array), number, rel_tol=1e-9, abs_tol=1e-300))


def _given(values: Mapping[str, Any], name: str, parameter: Float) -> np.ndarray | None:
    """Return an array that the user gives whole, by its elements or by its level; None where the user gives none."""
    keys = coordinates(name, parameter.shape)
    if name in values:
        array = np.asarray(values[name], np.float64)
        array = array if array.shape else np.full(parameter.shape, array)
    elif all(key in values for key in keys):
        array = np.reshape([float(values[key]) for key in keys], parameter.shape)
    else:
        return None
    if array.shape != parameter.shape or not np.isfinite(array).all():
        raise ValueError(
            f"suggest_array: the user's {name!r} must be a number, or an array of shape {parameter.shape}, "
            f"got {values.get(name, array)!r}"
        )
    within = np.all((parameter.low <= array) & (array <= parameter.high))
    if not within and not np.isscalar(values.get(name, array)):  # of a number Optuna warns itself
        warnings.warn(
            f"suggest_array: the user's {name!r} is out of range, from {array.min():.6g} to {array.max():.6g} where "
            f"{parameter.low!r} to {parameter.high!r} is allowed",
            stacklevel=3,
        )
    return array


def recorded_array(trial: FrozenTrial, name: str, shape: tuple[int, ...], store: Any | None) -> np.ndarray:
    """Return an array of a finished trial; raise `ValueError` where it has none, or `store` is needed and None."""
    try:
        array = arrays.find(trial, name, shape, store)
    except arrays.StoreMissing:
        raise ValueError(
            f"trial {trial.number} has {name!r} as an artifact; give Objective the artifact_store, or call it "
            f"with FixedTrial(hyperparameters_of(trial, artifact_store=...)){see('store')}"
        ) from None
    if array is None:
        raise ValueError(f"trial {trial.number} has no array {name!r} of shape {shape}")
    return array


def _fixed(trial: FixedTrial, name: str, parameter: Float) -> np.ndarray:
    array = _given(trial._params, name, parameter)
    if array is None:
        raise ValueError(
            f"suggest_array: FixedTrial has no {name!r}; give an array of shape {parameter.shape}, or a number for all "
            "its elements"
        )
    arrays.write(trial, name, parameter, array, None)
    trial._distributions[name] = FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    return array
