"""`suggest_array`: what `trial.suggest_float` is to a number."""

from collections.abc import Sequence

import numpy as np
import optuna

from hypergrad_optuna import arrays
from hypergrad_optuna.sampler import sampler_of
from hypergrad_search import Float
from hypergrad_search.space import coordinates, level


def suggest_array(
    trial: optuna.Trial, name: str, shape: int | Sequence[int], low: float, high: float, *, log: bool = False
) -> np.ndarray:
    """Suggest an array hyperparameter: a float64 array whose elements are from `low` to `high`, both included.

    With `HypergradSampler` it is one parameter of the trial, the array's level, and one attribute, however large it is.
    With any other sampler it is one `suggest_float` for each coordinate, named `name[i,j]`, so that the same objective
    runs under both; beyond some hundreds of coordinates that is slow. `best_hyperparameters(study)` reads it back.

    Args:
        trial: the trial that the objective was called with.
        name: of the hyperparameter.
        shape: of the array.
        low, high, log: as for `trial.suggest_float`.

    Raises:
        ValueError: the bounds or the shape do not fit.
    """
    parameter = Float(low, high, log=log, shape=tuple(shape) if isinstance(shape, Sequence) else (shape,))
    if not parameter.shape:
        raise ValueError("suggest_array: shape must have at least one length, got (); use trial.suggest_float")
    sampler = sampler_of(trial.study)
    if sampler is None:
        flat = [trial.suggest_float(n, low, high, log=log) for n in coordinates(name, parameter.shape)]
        return np.reshape(flat, parameter.shape)
    number = trial.suggest_float(name, low, high, log=log)
    array = sampler.proposed_array(trial, name)
    if array is not None and (array.shape != parameter.shape or level(parameter, array) != number):
        array = None  # the level was fixed by the user, or the objective has changed
    if arrays.PREFIX + name not in trial.user_attrs:
        arrays.write(trial, name, parameter, array, sampler.artifact_store)
    return np.full(parameter.shape, number) if array is None else array
