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
    - `below`: for each part a loss, shape `(of,)`, or None. The evaluation's status is "overfitted", and it has no
      gradient, unless the mean loss on each part comes out below this; infinity asks nothing of a part.

    Raises `ValueError` where the numbers do not fit.
    """

    index: int
    of: int
    below: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", whole_number("Fold: of", self.of, 2))
        object.__setattr__(self, "index", whole_number("Fold: index", self.index, 0, self.of - 1))
        if self.below is not None:
            if not isinstance(self.below, tuple) or len(self.below) != self.of:
                raise ValueError(f"Fold: below must be a tuple of {self.of} numbers or None, got {self.below!r}")
            object.__setattr__(self, "below", tuple(number("Fold: below", loss) for loss in self.below))

    @property
    def judges(self) -> bool:
        """Whether it asks anything of the losses on the parts."""
        return self.below is not None and min(self.below) < math.inf

    def accepts(self, losses: Sequence[float]) -> bool:
        """Return whether the mean losses on the parts are all low enough; NaN never is where something is asked."""
        return self.below is None or all(
            loss < most or most == math.inf for loss, most in zip(losses, self.below, strict=True)
        )


def order(examples: int) -> np.ndarray:
    """Return a random order of the examples, shape `(examples,)`; an example's part is its place modulo `of`."""
    return np.random.default_rng(0).permutation(examples).astype(np.int32)


def split(losses: np.ndarray, of: int) -> list[np.ndarray]:
    """Return the losses of each part, whose sizes differ by at most one."""
    part = order(len(losses)) % of
    return [losses[part == index] for index in range(of)]
