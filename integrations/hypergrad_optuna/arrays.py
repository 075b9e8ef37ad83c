"""Array hyperparameters: one attribute of a trial, or one artifact, instead of thousands of parameters.

Under `HypergradSampler` an array is one float parameter, its *level*, which explorers can model and dashboards can
plot, and an attribute that holds the array itself. While the search explores, all elements are at the level; on a chain
the level is their mean in the unit box. Under other samplers each element is a parameter, `name[i,j]`.
"""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna.artifacts import download_artifact, upload_artifact
from optuna.trial import FixedTrial, FrozenTrial

from hypergrad_optuna.attributes import AnyTrial, own
from hypergrad_search import Float
from hypergrad_search.hosting import described
from hypergrad_search.space import coordinates
from hypergrad_search.trouble import see

PREFIX = "hypergrad:array:"

Attribute = dict[str, Any]


class StoreMissing(ValueError):
    """Arrays are kept as artifacts, and nobody has said in which store."""


def check_store(owner: str, store: Any) -> None:
    """Raise `ValueError` unless `store` is None or an artifact store of Optuna."""
    if store is not None and not all(hasattr(store, name) for name in ("open_reader", "write", "remove")):
        raise ValueError(
            f"{owner}: artifact_store must be a store such as optuna.artifacts.FileSystemArtifactStore(path), "
            f"got {store!r}"
        )


def encode(array: np.ndarray, dtype: str, trial: optuna.Trial | FixedTrial, store: Any | None) -> Attribute:
    """Return an array as JSON: in base64, or as the id of an artifact that holds it if there is a store."""
    array = np.ascontiguousarray(array, dtype=dtype)
    result: Attribute = {"shape": list(array.shape), "dtype": dtype}
    if store is None:
        return {**result, "base64": base64.b64encode(array.tobytes()).decode()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        np.save(path, array)
        owner = cast(optuna.Trial, trial)  # without a study there is no store
        return {**result, "artifact": upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=owner)}


def decode(attribute: Attribute, store: Any | None) -> np.ndarray:
    """Return the array that `encode` was given; raise `ValueError` where the store is needed and missing."""
    if "base64" in attribute:
        flat = np.frombuffer(base64.b64decode(attribute["base64"]), attribute["dtype"])
        return flat.reshape(attribute["shape"]).copy()  # a user may write to it
    if store is None:
        raise StoreMissing(
            "this study keeps its arrays as artifacts: give the artifact_store that they were written to" + see("store")
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        download_artifact(artifact_store=store, file_path=str(path), artifact_id=attribute["artifact"])
        array: np.ndarray = np.load(path)
    return array


def encode_all(
    values: Mapping[str, Any], dtype: str, trial: optuna.Trial | FixedTrial, store: Any | None
) -> dict[str, Any]:
    """Return values as JSON: arrays are encoded, and all others stay as they are."""
    return {name: encode(x, dtype, trial, store) if np.shape(x) else x for name, x in values.items()}


def decode_all(values: Mapping[str, Any], store: Any | None) -> dict[str, Any]:
    """Return the values that `encode_all` was given."""
    return {name: decode(x, store) if isinstance(x, dict) else x for name, x in values.items()}


def write(
    trial: optuna.Trial | FixedTrial, name: str, parameter: Float, array: np.ndarray | None, store: Any | None
) -> None:
    """Write an array to its trial, with a summary for people; `array` is None where all elements are at the level."""
    kept = {"shape": list(parameter.shape)} if array is None else encode(array, "<f8", trial, store)
    trial.set_user_attr(PREFIX + name, kept)
    summary = f"{name} (array)"
    if array is not None:
        trial.set_user_attr(summary, described(array))
    elif summary in trial.user_attrs:  # of the trial that this one is a copy of
        trial.set_user_attr(summary, "all elements are at the level")


def shapes(trial: AnyTrial) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array that a trial has, by name."""
    return {
        key.removeprefix(PREFIX): tuple(kept["shape"])
        for key, kept in trial.user_attrs.items()
        if key.startswith(PREFIX)
    }


def read(trial: AnyTrial, name: str, store: Any | None, *, level: float | None = None) -> np.ndarray:
    """Return an array of a trial; raise `KeyError` where the trial has none of this name.

    `level` is the array's level, which is by default that of the trial's parameters.
    """
    kept = trial.user_attrs[PREFIX + name]
    if "dtype" in kept:
        return decode(kept, store)
    return np.full(kept["shape"], float(trial.params[name] if level is None else level))


def is_stored(trial: AnyTrial, name: str) -> bool:
    """Return whether an array of a trial is an artifact."""
    return "artifact" in trial.user_attrs[PREFIX + name]


def find(trial: FrozenTrial, name: str, shape: tuple[int, ...], store: Any | None) -> np.ndarray | None:
    """Return an array of a finished trial, whichever sampler ran it; None where it has none of this shape.

    Where another sampler ran the trial, the elements may be parameters, and a number may stand for all of them.
    """
    known = shapes(trial)
    if known.get(name) == shape and name in trial.params:
        return read(trial, name, store)
    keys = coordinates(name, shape)
    if all(key in trial.params for key in keys):
        return np.reshape([float(trial.params[key]) for key in keys], shape)
    if name in trial.params and name not in known and not own(trial):
        return np.full(shape, float(trial.params[name]))
    return None
