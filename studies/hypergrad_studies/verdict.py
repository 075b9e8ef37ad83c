"""The answer to "does it pay for my problem?", from the finished runs of one problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hypergrad_studies.budgets import Interval
from hypergrad_studies.pairing import SURE, Pairing, paired, pairings, seeds_needed, shown
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History, final_tests, finals, validated, within_budget

AT_MOST = "\N{LESS-THAN OR EQUAL TO}"


@dataclass(frozen=True)
class Verdict:
    """Whether search by hypergradients pays for a problem at a budget; its text is a few sentences.

    Ours pays where it is lower than every other method of the same budget. This is tested against each of them, and the
    largest p-value counts; since all the tests must succeed, none is adjusted (an intersection-union test: Berger,
    Multiparameter hypothesis testing and acceptance sampling, Technometrics 24, 1982). That one of the others is lower
    than ours needs one success only, so there p is multiplied by the number of the others (Bonferroni).

    - `pays`: where `p` is below 0.05, True if ours has the lowest median, and False if another method has it; None
      where neither is shown, or nothing can be said: the budget is too small for any trial of ours, or no method
      has a finite median.
    - `problem`, `budget`: what was compared, and with which budget.
    - `ours`, `other`: ours, and the other method of the same budget that has the lowest median loss. `others` is the
      number of those that it is the best of.
    - `measure`: "test loss"; where there is none, "validation loss", or "cross-validated loss" where parts of the
      validation set were held back.
    - `losses`, `lower`, `wins`, `seeds`: ours against the other, as in `Pairing`.
    - `p`: of the test that ours is lower than each of the others, where it has the lowest median, and else of the test
      that the other is lower than ours. It is the probability that chance alone makes differences at least so clear,
      and not the probability that a method is better.
    - `needed`: about how many seeds would be enough for a `p` below 0.05 that ours is lower than each of the others, if
      differences stay as they are, and `needed_behind` for one that the `hardest` is lower than ours; infinite where no
      number would. Both go by the ranks of the differences, and not by the medians.
    - `trials`: the median number of trials that ours and the other ended within the budget.
    - `time`: how many times as long ours took, by the median seconds of evaluating, asking and telling;
      NaN where no seconds were measured.
    - `tried`: whether any trial of ours ended within the budget.
    - `best`: ours against `other`; `hardest`: where ours has the lowest median, against the method that is hardest to
      tell from it, and else the same; `against`: ours against each other method, also those of another budget. The
      lowest median loss comes first.
    - `elsewhere`: the method of another budget that is ahead of ours the most, with its budget; None where
      there is none.
    """

    pays: bool | None
    problem: str
    budget: Budget | None
    ours: str
    others: int
    measure: str
    p: float
    needed: float
    needed_behind: float
    trials: tuple[float, float]
    time: float
    tried: bool
    best: Pairing
    hardest: Pairing
    against: tuple[Pairing, ...]
    elsewhere: tuple[Pairing, Budget | None] | None

    @property
    def other(self) -> str:
        """The best of the other methods of the same budget."""
        return self.best.other

    @property
    def losses(self) -> tuple[float, float]:
        """The median loss of ours and of the other."""
        return self.best.losses

    @property
    def lower(self) -> Interval | None:
        """By how much ours is lower."""
        return self.best.lower

    @property
    def wins(self) -> int:
        """The number of seeds on which ours is lower."""
        return self.best.wins

    @property
    def seeds(self) -> int:
        """The number of seeds that both have finished."""
        return self.best.seeds

    @property
    def says(self) -> str:
        """The answer in words."""
        if not self.tried:
            return "was not tried"
        if self._unknown:
            return "no result"
        return {True: "pays", False: "does not pay", None: "was not shown to pay"}[self.pays]

    @property
    def head(self) -> str:
        """What the answer is about, and the answer."""
        at = "" if self.budget is None else f" at {self.budget}"
        found = "no method has a result" if self.tried and self._unknown else f"{self.ours} {self.says}"
        return f"{found} for {self.problem}{at}"

    @property
    def reason(self) -> str:
        """By how much, how sure, and what to use instead."""
        return f"{self._reason}{self._elsewhere}"

    @property
    def _reason(self) -> str:
        if not self.tried:
            return "none of its trials fits in the budget; its first one takes four training runs or more, so give 25."
        if self._unknown:
            return f"the median {self.measure} of each is infinite."
        return f"{self._level if self.best.level else self._compared}{self._spent}"

    def __str__(self) -> str:
        return f"{self.head}: {self.reason}"

    @property
    def _unknown(self) -> bool:
        return all(map(math.isinf, self.losses))

    @property
    def _best(self) -> str:
        return self.other if self.others == 1 else f"{self.other}, the best of {self.others} others"

    @property
    def _level(self) -> str:
        each = f"each of {self.seeds} seeds, of which the median is {self.losses[0]:.3g}"
        return f"the {self.measure} of {self.ours} is that of {self._best}, on {each}. {self._simpler}."

    @property
    def _compared(self) -> str:
        ours, theirs = (f"{loss:.3g}" for loss in self.losses)
        medians = f"the median {self.measure} is {ours} with {self.ours}, and {theirs} with {self._best}"
        by = self.ours if self.lower is None else f"seed by seed {self.ours} is {self.best.difference}, and it"
        wins = f"{by} is lower on {self.wins} of {self.seeds} seeds"
        advice = {True: "", False: f" Use {self.other}.", None: f" {self._simpler}. {self._more_seeds}"}[self.pays]
        return f"{medians}; {wins}. {self._by_chance}.{advice}"

    @property
    def _by_chance(self) -> str:
        """What `p` means; it is about the method with the lowest median."""
        if self.best.ahead:
            p = shown(self.p) if self.others == 1 else f"{shown(self.p, AT_MOST)} against each"
            return f"Chance alone would make {self.ours} look so good with the probability p {p}"
        of = "" if self.others == 1 else f", allowing for the choice among {self.others}"
        return f"Chance alone would make {self.other} look so good with the probability p {shown(self.p)}{of}"

    @property
    def _simpler(self) -> str:
        if self.hardest.other == self.other:
            return f"So {self.other}, or whichever is simpler, will do"
        return f"It was not shown to be better than {self.hardest.other}, so that or whichever is simpler will do"

    @property
    def _more_seeds(self) -> str:
        leaning = "By the ranks of the differences, about"
        if math.isfinite(self.needed):
            than = self.other if self.others == 1 else "each of the others"
            return f"{leaning} {self.needed:,.0f} seeds would show that {self.ours} is lower than {than}."
        if math.isfinite(self.needed_behind):
            lower = f"{self.hardest.other} is lower than {self.ours}"
            return f"{leaning} {self.needed_behind:,.0f} seeds would show that {lower}."
        return "With differences such as these, more seeds would show none."

    @property
    def _spent(self) -> str:
        """How many trials, and how much time."""
        ours, theirs = (f"{number:g}" for number in self.trials)
        took = "" if math.isnan(self.time) else f"; {self.ours} took {self.time:.2g} times as long"
        return f" The median number of trials of {self.ours} is {ours}, that of {self.other} {theirs}{took}."

    @property
    def _elsewhere(self) -> str:
        if self.elsewhere is None:
            return ""
        pairing, budget = self.elsewhere
        return f" {pairing.other}, {_at(budget, self.budget)}, has {pairing.losses[1]:.3g}."


def verdict(runs: Sequence[History]) -> Verdict | None:
    """Return the verdict on one problem; None where ours, or any other method of its budget, has no finished run.

    Of several methods of ours, the verdict is on the first one by name, which is the default: to take the best one
    would be to choose by the result.
    """
    ours = min((run.key[1] for run in runs if run.gradients), default=None)
    if ours is None:
        return None
    budgets = {run.key[1]: run.budget for run in runs}
    tried = any(within_budget(run).any() for run in runs if run.key[1] == ours)
    rivals = [run for run in runs if run.key[1] == ours or not run.gradients]
    tests, kept = final_tests(rivals), validated(rivals)
    of_validation = "validation loss" if kept == finals(rivals) else "cross-validated loss"
    measure, losses = ("test loss", tests) if tests.keys() == kept.keys() else (of_validation, kept)
    against = pairings(losses[ours], {name: losses[name] for name in losses if name != ours})
    same = [pairing for pairing in against if budgets[pairing.other] == budgets[ours]]
    if not same:
        return None
    best = same[0]
    p = max(pairing.p for pairing in same) if best.ahead else min(1.0, len(same) * best.behind)
    hardest = max(same, key=lambda pairing: pairing.p) if best.ahead else best
    mine, theirs = paired(losses[ours], losses[hardest.other])
    return Verdict(
        pays=best.ahead if p < SURE and tried and math.isfinite(min(best.losses)) else None,
        problem=runs[0].key[0],
        budget=budgets[ours],
        ours=ours,
        others=len(same),
        measure=measure,
        p=p,
        needed=max(pairing.needed for pairing in same),
        needed_behind=seeds_needed(theirs, mine, SURE / len(same)),
        trials=(_trials(rivals, ours), _trials(rivals, best.other)),
        time=_seconds(rivals, ours) / _seconds(rivals, best.other),
        tried=tried,
        best=best,
        hardest=hardest,
        against=tuple(against),
        elsewhere=_ahead_elsewhere(against, budgets, ours),
    )


def _at(budget: Budget | None, ours: Budget | None) -> str:
    if budget is None:
        return "without a limit"
    return "at twice the budget" if ours is not None and budget == ours.times(2) else f"at {budget}"


def _ahead_elsewhere(
    against: Sequence[Pairing], budgets: Mapping[str, Budget | None], ours: str
) -> tuple[Pairing, Budget | None] | None:
    others = ((pairing, budgets[pairing.other]) for pairing in against if pairing.losses[1] < pairing.losses[0])
    return next((found for found in others if found[1] != budgets[ours]), None)


def _trials(runs: Sequence[History], method: str) -> float:
    """Return the median number of a method's trials that ended within the budget."""
    return float(np.median([within_budget(run).sum() for run in runs if run.key[1] == method]))


def _seconds(runs: Sequence[History], method: str) -> float:
    """Return the median seconds of a method's runs."""
    of_method = [run.trials for run in runs if run.key[1] == method]
    seconds = [sum(t.seconds + t.ask_seconds + t.tell_seconds for t in trials) for trials in of_method]
    return float(np.median(seconds)) or math.nan
