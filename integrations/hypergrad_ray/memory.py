"""What a searcher keeps of its trials, so that neither its memory nor its saved state grows by an array a trial."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle

from hypergrad_ray.large_array import LARGE
from hypergrad_search import Space
from hypergrad_search.search import Observation
from hypergrad_search.space import floats


def is_large(observation: Observation) -> bool:
    """Return whether a trial has arrays that are worth forgetting."""
    values = (observation.hyperparameters, observation.gradient or {}, observation.refined or {})
    return sum(np.size(value) for part in values for value in part.values()) > LARGE


def forgotten(space: Space, observation: Observation) -> Observation:
    """Return a trial without its floats, its gradient and its refined hyperparameters."""
    rest = {name: value for name, value in observation.hyperparameters.items() if name not in floats(space)}
    return replace(observation, hyperparameters=rest, gradient=None, refined=None)


def is_whole(space: Space, observation: Observation) -> bool:
    """Return whether a trial has its floats still."""
    return floats(space).keys() <= observation.hyperparameters.keys()


def may_come_back(state: Any, trial: str) -> bool:
    """Return whether a strategy in this state can go back to a trial, which it does by its name."""
    pickled: bytes = cloudpickle.dumps(state, protocol=5, buffer_callback=lambda array: None)  # type: ignore[no-untyped-call]  # of Ray
    return trial.encode() in pickled


def digest(space: Space, hyperparameters: Mapping[str, Any]) -> bytes:
    """Return a short value that is the same for the same hyperparameters."""
    hashed = hashlib.blake2b(digest_size=16)
    differentiable = floats(space)
    for name in space:
        value = hyperparameters[name]
        hashed.update(np.float64(value).tobytes() if name in differentiable else f"{name}={value!r}".encode())
    return hashed.digest()


def write(path: str, state: Mapping[str, Any]) -> None:
    """Write a state to a file; arrays are binary and keep every bit."""
    with Path(path).open("wb") as file:
        cloudpickle.dump(dict(state), file, protocol=5)  # type: ignore[no-untyped-call]  # Ray's is not typed


def read(path: str) -> Any:
    """Return what `write` wrote; raise `ValueError` where it is no such file."""
    with Path(path).open("rb") as file:
        try:
            return cloudpickle.load(file)
        except Exception as error:  # pickle raises nearly every kind of error for a file that is no pickle
            raise ValueError(
                f"HypergradSearch: checkpoint_path must name a file that save wrote, got {path!r}"
            ) from error
