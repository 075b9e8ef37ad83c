"""Ours against the other methods, seed by seed: by how much it is lower, how sure that is, and how many seeds tell.

Runs with the same seed start from the same weights, and a test of their differences does not see what all runs of a
seed have in common. Where a seed means nothing but its own random numbers, the pairs are arbitrary, and the test is
valid still.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, wilcoxon

from hypergrad_studies.budgets import Interval, interval
from hypergrad_studies.statistics import holm, quartiles

Array = NDArray[np.float64]

SURE = 0.05
"""A difference is sure where p is below this."""

POWER = 0.8
"""So many seeds are enough with which a test would be sure that often."""


@dataclass(frozen=True)
class Pairing:
    """Ours against one other method, on the seeds that both have finished.

    - `other`: the other method.
    - `losses`: the median loss of ours and of the other.
    - `lower`: by how much our loss is lower, as a share of the other's: the median over seeds with its 95 % bootstrap
      interval; below 0 where ours is higher, and None where losses are infinite or not positive.
    - `wins`, `ties`, `seeds`: the number of seeds on which our loss is lower, on which it is equal, and of all.
    - `p`: of the one-sided Wilcoxon signed-rank test that our losses are lower, and `behind` that they are higher.
    - `holm`: `p`, adjusted for all the methods that ours was compared with (Holm).
    - `needed`: about how many seeds would be enough, see `seeds_needed`.
    """

    other: str
    losses: tuple[float, float]
    lower: Interval | None
    wins: int
    ties: int
    seeds: int
    p: float
    behind: float
    holm: float
    needed: float

    @property
    def ahead(self) -> bool:
        """Whether our median loss is lower."""
        return self.losses[0] < self.losses[1]

    @property
    def level(self) -> bool:
        """Whether the two losses are equal on every seed."""
        return self.ties == self.seeds

    @property
    def difference(self) -> str:
        """By how much our loss is lower or higher than the other's, and within which bounds; else on how many seeds."""
        if self.lower is None:
            return f"lower on {self.wins} of {self.seeds} seeds"
        median, low, high = self.lower.median, self.lower.low, self.lower.high
        if low < 0 < high:
            return f"{_than(median)} ({_than(high)} to {_than(low)})"
        if high > 0:
            return f"{_share(median)} ({_share(low)} to {_share(high)}) lower"
        return f"{_share(-median)} ({_share(-high)} to {_share(-low)}) higher" if low < 0 else "equal"


def pairings(ours: Mapping[int, float], others: Mapping[str, Mapping[int, float]]) -> list[Pairing]:
    """Return ours against each other method, the one with the lowest median loss first; all map seeds to losses.

    Methods without a seed in common are left out.
    """
    pairs = {name: paired(ours, losses) for name, losses in others.items() if ours.keys() & losses.keys()}
    p = {name: p_lower(*pair) for name, pair in pairs.items()}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    found = [
        Pairing(
            other=name,
            losses=(_median(mine), _median(theirs)),
            lower=_lower(mine, theirs),
            wins=int(np.sum(mine < theirs)),
            ties=int(np.sum(mine == theirs)),
            seeds=len(mine),
            p=p[name],
            behind=p_lower(theirs, mine),
            holm=adjusted[name],
            needed=seeds_needed(mine, theirs),
        )
        for name, (mine, theirs) in pairs.items()
    ]
    return sorted(found, key=lambda pairing: (pairing.losses[1], pairing.other))


def p_lower(mine: Array, theirs: Array) -> float:
    """Return the p-value that `mine` are lower than `theirs` by pairs; two infinite losses are equal."""
    ranks = _signed_ranks(mine, theirs)
    if not ranks.any():
        return 1.0
    return float(wilcoxon(ranks, alternative="less", method="exact" if _untied(ranks) else "auto").pvalue)


def shown(p: float, sign: str = "=") -> str:
    """Return a p-value as it is shown, after a sign: with two digits, or so many that it lies on its side of `SURE`."""
    if p < 0.001:
        return "< 0.001"
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return f"{sign} {next(text for text in texts if _side(float(text)) == _side(p))}"


def fewest(level: float = SURE) -> int:
    """Return the smallest number of seeds with which p can be below `level`: all are won, and p is 1 / 2 ** seeds."""
    return math.floor(-math.log2(level)) + 1


def seeds_needed(mine: Array, theirs: Array, level: float = SURE) -> float:
    """Return about how many seeds are enough to be sure that `mine` are lower, if differences stay as they are.

    With so many, p would be below `level` with the probability `POWER`. It is infinite where `mine` are not lower.
    The estimate rests on the share of pairs of seeds whose mean difference is below 0 (Noether, Sample size
    determination for some common nonparametric tests, JASA 82, 1987); from few seeds it is rough.

    Example:
        >>> import numpy as np
        >>> from hypergrad_studies.pairing import seeds_needed
        >>> seeds_needed(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        9.0
        >>> seeds_needed(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.5, 3.5]))
        33.0
    """
    ranks = _signed_ranks(mine, theirs)
    sums = np.add.outer(ranks, ranks)[np.triu_indices(len(ranks))]
    beyond_half = float(np.mean(sums < 0) + np.mean(sums == 0) / 2) - 0.5
    if beyond_half <= 0:
        return math.inf
    return float(max(fewest(level), math.ceil((norm.isf(level) + norm.ppf(POWER)) ** 2 / (3 * beyond_half**2))))


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[Array, Array]:
    """Return the losses of the seeds that both have."""
    seeds = sorted(mine.keys() & theirs.keys())
    return np.array([mine[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds])


def _signed_ranks(mine: Array, theirs: Array) -> Array:
    """Return the differences' signs times the ranks of their sizes, which may be infinite; equal losses have 0."""
    differences = np.subtract(mine, theirs, out=np.zeros(len(mine)), where=mine != theirs)
    ranks: Array = np.sign(differences) * (1 + np.unique(np.abs(differences), return_inverse=True)[1])
    return ranks


def _untied(ranks: Array) -> bool:
    return len(np.unique(np.abs(ranks))) == len(ranks) and bool(ranks.all())


def _median(losses: Array) -> float:
    return quartiles(losses.tolist()).median


def _lower(mine: Array, theirs: Array) -> Interval | None:
    if not (np.isfinite(mine).all() and np.isfinite(theirs).all() and (theirs > 0).all()):
        return None
    return interval((1 - mine / theirs).tolist())


def _side(p: float) -> int:
    """Return whether p is above `SURE` (1), equal to it (0) or below it (-1)."""
    return (p > SURE) - (p < SURE)


def _than(lower: float) -> str:
    return "equal" if lower == 0 else f"{_share(abs(lower))} {'lower' if lower > 0 else 'higher'}"


def _share(share: float) -> str:
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 < share < 1 else f"{100 * share:z,.0f} %"
