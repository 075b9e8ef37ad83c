"""A chain whose evaluations move the hyperparameters themselves: each goes on from where the last one ended."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

PATIENCE = 3  # evaluations in a row that bring nothing before a chain is given up
FAILURES = 2  # in a row: a worker may have died once; an evaluation that failed twice would fail again


@dataclass(frozen=True)
class Continuation:
    """Where the last evaluation of a chain ended, with the lowest value of the chain.

    `point` has shape `(n,)`, in the unit box; `stalls` counts the evaluations since the value was last lowered,
    `failures` those in a row that failed; `held_back` is the loss, at the point, on what of the validation set no
    gradient sees.
    """

    point: np.ndarray
    value: float
    stalls: int = 0
    failures: int = 0
    held_back: float = math.inf

    def step(self) -> np.ndarray:
        """Where the next evaluation starts."""
        return self.point

    def follow(self, point: np.ndarray, value: float, held_back: float) -> Self:
        """After an evaluation that ended at `point`; it may be worse, since joint optimisation is stochastic."""
        stalls = 0 if value < self.value else self.stalls + 1
        return type(self)(point, min(value, self.value), stalls, held_back=held_back)

    def fail(self) -> Self:
        """After an evaluation that failed, or fitted what is held back no better: once more from the same point."""
        return replace(self, failures=self.failures + 1)

    @property
    def spent(self) -> bool:
        """Whether the chain has arrived."""
        return self.stalls >= PATIENCE or self.failures >= FAILURES
