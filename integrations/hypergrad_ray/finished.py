"""The finished trials of a search, of which neither memory nor saved state grows by an array a trial."""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hypergrad_ray.large_array import LARGE
from hypergrad_search import Space
from hypergrad_search.search import Observation
from hypergrad_search.space import floats


class Finished(Mapping[str, Observation]):
    """The finished trials by name, in the order in which they ended.

    A trial with more than 1000 numbers forgets its arrays once the strategy cannot come back to it. Of trials that
    failed there is a digest, so that they are known again when Ray runs them anew.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._trials: dict[str, Observation] = {}
        self._large: set[str] = set()  # those whose arrays are worth forgetting
        self._failed: dict[str, bytes] = {}  # those that failed, each with a digest of its hyperparameters

    def __getitem__(self, trial: str) -> Observation:
        return self._trials[trial]

    def __iter__(self) -> Iterator[str]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def keep(self, trial: Observation, parents: Collection[str] | None) -> None:
        """Add a trial; `parents` are the trials that the strategy may come back to, None for all of them."""
        self._trials[trial.trial] = trial
        if math.isinf(trial.value):
            self._failed[trial.trial] = digest(self._space, trial.hyperparameters)
        if is_large(trial):
            self._large.add(trial.trial)
        for name in self._large.difference(self._large if parents is None else parents):
            self._trials[name] = forgotten(self._space, self._trials[name])
            self._large.remove(name)

    def drop(self, trial: str) -> None:
        """Remove a trial, whose place another one takes."""
        del self._trials[trial]
        self._failed.pop(trial, None)
        self._large.discard(trial)

    def has_failed(self, trial: str) -> bool:
        """Return whether a trial is among these, and failed."""
        return trial in self._failed

    def failed_at(self, hyperparameters: Mapping[str, Any]) -> Observation | None:
        """Return a trial that failed at these hyperparameters, to the bit."""
        known = digest(self._space, hyperparameters)
        name = next((name for name, each in self._failed.items() if each == known), None)
        return None if name is None else self.whole(name, hyperparameters)

    def whole(self, trial: str, hyperparameters: Mapping[str, Any] | None) -> Observation | None:
        """Return a trial with its own hyperparameters, or with these where it has forgotten them."""
        own = self._trials[trial]
        if floats(self._space).keys() <= own.hyperparameters.keys():
            return own
        return None if hyperparameters is None else replace(own, hyperparameters=hyperparameters)

    def to_state(self) -> tuple[list[Observation], dict[str, bytes]]:
        """Return what `from_state` takes."""
        return list(self._trials.values()), dict(self._failed)

    @classmethod
    def from_state(cls, space: Space, state: tuple[list[Observation], dict[str, bytes]]) -> "Finished":
        """Return the trials of which `to_state` was called."""
        finished = cls(space)
        trials, failed = state
        finished._trials = {trial.trial: trial for trial in trials}
        finished._large = {trial.trial for trial in trials if is_large(trial)}
        finished._failed = dict(failed)
        return finished


def is_large(observation: Observation) -> bool:
    """Return whether a trial has arrays that are worth forgetting."""
    values = (observation.hyperparameters, observation.gradient or {}, observation.refined or {})
    return sum(np.size(value) for part in values for value in part.values()) > LARGE


def forgotten(space: Space, observation: Observation) -> Observation:
    """Return a trial without its floats, its gradient and its refined hyperparameters."""
    rest = {name: value for name, value in observation.hyperparameters.items() if name not in floats(space)}
    return replace(observation, hyperparameters=rest, gradient=None, refined=None)


def digest(space: Space, hyperparameters: Mapping[str, Any]) -> bytes:
    """Return a short value that is the same for the same hyperparameters."""
    hashed = hashlib.blake2b(digest_size=16)
    differentiable = floats(space)
    for name in space:
        value = hyperparameters[name]
        hashed.update(np.float64(value).tobytes() if name in differentiable else f"{name}={value!r}".encode())
    return hashed.digest()
