"""The answer to "does it pay for my problem?", from the finished runs of one problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hypergrad_studies.budgets import Interval
from hypergrad_studies.pairing import SURE, Pairing, paired, pairings, seeds_needed, shown
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History, final_tests, validated, within_budget


@dataclass(frozen=True)
class Verdict:
    """Whether search by hypergradients pays for a problem at a budget; its text is a few sentences.

    Ours pays where it is lower than every other method of the same budget. This is tested against each of them, and the
    largest p-value counts; since all the tests must succeed, none is adjusted (an intersection-union test: Berger,
    Multiparameter hypothesis testing and acceptance sampling, Technometrics 24, 1982). That one of the others is lower
    than ours needs one success only, so there p is multiplied by the number of the others (Bonferroni).

    - `pays`: True where ours has the lowest median, and `p` is below 0.05; False where it has not; None where ours is
      ahead, and it may be chance, or where nothing can be said: the budget is too small for any trial of ours, or no
      method has a finite median.
    - `problem`, `budget`: what was compared, and with which budget.
    - `ours`, `other`: ours, and the other method of the same budget that has the lowest median loss. `others` is the
      number of those that it is the best of.
    - `measure`: "test loss"; or "validation loss" where there is no test loss, cross-validated where parts of the
      validation set were held back.
    - `losses`, `lower`, `wins`, `seeds`: ours against the other, as in `Pairing`.
    - `p`: that ours is lower than each of the others, or, where it does not pay, that the other is lower than ours.
    - `needed`: about how many seeds would be enough for a `p` below 0.05, if differences stay as they are; infinite
      where no number would.
    - `time`: how many times as long ours took, by the median seconds of evaluating, asking and telling;
      NaN where no seconds were measured.
    - `tried`: whether any trial of ours ended within the budget.
    - `best`: ours against `other`; `against`: ours against each other method, also those of another budget. The lowest
      median loss comes first.
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
    time: float
    tried: bool
    best: Pairing
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
        if self.best.level:
            return "is level"
        return {True: "pays", False: "does not pay", None: "may pay"}[self.pays]

    @property
    def sure(self) -> bool:
        """Whether it is unlikely to be chance."""
        return self.p < SURE

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
        ours, theirs = (f"{loss:.3g}" for loss in self.losses)
        other = self.other if self.others == 1 else f"{self.other}, the best of {self.others} others"
        if self.best.level:
            each = f"each of {self.seeds} seeds, of which the median is {ours}"
            return f"the {self.measure} is that of {other} on {each}.{self._took}"
        by = "" if self.lower is None else f", seed by seed {self.best.difference}"
        sure = f"it is lower on {self.wins} of {self.seeds} seeds ({self._p})."
        if self.pays is False:
            found = f"use {other}, with the {self.measure} {theirs}; ours is {ours}{by}, and {sure}"
        else:
            than = f"{theirs} of {other}"
            held = f"{ours} against the {than}" if self.lower is None else f"{ours}{by} than the {than}"
            found = f"the {self.measure} is {held}; {sure}"
        return f"{found}{'' if self.sure else self._doubt}{self._took}"

    def __str__(self) -> str:
        return f"{self.head}: {self.reason}"

    @property
    def _unknown(self) -> bool:
        return all(map(math.isinf, self.losses))

    @property
    def _took(self) -> str:
        return "" if math.isnan(self.time) else f" It took {self.time:.2g} times as long as {self.other}."

    @property
    def _elsewhere(self) -> str:
        if self.elsewhere is None:
            return ""
        pairing, budget = self.elsewhere
        return f" {pairing.other}, {_at(budget, self.budget)}, has {pairing.losses[1]:.3g}."

    @property
    def _p(self) -> str:
        if self.pays is False:
            of = "" if self.others == 1 else f", allowing for {self.others} others"
            return f"p {shown(self.p)} that {self.other} is lower{of}"
        at_most = "\N{LESS-THAN OR EQUAL TO}"
        return f"p {shown(self.p)}" if self.others == 1 else f"p {shown(self.p, at_most)} against each"

    @property
    def _doubt(self) -> str:
        if math.isinf(self.needed):
            return " This may be chance, and with differences such as these more seeds would not tell."
        return f" This may be chance: about {self.needed:,.0f} seeds would tell."


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
    measure, losses = ("test loss", tests) if tests.keys() == kept.keys() else ("validation loss", kept)
    against = pairings(losses[ours], {name: losses[name] for name in losses if name != ours})
    same = [pairing for pairing in against if budgets[pairing.other] == budgets[ours]]
    if not same:
        return None
    best = same[0]
    if best.ahead:
        p, needed = max(pairing.p for pairing in same), max(pairing.needed for pairing in same)
    else:
        mine, theirs = paired(losses[ours], losses[best.other])
        p, needed = min(1.0, len(same) * best.behind), seeds_needed(theirs, mine, SURE / len(same))
    return Verdict(
        pays=_answer(best, p) if tried and math.isfinite(min(best.losses)) else None,
        problem=runs[0].key[0],
        budget=budgets[ours],
        ours=ours,
        others=len(same),
        measure=measure,
        p=p,
        needed=needed,
        time=_seconds(rivals, ours) / _seconds(rivals, best.other),
        tried=tried,
        best=best,
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


def _answer(best: Pairing, p: float) -> bool | None:
    return (True if p < SURE else None) if best.ahead else False


def _seconds(runs: Sequence[History], method: str) -> float:
    """Return the median seconds of a method's runs."""
    of_method = [run.trials for run in runs if run.key[1] == method]
    seconds = [sum(t.seconds + t.ask_seconds + t.tell_seconds for t in trials) for trials in of_method]
    return float(np.median(seconds)) or math.nan
