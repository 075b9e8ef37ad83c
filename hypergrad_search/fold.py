"""Folds: parts of the validation set that a hypergradient can leave out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypergrad_search.checks import number, whole_number

#: The most blocks that a part is divided into, enough to know a standard error by, and few enough to store.
_BLOCKS = 32


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
    - `margin`: by how many standard errors the loss on the part that judges must fall below `below`. The error is that
      of the differences to `blocks`, block by block, so it is small where all examples gain alike, and large where a
      few of them make the whole gain, which is luck. 1 is the one-standard-error rule (Breiman et al. 1984). It holds
      for parts of up to 32 examples; from n examples a gain needs `sqrt(32 / n)` times as many errors, since luck does
      less harm where the error itself is small.
    - `blocks`: the losses before the step on the blocks of the part that judges, as `blocks_of` gives them. Without
      them the margin has no effect.
    - `cross_validated`: the cross-validated loss before the step, from which the evaluation's own one follows; None at
      points that no step leads to, where it is the value.

    Raises `ValueError` where the numbers do not fit.

    Example:
        >>> from hypergrad_search import Fold, evaluate
        >>> result = evaluate(problem, point, key=key, fold=Fold(0, of=4))
        >>> len(result.held_back)
        4
    """

    index: int
    of: int
    below: float = math.inf
    judge: int | None = None
    margin: float = 0.0
    blocks: tuple[float, ...] = ()
    cross_validated: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", whole_number("Fold: of", self.of, 2))
        object.__setattr__(self, "index", whole_number("Fold: index", self.index, 0, self.of - 1))
        object.__setattr__(self, "below", number("Fold: below", self.below))
        if self.judge is not None:
            object.__setattr__(self, "judge", whole_number("Fold: judge", self.judge, 0, self.of - 1))
        object.__setattr__(self, "margin", number("Fold: margin", self.margin, 0))
        object.__setattr__(self, "blocks", tuple(self.blocks))

    @property
    def judging(self) -> int:
        """The part that judges the evaluation."""
        return self.index if self.judge is None else self.judge

    def accepts(self, losses: Sequence[float], blocks: Sequence[Sequence[float]] = (), examples: int = 0) -> bool:
        """Return whether the loss on the part that judges is low enough, given those on all parts and their blocks.

        `examples` is the number of all validation examples.
        """
        gain = self.below - losses[self.judging]
        if not gain > 0 or not self.blocks or not blocks or math.isinf(gain):
            return gain > 0
        if len(self.blocks) != len(blocks[self.judging]):  # of another validation set
            return True
        margin = self.margin * min(1.0, math.sqrt(_BLOCKS * self.of / max(examples, 1)))
        return gain > margin * _error(np.subtract(self.blocks, blocks[self.judging]))

    def cross_validate(self, value: float, losses: Sequence[float]) -> float:
        """Return the cross-validated loss of an evaluation with this value, and these losses on all parts.

        It is the value where the chain of steps began, less what each step gained on the part that its gradient had
        left out. So it counts each example where the example was held back.
        """
        if self.cross_validated is None:
            return value
        gain = self.below - losses[self.judging]
        return self.cross_validated - (gain if math.isfinite(gain) else 0.0)


def _error(differences: np.ndarray) -> float:
    """Return the standard error of the mean; 0 where it cannot be known."""
    return float(differences.std(ddof=1) / math.sqrt(differences.size)) if differences.size > 1 else 0.0


def order(examples: int) -> np.ndarray:
    """Return a random order of the examples, shape `(examples,)`; an example's part is its place modulo `of`."""
    return np.random.default_rng(0).permutation(examples).astype(np.int32)


def split(losses: np.ndarray, of: int) -> list[np.ndarray]:
    """Return the losses of each part, whose sizes differ by at most one."""
    places = np.argsort(order(len(losses)))  # in a random order, so that blocks of sorted data are alike too
    return [losses[places[index::of]] for index in range(of)]


def blocks_of(losses: np.ndarray, of: int) -> tuple[tuple[float, ...], ...]:
    """Return the mean losses of each part's blocks: up to 32 of them, whose sizes differ by at most one."""
    parts = split(np.asarray(losses, np.float64), of)
    return tuple(
        tuple(float(block.mean()) for block in np.array_split(part, min(len(part), _BLOCKS))) for part in parts
    )
