"""Folds: parts of the validation set that a hypergradient can leave out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypergrad_search.checks import number, whole_number


@dataclass(frozen=True)
class Fold:
    """One of several equal parts of the validation set, held back from a hypergradient.

    The hypergradient is the gradient of the mean loss over all other examples. A fold needs a `valid_loss` that returns
    one loss for each example; where `valid_loss` returns a scalar, nothing is held back.

    - `index`: the part that is held back, counted from 0.
    - `of`: the number of parts that the examples are split into, at least 2. Each example's part is drawn once by a
      fixed seed, so that sorted data do no harm.
    - `below`: the evaluation's status is "overfitted", and it has no gradient, unless the mean loss on the part `judge`
      comes out below this.
    - `judge`: the part that judges the evaluation; the one that is held back by default. Where the parts take turns, it
      is the part that the gradient of the step has left out.

    Raises `ValueError` where the numbers do not fit.
    """

    index: int
    of: int
    below: float = math.inf
    judge: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", whole_number("Fold: of", self.of, 2))
        object.__setattr__(self, "index", whole_number("Fold: index", self.index, 0, self.of - 1))
        object.__setattr__(self, "below", number("Fold: below", self.below))
        if self.judge is not None:
            object.__setattr__(self, "judge", whole_number("Fold: judge", self.judge, 0, self.of - 1))

    def accepts(self, losses: Sequence[float]) -> bool:
        """Return whether the mean loss on the part that judges is low enough, given those on all parts."""
        return losses[self.index if self.judge is None else self.judge] < self.below


def order(examples: int) -> np.ndarray:
    """Return a random order of the examples, shape `(examples,)`; an example's part is its place modulo `of`."""
    return np.random.default_rng(0).permutation(examples).astype(np.int32)


def split(losses: np.ndarray, of: int) -> list[np.ndarray]:
    """Return the losses of each part, whose sizes differ by at most one."""
    part = order(len(losses)) % of
    return [losses[part == index] for index in range(of)]
