"""Array hyperparameters: one attribute of a trial, or one artifact, instead of thousands of parameters.

Under `HypergradSampler` an array is one float parameter, its *level*, which global samplers can model and dashboards
can plot, and an attribute that holds the array itself. Exploring, all elements are at the level; on a chain the level
is their mean in the unit box.
"""

import base64
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.artifacts import download_artifact, upload_artifact
from optuna.trial import FrozenTrial

from hypergrad_search import Float

PREFIX = "hypergrad:array:"

Attribute = dict[str, Any]


def encode(array: np.ndarray, dtype: str, trial: optuna.Trial, store: Any | None) -> Attribute:
    """An array as JSON: in base64, or the name of the artifact that holds it where there is a store."""
    array = np.ascontiguousarray(array, dtype=dtype)
    result: Attribute = {"shape": list(array.shape), "dtype": dtype}
    if store is None:
        return {**result, "base64": base64.b64encode(array.tobytes()).decode()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        np.save(path, array)
        return {**result, "artifact": upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)}


def decode(attribute: Attribute, store: Any | None) -> np.ndarray:
    """The inverse of `encode`. Raises `ValueError` where the store is needed and missing."""
    if "base64" in attribute:
        array = np.frombuffer(base64.b64decode(attribute["base64"]), attribute["dtype"])
        return array.reshape(attribute["shape"])
    if store is None:
        raise ValueError("this study keeps its arrays as artifacts: give the artifact_store that they were written to")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        download_artifact(artifact_store=store, file_path=str(path), artifact_id=attribute["artifact"])
        return np.load(path)


def decode_all(values: Mapping[str, Any], store: Any | None) -> dict[str, Any]:
    """The arrays among some values, and the others as they are."""
    return {name: decode(x, store) if isinstance(x, dict) else x for name, x in values.items()}


def write(trial: optuna.Trial, name: str, parameter: Float, array: np.ndarray | None, store: Any | None) -> None:
    """Keep an array, None where all its elements are at the level; and a summary of it for people."""
    held = {"shape": list(parameter.shape)} if array is None else encode(array, "<f8", trial, store)
    trial.set_user_attr(PREFIX + name, held)
    if array is not None:
        size = "x".join(map(str, array.shape))
        summary = f"{size}: {array.min():.3g} to {array.max():.3g}, median {np.median(array):.3g}"
        trial.set_user_attr(f"{name} (array)", summary)


def shapes(trial: FrozenTrial) -> dict[str, tuple[int, ...]]:
    """The shape of each array that a trial holds."""
    return {
        key.removeprefix(PREFIX): tuple(held["shape"])
        for key, held in trial.user_attrs.items()
        if key.startswith(PREFIX)
    }


def read(trial: FrozenTrial, name: str, store: Any | None) -> np.ndarray:
    """An array that a trial holds; raises `KeyError` where it holds none of this name."""
    held = trial.user_attrs[PREFIX + name]
    if "dtype" in held:
        return decode(held, store)
    return np.full(held["shape"], trial.params[name])


def best_arrays(study: optuna.Study, *, artifact_store: Any | None = None) -> dict[str, np.ndarray]:
    """The array hyperparameters of a study's best trial, by name, whichever sampler found it.

    Args:
        study: a study whose objective called `suggest_array`, or has arrays in its space.
        artifact_store: where the arrays are, if the sampler was given one.

    Raises:
        ValueError: no trial is complete; or the store is needed and missing.
    """
    trial = study.best_trial
    return {
        **_from_coordinates(trial.params),
        **{name: read(trial, name, artifact_store) for name in shapes(trial)},
    }


def _from_coordinates(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of which each coordinate is a parameter, `name[i,j]`."""
    found: dict[str, dict[tuple[int, ...], float]] = {}
    for key, value in params.items():
        if match := re.fullmatch(r"(.+)\[(\d+(?:,\d+)*)\]", key):
            found.setdefault(match[1], {})[tuple(map(int, match[2].split(",")))] = value
    arrays = {}
    for name, elements in found.items():
        shape = tuple(max(indices) + 1 for indices in zip(*elements, strict=True))
        if math.prod(shape) == len(elements):
            arrays[name] = np.array([elements[index] for index in np.ndindex(*shape)]).reshape(shape)
    return arrays
