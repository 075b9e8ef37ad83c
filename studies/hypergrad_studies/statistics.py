"""Each number of a report, defined as a pure function of records.

A trial *counts* when its value is sound (`Record.sound`) and finite, and it ended within the run's budget. All other
trials cost, but do not count: a pruned trial was stopped early, and a failed trial has no loss. A run in which no trial
counts has the validation and test loss +inf; it ranks last, and is never dropped.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hypergrad_studies.records import Key, Record, Run
from hypergrad_studies.spending import SECONDS, Budget

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class History:
    """One run: its trials in the order finished, its budget (None: no limit), and what `Run` says of it."""

    key: Key
    trials: tuple[Record, ...]
    budget: Budget | None = None
    gradients: bool = False
    reseed: bool = False

    @property
    def counted(self) -> bool:
        """Whether the gradient evaluations of all trials are known."""
        return all(trial.gradient_evaluations is not None for trial in self.trials)


@dataclass(frozen=True)
class Curve:
    """A step curve: from cost `x[i]` on the loss is `y[i]`; before `x[0]` it is +inf. Shapes (trials,)."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile of `n` numbers."""

    lower: float
    median: float
    upper: float
    n: int


@dataclass(frozen=True)
class Band:
    """Quartiles over `n` step curves. They are exact, and step curves themselves, each of shape (steps,)."""

    x: Array
    lower: Array
    median: Array
    upper: Array
    n: int


@dataclass(frozen=True)
class Summary:
    """One row of a report's table: a method on a problem, over its finished runs.

    The three costs are medians over runs of what a whole run spent. `test` is None where no test loss exists.
    """

    problem: str
    method: str
    validation: Quartiles
    test: Quartiles | None
    gradient_evaluations: float | None
    seconds: float
    ask_tell_seconds: float
    failures: int


def histories(records: Iterable[Record], runs: Sequence[Run] | None = None) -> list[History]:
    """Return the finished runs, sorted by key; all runs where `runs` is None. A run may have no trials at all."""
    trials: dict[Key, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.trial):
        trials[record.key].append(record)
    if runs is None:
        return [History(key, tuple(trials[key])) for key in sorted(trials)]
    return [
        History(run.key, tuple(trials[run.key]), run.limit, run.gradients, run.reseed)
        for run in sorted(runs, key=lambda run: run.key)
    ]


def unfinished(records: Iterable[Record], runs: Sequence[Run] | None = None) -> list[Key]:
    """Return the runs that have trials but did not finish; reports list them and leave them out of every number."""
    done = None if runs is None else {run.key for run in runs}
    return sorted({record.key for record in records if done is not None and record.key not in done})


def without_result(runs: Iterable[History]) -> list[Key]:
    """Return the runs in which no trial counts; reports list them and rank them last, with a loss of +inf."""
    return [run.key for run in runs if chosen(run) is None]


def losses(run: History) -> Array:
    """Return the validation loss of each trial that counts, and +inf for the others. The shape is (trials,)."""
    values = np.array([t.value if t.sound and math.isfinite(t.value) else math.inf for t in run.trials], np.float64)
    return np.where(within_budget(run), values, math.inf)


def within_budget(run: History) -> Bools:
    """Return for each trial whether it had ended when the budget was spent. The shape is (trials,)."""
    spent = _seconds(run) if run.budget is not None and run.budget.unit == SECONDS else _evaluations(run)
    return spent <= (math.inf if run.budget is None else run.budget.amount)


def _evaluations(run: History) -> Array:
    """Return the gradient evaluations spent when each trial ended; 0 where they are not known."""
    return np.array([t.gradient_evaluations or 0 for t in run.trials], np.float64)


def _seconds(run: History) -> Array:
    return np.cumsum([t.seconds + t.ask_seconds + t.tell_seconds for t in run.trials], dtype=np.float64)


def by_gradient_evaluations(run: History) -> Curve:
    """Return the best validation loss so far against the gradient evaluations that the run has spent."""
    return Curve(_evaluations(run), np.minimum.accumulate(losses(run)))


def by_seconds(run: History) -> Curve:
    """Return the best validation loss so far against the seconds of evaluating, asking and telling, over all trials."""
    return Curve(_seconds(run), np.minimum.accumulate(losses(run)))


def chosen(run: History) -> Record | None:
    """Return the trial with the best validation loss, the earliest of equals; None where no trial counts."""
    values = losses(run)
    return run.trials[int(np.argmin(values))] if np.isfinite(values).any() else None


def final(run: History) -> float:
    """Return the best validation loss at the budget; +inf where no trial counts."""
    best = chosen(run)
    return math.inf if best is None else best.value


def final_test(run: History) -> float | None:
    """Return the test loss at the chosen trial: +inf if not finite or if no trial counts, None if not measured."""
    best = chosen(run)
    if best is None:
        return math.inf
    if best.test_value is None:
        return None
    return best.test_value if math.isfinite(best.test_value) else math.inf


