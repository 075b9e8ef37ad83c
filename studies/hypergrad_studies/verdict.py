"""The answer to "does it pay for my problem?", from the finished runs of one problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from hypergrad_studies.budgets import Interval, interval
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History, final_tests, quartiles, validated

SURE = 0.05


@dataclass(frozen=True)
class Verdict:
    """Whether search by hypergradients pays for a problem at a budget; its text is a few sentences.

    Ours is compared with the other method of the same budget that has the lowest median loss. To choose the best of the
    others after the fact favours them, so that "pays" is said with care.

    - `pays`: True where ours has the lower median, and p is below 0.05; False where ours has no lower median; None
      where ours is ahead, and it may be chance.
    - `problem`, `budget`: what was compared, and with which budget.
    - `ours`, `other`: the methods. `others` is the number of those that `other` is the best of.
    - `measure`: "test loss"; or "validation loss" where there is no test loss, cross-validated where parts of the
      validation set were held back.
    - `losses`: the median loss of ours and of the other, over the seeds that both have finished.
    - `lower`: by how much our loss is lower, as a share of the other's: the median over seeds with its 95 % bootstrap
      interval; below 0 where ours is higher, and None where losses are infinite or not positive.
    - `wins`, `seeds`: the number of seeds on which our loss is lower, and of those that both have finished.
    - `p`: of the one-sided Wilcoxon signed-rank test that our losses are lower, paired by seed.
    - `time`: how many times as long ours took, by the median seconds of evaluating, asking and telling.
    """

    pays: bool | None
    problem: str
    budget: Budget | None
    ours: str
    other: str
    others: int
    measure: str
    losses: tuple[float, float]
    lower: Interval | None
    wins: int
    seeds: int
    p: float
    time: float

    def __str__(self) -> str:
        says = {True: "pays", False: "does not pay", None: "may pay"}[self.pays]
        at = "" if self.budget is None else f" at {self.budget}"
        head, other = f"{self.ours} {says} for {self.problem}{at}", self._other
        ours, theirs = (f"{loss:.3g}" for loss in self.losses)
        sure = f"it is lower on {self.wins} of {self.seeds} seeds (p = {self.p:.2g})"
        took = f"It took {self.time:.2g} times as long."
        if self.pays is False:
            return f"{head}: use {other}, with the {self.measure} {theirs}; ours is {ours}, and {sure}. {took}"
        doubt = "" if self.pays else " This may be chance: more seeds would tell."
        return f"{head}: the {self.measure} is {ours}, {self._than(theirs)} {other}; {sure}.{doubt} {took}"

    def _than(self, theirs: str) -> str:
        if self.lower is None:
            return f"lower than the {theirs} of"
        low, high = _share(self.lower.low), _share(self.lower.high)
        return f"{_share(self.lower.median)} ({low} to {high}) lower than the {theirs} of"

    @property
    def _other(self) -> str:
        return self.other if self.others == 1 else f"{self.other}, the best of {self.others} others"


def verdict(runs: Sequence[History]) -> Verdict | None:
    """Return the verdict on one problem; None where ours, or any other method of its budget, has no finished run.

    Of several methods of ours, the verdict is on the first one by name, which is the default: to take the best one
    would be to choose by the result.
    """
    ours = min((run.key[1] for run in runs if run.gradients), default=None)
    if ours is None:
        return None
    budget = next(run.budget for run in runs if run.key[1] == ours)
    rivals = [run for run in runs if run.budget == budget and (run.key[1] == ours or not run.gradients)]
    tests, kept = final_tests(rivals), validated(rivals)
    measure, losses = ("test loss", tests) if tests.keys() == kept.keys() else ("validation loss", kept)
    pairs = {name: _paired(losses[ours], of_name) for name, of_name in losses.items() if name != ours}
    pairs = {name: pair for name, pair in pairs.items() if pair[0].size}
    if not pairs:
        return None
    other = min(pairs, key=lambda name: (_median(pairs[name][1]), name))
    mine, theirs = pairs[other]
    medians = _median(mine), _median(theirs)
    p = _p(mine, theirs)
    return Verdict(
        pays=(True if p < SURE else None) if medians[0] < medians[1] else False,
        problem=runs[0].key[0],
        budget=budget,
        ours=ours,
        other=other,
        others=len(pairs),
        measure=measure,
        losses=medians,
        lower=_lower(mine, theirs),
        wins=int(np.sum(mine < theirs)),
        seeds=len(mine),
        p=p,
        time=_seconds(rivals, ours) / _seconds(rivals, other),
    )


def _paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of the seeds that both have."""
    seeds = sorted(mine.keys() & theirs.keys())
    return np.array([mine[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds])


def _median(losses: np.ndarray) -> float:
    return quartiles(losses.tolist()).median


def _p(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Return the p-value that `mine` are lower than `theirs` by pairs; two infinite losses are equal."""
    differences = np.subtract(mine, theirs, out=np.zeros(len(mine)), where=mine != theirs)
    if not differences.any():
        return 1.0
    ranks = np.sign(differences) * (1 + np.unique(np.abs(differences), return_inverse=True)[1])
    return float(wilcoxon(ranks, alternative="less", method="exact" if _untied(ranks) else "auto").pvalue)


def _untied(ranks: np.ndarray) -> bool:
    return len(np.unique(np.abs(ranks))) == len(ranks) and bool(ranks.all())


def _lower(mine: np.ndarray, theirs: np.ndarray) -> Interval | None:
    if not (np.isfinite(mine).all() and np.isfinite(theirs).all() and (theirs > 0).all()):
        return None
    return interval(list(1 - mine / theirs))


def _share(share: float) -> str:
    return "over 99 %" if 0.995 < share < 1 else f"{100 * share:.0f} %"


def _seconds(runs: Sequence[History], method: str) -> float:
    """Return the median seconds of a method's runs."""
    of_method = [run.trials for run in runs if run.key[1] == method]
    seconds = [sum(t.seconds + t.ask_seconds + t.tell_seconds for t in trials) for trials in of_method]
    return float(np.median(seconds)) or math.nan
