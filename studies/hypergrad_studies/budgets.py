"""What each method has found after so many training runs: medians over seeds, with intervals, from records alone."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import bootstrap

from hypergrad_studies.records import Key, Study
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History, by_problem, chosen, histories, quantile

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
    - `losses`: the test losses of the runs after each number of training runs, empty where `test` is None.
    """

    method: str
    validation: tuple[Interval | None, ...]
    test: tuple[Interval | None, ...]
    fresh: Interval | None
    seeds: int
    losses: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """Our median test loss as a multiple of that of the best other method, after so many training runs.

    - `ratio`: with its 95 % bootstrap interval, in which the seeds of both methods are drawn.
    - `ours`, `other`: the names, and `losses` the medians.
    """

    ratio: Interval
    ours: str
    other: str
    losses: tuple[float, float]


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
    validation, losses = zip(*(_after(group, steps * number) for number in runs), strict=True)
    test = tuple(interval(known) if known else None for known in losses)
    medians = [float(np.median(fresh[h.key])) for h in group if fresh.get(h.key)]
    return Row(method, validation, test, interval(medians) if medians else None, len(group), losses)


def _after(group: Sequence[History], budget: int) -> tuple[Interval | None, tuple[float, ...]]:
    """Return the validation losses after so many gradient evaluations, and the test losses of the runs."""
    if any(h.budget is not None and h.budget.amount < budget for h in group):
        return None, ()
    best = [chosen(replace(h, budget=Budget(budget))) for h in group]
    validation = [math.inf if record is None else record.value for record in best]
    test = [math.inf if record is None else record.test_value for record in best]
    known = tuple(loss for loss in test if loss is not None)
    return interval(validation), known if len(known) == len(test) else ()


def ratios(table: Sequence[Row], ours: Collection[str]) -> list[Ratio | None]:
    """Return for each number of training runs how the first of `ours` by name compares with the best of the others.

    None where ours has no finite median test loss, the best of the others has none above 0, or one of them had not so
    large a budget.
    """
    mine = min((row for row in table if row.method in ours), key=lambda row: row.method, default=None)
    others = [row for row in table if row.method not in ours]
    return [] if mine is None else [_ratio(mine, others, i) for i in range(len(mine.test))]


def _ratio(mine: Row, others: Sequence[Row], i: int) -> Ratio | None:
    own, known = mine.test[i], [(test.median, row.method, row) for row in others if (test := row.test[i]) is not None]
    if own is None or not math.isfinite(own.median) or not known or len(known) < len(others):
        return None
    median, _, best = min(known, key=lambda found: found[:2])
    if not 0 < median < math.inf:
        return None
    bounds = _bounds(np.asarray(mine.losses[i]), np.asarray(best.losses[i]))
    return Ratio(Interval(own.median / median, *bounds), mine.method, best.method, (own.median, median))


def _bounds(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the interval of the ratio of medians; infinite losses are failed runs, which count and are equal."""
    rng = np.random.default_rng(0)
    ours, others = (np.median(rng.choice(losses, (RESAMPLES, len(losses))), axis=1) for losses in (mine, theirs))
    equal = ours == others
    found = np.divide(ours, others, out=np.where(equal, 1.0, math.inf), where=~equal & (others != 0))
    low, high = (quantile(np.sort(found), (1 + side * CONFIDENCE) / 2) for side in (-1, 1))
    return float(low), float(high)


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