def finals(runs: Iterable[History]) -> dict[str, dict[int, float]]:
    """Return the final validation loss for each method and seed. The runs must be of one problem."""
    table: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        table[run.key[1]][run.key[2]] = final(run)
    return dict(table)


def final_tests(runs: Sequence[History]) -> dict[str, dict[int, float]]:
    """Return the test loss at the chosen trial for each method and seed; empty where the problem has no test loss."""
    if all(trial.test_value is None for run in runs for trial in run.trials):
        return {}
    table: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        value = final_test(run)
        if value is not None:
            table[run.key[1]][run.key[2]] = value
    return dict(table)


def validated(runs: Iterable[History]) -> dict[str, dict[int, float]]:
    """Return the validation loss at each run's chosen trial, cross-validated where parts are held back.

    With thousands of hyperparameters the validation loss itself means little, since they fit it.
    """
    table: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        best = chosen(run)
        if best is None:
            table[run.key[1]][run.key[2]] = math.inf
        else:
            table[run.key[1]][run.key[2]] = best.value if best.cross_validated is None else best.cross_validated
    return dict(table)


def resample(curve: Curve, grid: Array) -> Array:
    """Return the step curve's value at each cost in `grid`, any shape; its last value holds beyond its end."""
    before_first = np.concatenate([[math.inf], curve.y])
    return before_first[np.searchsorted(curve.x, grid, side="right")]


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return quartiles, interpolated linearly, which may be +inf. Raises `ValueError` where there are no values."""
    if not values:
        raise ValueError("values must hold at least one number, got none; leave the method out instead")
    lower, median, upper = _quantiles(np.asarray(values, dtype=np.float64))
    return Quartiles(float(lower), float(median), float(upper), len(values))


def quantile(ordered: Array, fraction: float) -> Array:
    """Return a quantile over the first axis, which is sorted, where `np.quantile` would turn infinities into NaN."""
    position = fraction * (len(ordered) - 1)
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    weight = position % 1.0
    finite = np.isfinite(above)
    mixed = np.where(finite, below, 0.0) * (1.0 - weight) + np.where(finite, above, 0.0) * weight
    return np.where(finite, mixed, above)


def band(curves: Sequence[Curve]) -> Band:
    """Return quartiles over step curves at each cost where one of them changes. Raises `ValueError` without curves."""
    if not curves:
        raise ValueError("curves must hold at least one curve, got none; leave the method out instead")
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    if grid.size == 0:
        return Band(grid, grid, grid, grid, len(curves))
    rows = np.stack(_quantiles(np.stack([resample(curve, grid) for curve in curves])))
    # Best-so-far curves seldom change, so what is left is exact and small.
    kept = np.concatenate([[True], np.any(rows[:, 1:] != rows[:, :-1], axis=0)])
    kept[-1] = True
    lower, median, upper = rows[:, kept]
    return Band(grid[kept], lower, median, upper, len(curves))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method, in the order given."""
    adjusted = [0.0] * len(p)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        floor = max(floor, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = floor
    return adjusted


def statuses(records: Iterable[Record]) -> Counter[str]:
    """Return how many trials ended with each status."""
    return Counter(record.status for record in records)


def failures(records: Iterable[Record]) -> int:
    """Return how many trials failed; see `Record.failed`."""
    return sum(record.failed for record in records)


def summaries(runs: Iterable[History]) -> list[Summary]:
    """Return a row for each method on each problem, sorted by problem, median validation loss and method."""
    rows = []
    for group in by_problem(runs).values():
        validation, test = finals(group), final_tests(group)
        for method in validation:
            own = [run for run in group if run.key[1] == method]
            rows.append(_summary(own, validation[method], test.get(method, {})))
    return sorted(rows, key=lambda row: (row.problem, row.validation.median, row.method))


def by_problem(runs: Iterable[History]) -> dict[str, list[History]]:
    """Return the runs of each problem, in the order given."""
    groups: dict[str, list[History]] = defaultdict(list)
    for run in runs:
        groups[run.key[0]].append(run)
    return dict(groups)


def _summary(runs: list[History], validation: Mapping[int, float], test: Mapping[int, float]) -> Summary:
    problem, method, _ = runs[0].key
    trials = [trial for run in runs for trial in run.trials]
    return Summary(
        problem,
        method,
        quartiles(list(validation.values())),
        quartiles(list(test.values())) if test else None,
        float(np.median([max(_evaluations(run), default=0) for run in runs])) if all(r.counted for r in runs) else None,
        float(np.median([sum(t.seconds for t in run.trials) for run in runs])),
        float(np.median([sum(t.ask_seconds + t.tell_seconds for t in run.trials) for run in runs])),
        failures(trials),
    )


def _quantiles(values: Array) -> tuple[Array, Array, Array]:
    ordered = np.sort(values, axis=0)
    return quantile(ordered, 0.25), quantile(ordered, 0.5), quantile(ordered, 0.75)
