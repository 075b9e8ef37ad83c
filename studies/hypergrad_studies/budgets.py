"""What each method has found after so many training runs: medians over seeds, with intervals, from records alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import bootstrap

from hypergrad_studies.records import Key, Study
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History, by_problem, chosen, histories

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The median of some numbers, and its 95 % bootstrap interval (percentiles); bounds are equal for one number."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What a method has found on a problem.

    - `validation`, `test`: the losses after each number of training runs, None where a run had not so large a budget,
      or the problem has no test loss.
    - `fresh`: the test loss of training with keys that no trial had, at what was found in the end; the median over the
      keys of each run is one number.
    - `seeds`: the number of runs.
    """

    method: str
    validation: tuple[Interval | None, ...]
    test: tuple[Interval | None, ...]
    fresh: Interval | None
    seeds: int


def interval(numbers: Sequence[float]) -> Interval:
    """Return the median and its interval; infinite numbers are failed runs, and count."""
    losses = np.asarray(numbers, np.float64)
    median = float(np.median(losses))
    if len(losses) < 2 or not np.isfinite(losses).all():
        return Interval(median, float(losses.min()), float(losses.max()))
    found = bootstrap(
        (losses,), np.median, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
    ).confidence_interval
    return Interval(median, float(found.low), float(found.high))


def rows(study: Study, steps: Mapping[str, int], runs: Sequence[int]) -> dict[str, list[Row]]:
    """Return by problem a row for each method, after each of these numbers of training runs of so many steps."""
    fresh = {run.key: run.fresh for run in study.runs or ()}
    return {
        problem: [
            _row(method, [h for h in group if h.key[1] == method], steps[problem], runs, fresh)
            for method in dict.fromkeys(h.key[1] for h in group)
        ]
        for problem, group in by_problem(histories(study.records, study.runs)).items()
    }


def _row(
    method: str, group: Sequence[History], steps: int, runs: Sequence[int], fresh: Mapping[Key, tuple[float, ...]]
) -> Row:
    validation, test = zip(*(_after(group, steps * number) for number in runs), strict=True)
    medians = [float(np.median(fresh[h.key])) for h in group if fresh.get(h.key)]
    return Row(method, validation, test, interval(medians) if medians else None, len(group))


def _after(group: Sequence[History], budget: int) -> tuple[Interval | None, Interval | None]:
    if any(h.budget is not None and h.budget.amount < budget for h in group):
        return None, None
    best = [chosen(replace(h, budget=Budget(budget))) for h in group]
    validation = [math.inf if record is None else record.value for record in best]
    test = [math.inf if record is None else record.test_value for record in best]
    known = [loss for loss in test if loss is not None]
    return interval(validation), interval(known) if len(known) == len(test) else None


def markdown(tables: Mapping[str, Sequence[Row]], runs: Sequence[int], command: str) -> str:
    """Return the tables, the lowest median of each column in bold."""
    lines = [
        f"`{command}`: median validation / test loss after so many training runs, with the 95 % bootstrap interval of "
        "the test loss; last, the test loss with five keys that no trial had, at what was found in the end.",
        "",
    ]
    for problem, table in tables.items():
        lines += [
            f"| {problem} | " + " | ".join(f"{number} runs" for number in runs) + " | fresh keys | seeds |",
            "| --- |" + " ---: |" * (len(runs) + 2),
        ]
        best = [_lowest([row.test[i] for row in table]) for i in range(len(runs))]
        freshest = _lowest([row.fresh for row in table])
        known = [i for i in range(len(runs)) if all(row.validation[i] for row in table)]
        for row in sorted(table, key=partial(_found, after=known[-1] if known else 0)):
            cells = [_cell(v, t, b) for v, t, b in zip(row.validation, row.test, best, strict=True)]
            cells += [_bold(row.fresh, freshest), str(row.seeds)]
            lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _found(row: Row, after: int) -> float:
    found = row.test[after] or row.validation[after]
    return math.inf if found is None else found.median


def _lowest(intervals: Sequence[Interval | None]) -> float:
    return min((i.median for i in intervals if i is not None), default=math.nan)


def _cell(validation: Interval | None, test: Interval | None, best: float) -> str:
    if validation is None:
        return ""
    if test is None:
        return f"{validation.median:.3g}"
    return f"{validation.median:.3g} / {_bold(test, best)} ({test.low:.3g} to {test.high:.3g})"


def _bold(found: Interval | None, best: float) -> str:
    if found is None:
        return ""
    return f"**{found.median:.3g}**" if found.median == best else f"{found.median:.3g}"
