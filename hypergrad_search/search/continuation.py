"""A chain whose evaluations move the hyperparameters themselves: each goes on from where the last one ended."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hypergrad_search.checks import whole_number


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits beyond which a chain of evaluations that move the hyperparameters themselves is given up.

    - `stalls`: the number of evaluations in a row that do not lower the value. Joint optimisation is stochastic, so one
      or two mean little.
    - `failures`: the number of evaluations in a row that fail. A worker may die once, but an evaluation that has failed
      twice would fail again.

    Raises `ValueError` where one is not a whole number from 1.

    Example:
        >>> from hypergrad_search.search import ExploreDescend, Limits
        >>> strategy = ExploreDescend(limits=Limits(stalls=3))
    """

    stalls: int = 3
    failures: int = 2

    def __post_init__(self) -> None:
        whole_number("Limits: stalls", self.stalls, 1)
        whole_number("Limits: failures", self.failures, 1)


@dataclass(frozen=True)
class Continuation:
    """The point where the last evaluation of a chain ended, and the lowest value of the chain.

    `point` has shape `(n,)`, in the unit box. `stalls` counts the evaluations since the value last fell, and `failures`
    those in a row that failed. `held_back` has the loss at the point on each fold of the validation set, of which the
    first is held back; it is None where none is.
    """

    point: np.ndarray
    value: float
    stalls: int = 0
    failures: int = 0
    held_back: tuple[float, ...] | None = None
    limits: Limits = Limits()

    def step(self) -> np.ndarray:
        """Return where the next evaluation starts."""
        return self.point

    def follow(self, point: np.ndarray, value: float, held_back: tuple[float, ...] | None) -> Self:
        """Return the chain after an evaluation that ended at `point`, with a value that may be higher than before."""
        stalls = 0 if value < self.value else self.stalls + 1
        return replace(self, point=point, value=min(value, self.value), stalls=stalls, failures=0, held_back=held_back)

    def fail(self) -> Self:
        """Return the chain after an evaluation that failed; the next one starts from the same point."""
        return replace(self, failures=self.failures + 1)

    @property
    def spent(self) -> bool:
        """Whether the chain is to be given up."""
        return self.stalls >= self.limits.stalls or self.failures >= self.limits.failures
