"""A chain whose evaluations move the hyperparameters themselves: each goes on from where the last one ended."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

PATIENCE = 3  # evaluations in a row that bring nothing before a chain is given up


@dataclass(frozen=True)
class Continuation:
    """Where the last evaluation of a chain ended, with the lowest value of the chain.

    `point` has shape `(n,)`, in the unit box; `stalls` counts the evaluations since the value was last lowered;
    `held_back` is the loss, at the point, on what of the validation set no gradient sees.
    """

    point: np.ndarray
    value: float
    stalls: int = 0
    held_back: float = math.inf

    def step(self) -> np.ndarray:
        """Where the next evaluation starts."""
        return self.point

    def follow(self, point: np.ndarray, value: float, held_back: float) -> Self:
        """After an evaluation that ended at `point`; it may be worse, since joint optimisation is stochastic."""
        stalls = 0 if value < self.value else self.stalls + 1
        return replace(self, point=point, value=min(value, self.value), stalls=stalls, held_back=held_back)

    def fail(self) -> Self:
        """After an evaluation that failed: it is to be tried again from the same point."""
        return replace(self, stalls=self.stalls + 1)

    @property
    def spent(self) -> bool:
        """Whether the chain has arrived."""
        return self.stalls >= PATIENCE
