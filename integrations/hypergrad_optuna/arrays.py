"""Array hyperparameters: one attribute of a trial, or one artifact, instead of thousands of parameters.

Under `HypergradSampler` an array is one float parameter, its *level*, which explorers can model and dashboards can
plot, and an attribute that holds the array itself. While the search explores, all elements are at the level; on a chain
the level is their mean in the unit box.
"""

import base64
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
Trial = optuna.Trial | FrozenTrial


def encode(array: np.ndarray, dtype: str, trial: optuna.Trial, store: Any | None) -> Attribute:
    """Return an array as JSON: in base64, or as the id of an artifact that holds it if there is a store."""
    array = np.ascontiguousarray(array, dtype=dtype)
    result: Attribute = {"shape": list(array.shape), "dtype": dtype}
    if store is None:
        return {**result, "base64": base64.b64encode(array.tobytes()).decode()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        np.save(path, array)
        return {**result, "artifact": upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)}


def decode(attribute: Attribute, store: Any | None) -> np.ndarray:
    """Return the array that `encode` was given; raise `ValueError` where the store is needed and missing."""
    if "base64" in attribute:
        flat = np.frombuffer(base64.b64decode(attribute["base64"]), attribute["dtype"])
        return flat.reshape(attribute["shape"]).copy()  # a user may write to it
    if store is None:
        raise ValueError("this study keeps its arrays as artifacts: give the artifact_store that they were written to")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        download_artifact(artifact_store=store, file_path=str(path), artifact_id=attribute["artifact"])
        array: np.ndarray = np.load(path)
    return array


def encode_all(values: Mapping[str, Any], dtype: str, trial: optuna.Trial, store: Any | None) -> dict[str, Any]:
    """Return values as JSON: arrays are encoded, and all others stay as they are."""
    return {name: encode(x, dtype, trial, store) if np.shape(x) else x for name, x in values.items()}


def decode_all(values: Mapping[str, Any], store: Any | None) -> dict[str, Any]:
    """Return the values that `encode_all` was given."""
    return {name: decode(x, store) if isinstance(x, dict) else x for name, x in values.items()}


def write(trial: optuna.Trial, name: str, parameter: Float, array: np.ndarray | None, store: Any | None) -> None:
    """Write an array to its trial, with a summary for people; `array` is None where all elements are at the level."""
    kept = {"shape": list(parameter.shape)} if array is None else encode(array, "<f8", trial, store)
    trial.set_user_attr(PREFIX + name, kept)
    if array is not None:
        size = "x".join(map(str, array.shape))
        summary = f"{size}: {array.min():.3g} to {array.max():.3g}, median {np.median(array):.3g}"
        trial.set_user_attr(f"{name} (array)", summary)


def shapes(trial: Trial) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array that a trial has, by name."""
    return {
        key.removeprefix(PREFIX): tuple(kept["shape"])
        for key, kept in trial.user_attrs.items()
        if key.startswith(PREFIX)
    }


def read(trial: Trial, name: str, store: Any | None) -> np.ndarray:
    """Return an array of a trial; raise `KeyError` where the trial has none of this name."""
    kept = trial.user_attrs[PREFIX + name]
    return decode(kept, store) if "dtype" in kept else np.full(kept["shape"], trial.params[name])
