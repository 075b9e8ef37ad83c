"""`suggest_array`: it does for arrays what `trial.suggest_float` does for numbers."""

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

    With `HypergradSampler` the array is one parameter of the trial, its level, and one attribute, however large it is.
    With any other sampler each coordinate is a parameter, named `name[i,j]`, so that the same objective runs under
    both; beyond some hundreds of coordinates that is slow. `best_hyperparameters(study)` returns the best array.

    Args:
        trial: the trial that the objective was called with.
        name: the name of the hyperparameter.
        shape: the shape of the array.
        low, high, log: the same as for `trial.suggest_float`.

    Raises:
        ValueError: the bounds or the shape do not fit.
    """
    parameter = Float(low, high, log=log, shape=tuple(shape) if isinstance(shape, Sequence) else (shape,))
    if not parameter.shape:
        raise ValueError("suggest_array: shape must have at least one length, got (); use trial.suggest_float")
    sampler = sampler_of(trial.study)
    if sampler is None:
        flat = [float(trial.suggest_float(n, low, high, log=log)) for n in coordinates(name, parameter.shape)]
        return np.reshape(flat, parameter.shape)
    number = float(trial.suggest_float(name, low, high, log=log))  # an enqueued trial may have a whole number
    array = sampler.proposed_array(trial, name)
    if array is not None and (array.shape != parameter.shape or level(parameter, array) != number):
        array = None  # the level was fixed by the user, or the objective has changed
    if arrays.PREFIX + name not in trial.user_attrs:
        arrays.write(trial, name, parameter, array, sampler.artifact_store)
    return np.full(parameter.shape, number) if array is None else array
