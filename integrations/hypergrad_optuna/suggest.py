"""`suggest_array`: it does for arrays what `trial.suggest_float` does for numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, FrozenTrial

from hypergrad_optuna import arrays
from hypergrad_optuna.attributes import AnyTrial
from hypergrad_optuna.sampler import sampler_of
from hypergrad_search import Float
from hypergrad_search.space import coordinates, level


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
        ValueError: the bounds or the shape do not fit, or neither does what the user enqueued or fixed.
    """
    parameter = Float(low, high, log=log, shape=tuple(shape) if isinstance(shape, Sequence) else (shape,))
    if not parameter.shape:
        raise ValueError("suggest_array: shape must have at least one length, got (); use trial.suggest_float")
    if isinstance(trial, FrozenTrial):
        return recorded_array(trial, name, parameter.shape, None)
    if isinstance(trial, FixedTrial):
        return _fixed(trial, name, parameter)
    sampler = sampler_of(trial)
    enqueued, by_level = _given(trial._fixed_params, name, parameter), np.isscalar(trial._fixed_params.get(name))
    if sampler is None:
        keys = coordinates(name, parameter.shape)
        if enqueued is not None:
            trial._fixed_params = {**trial._fixed_params, **dict(zip(keys, enqueued.ravel().tolist(), strict=True))}
        return np.reshape([float(trial.suggest_float(key, low, high, log=log)) for key in keys], parameter.shape)
    if enqueued is not None:
        trial._fixed_params = {**trial._fixed_params, name: level(parameter, enqueued)}
    number = float(trial.suggest_float(name, low, high, log=log))  # an enqueued trial may have a whole number
    if enqueued is None or by_level:
        array = _before(trial, name, parameter, number, sampler.artifact_store)
        if array is not None:
            return array
    array = sampler.proposed_array(trial, name, parameter.shape) if enqueued is None else enqueued
    if array is not None and not _has_level(parameter, array, number):
        array = None  # the level was fixed by the user, or the objective has changed
    arrays.write(trial, name, parameter, array, sampler.artifact_store)
    return np.full(parameter.shape, number) if array is None else array


def has_array(trial: FrozenTrial | FixedTrial, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a trial without a study has an array where it may have a number instead."""
    values = trial._params
    whole = arrays.shapes(trial).get(name) == shape or np.shape(values.get(name, ())) == shape
    return whole or all(key in values for key in coordinates(name, shape))


def _before(trial: optuna.Trial, name: str, parameter: Float, number: float, store: Any | None) -> np.ndarray | None:
    """Return the array that the trial has already, as at a second suggestion, or as the copy of another trial."""
    if arrays.shapes(trial).get(name) != parameter.shape:
        return None
    array = arrays.read(trial, name, store)
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
    if array.shape != parameter.shape or not np.all((parameter.low <= array) & (array <= parameter.high)):
        raise ValueError(
            f"suggest_array: the user's {name!r} must be a number, or an array of shape {parameter.shape}, from "
            f"{parameter.low!r} to {parameter.high!r}, got {values.get(name, array)!r}"
        )
    return array


def recorded_array(trial: FrozenTrial, name: str, shape: tuple[int, ...], store: Any | None) -> np.ndarray:
    """Return an array of a finished trial; raise `ValueError` where it has none, or `store` is needed and None."""
    try:
        array = arrays.find(trial, name, shape, store)
    except arrays.StoreMissing:
        raise ValueError(
            f"trial {trial.number} has {name!r} as an artifact; give Objective the artifact_store, or call it "
            "with FixedTrial(hyperparameters_of(trial, artifact_store=...))"
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
    return array
