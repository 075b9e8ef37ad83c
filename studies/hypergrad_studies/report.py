"""The report of a study: a page and a table for the terminal, both made from the study's records alone."""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from hypergrad_studies import plots
from hypergrad_studies.pages import render
from hypergrad_studies.pairing import fewest, shown
from hypergrad_studies.records import Key, Record, Run, Study
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget
from hypergrad_studies.statistics import (
    Curve,
    History,
    Quartiles,
    Summary,
    by_problem,
    chosen,
    final_tests,
    finals,
    histories,
    resample,
    statuses,
    summaries,
    unfinished,
    without_result,
)
from hypergrad_studies.verdict import Verdict, verdict

COLUMNS = (
    "method",
    "seeds",
    "validation loss",
    "test loss",
    "gradient evaluations",
    "evaluating (s)",
    "ask + tell (s)",
    "failed",
)
"""Headings of the main table, in the terminal and on the page."""

DASH = "\N{EN DASH}"

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the largest cost, at which a table shows the curves

_OF_NOISE = (
    " Each trial had a seed of its own here, so that the lowest validation loss is in part a lucky draw:"
    " go by the test loss of several seeds."
)


@dataclass(frozen=True)
class _Row:
    cells: list[tuple[str, str]]
    best: frozenset[str]
    style: plots.Style


@dataclass(frozen=True)
class _Against:
    """A row of the table of ours against others, as texts."""

    other: str
    loss: str
    difference: str
    wins: str
    p: str
    adjusted: str
    needed: str
    judged: bool


@dataclass(frozen=True)
class _Endings:
    statuses: list[str]
    counts: dict[str, list[int]]
    errors: list[tuple[str, str, str]]


@dataclass(frozen=True)
class _Readout:
    """A panel, the numbers behind it as JSON, and those at some costs for a table."""

    panel: plots.Panel
    json: dict[str, Any]
    costs: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class _Listed:
    """The trials of a run: a text on what it found, and a table as JSON."""

    seed: int
    found: str
    json: dict[str, Any]


@dataclass(frozen=True)
class _Section:
    problem: str
    verdict: Verdict | None
    against: list[_Against]
    words: str
    budgets: str
    rows: list[_Row]
    legend: list[tuple[str, int, plots.Style]]
    curves: list[_Readout]
    final_losses: Markup | None
    endings: _Endings
    trials: dict[str, list[_Listed]]
    without_result: list[Key]
    unfinished: list[Key]


def table(records: Sequence[Record], runs: Sequence[Run] | None = None) -> Table:
    """Return the main table for a terminal, about 95 columns wide: a row for each method on each problem, best in bold.

    Runs that did not finish are left out; where `runs` is None, all count as finished.
    """
    view = Table(
        title="Median over seeds (lower to upper quartile), sorted by validation loss",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in COLUMNS:
        align: Literal["left", "right"] = "left" if heading == "method" else "right"
        view.add_column(heading.replace(" ", "\n", 1), justify=align, no_wrap=True)
    for problem, rows in _by_problem(summaries(histories(records, runs))).items():
        view.add_section()
        view.add_row(Text(problem, style="italic"))
        for summary in rows:
            best = _best(summary, rows)
            named = zip(COLUMNS, _cells(summary), strict=True)
            view.add_row(
                *(Text(cell.replace(" (", "\n("), style="bold" if heading in best else "") for heading, cell in named)
            )
    return view


def verdicts(study: Study) -> dict[str, Verdict]:
    """Return by problem whether search by hypergradients pays; a problem without ours or without others has none."""
    found = {problem: verdict(runs) for problem, runs in by_problem(histories(*study.parts)).items()}
    return {problem: of_problem for problem, of_problem in found.items() if of_problem is not None}


def write_report(out: Path) -> Path:
    """Write `report.html` into the study's folder `out`, and return its path. Raises `BrokenRecords`.

    The page is one file, which needs no network; the same records give the same page.
    """
    study = Study.load(out)
    runs = histories(study.records, study.runs)
    look = plots.styles(run.key[1] for run in runs)
    left_out = unfinished(study.records, study.runs)
    problems = sorted({run.key[0] for run in runs} | {key[0] for key in left_out})
    groups = by_problem(runs)
    found = verdicts(study)
    page = render(
        "report.html",
        name=out.resolve().name,
        columns=COLUMNS,
        fewest=fewest(),
        sections=[
            _section(
                problem,
                groups.get(problem, []),
                found.get(problem),
                [record for record in study.records if record.problem == problem],
                [key for key in left_out if key[0] == problem],
                look,
                f"figure{number}",
            )
            for number, problem in enumerate(problems)
        ],
        n_runs=len(runs),
        n_trials=len(study.records),
        command=f"hypergrad report {shlex.quote(str(out))}",
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _section(
    problem: str,
    runs: list[History],
    found: Verdict | None,
    records: list[Record],
    left_out: list[Key],
    look: Mapping[str, plots.Style],
    identifier: str,
) -> _Section:
    rows = summaries(runs)
    validation, test = finals(runs), final_tests(runs)
    of_method = {row.method: [run for run in runs if run.key[1] == row.method] for row in rows}
    return _Section(
        problem,
        found,
        [] if found is None else _against(found, {run.key[1]: run.budget for run in runs}),
        _winner(rows) + (_OF_NOISE if any(run.reseed for run in runs) else ""),
        _budgets(runs),
        [_Row([_parts(cell) for cell in _cells(row)], _best(row, rows), look[row.method]) for row in rows],
        [(row.method, row.validation.n, look[row.method]) for row in rows],
        [_readout(panel, look) for panel in plots.curves(runs, look, identifier + "a")] if runs else [],
        Markup(plots.final_losses(test, validation, look, identifier + "b")) if test else None,
        _endings(records),
        {method: [_listed(run) for run in of_method[method]] for method in of_method},
        without_result(runs),
        left_out,
    )


def _readout(panel: plots.Panel, look: Mapping[str, plots.Style]) -> _Readout:
    ends = [band.x[-1] for band in panel.bands.values() if band.x.size]
    costs = [max(ends, default=0.0) * share for share in _SHARES]
    rows = []
    for method, band in panel.bands.items():
        curves = [Curve(band.x, y) for y in (band.median, band.lower, band.upper)]
        values = zip(*(resample(curve, np.asarray(costs)) for curve in curves), strict=True)
        rows.append((method, [(_loss(m), f"({_loss(low)}{DASH}{_loss(high)})") for m, low, high in values]))
    axes = {name: {"ends": axis.ends, "limits": axis.limits, "log": axis.log} for name, axis in panel.axes.items()}
    lines = [
        {
            "method": method,
            "colour": look[method].css,
            **{name: [_rounded(v) for v in getattr(band, name)] for name in ("x", "median", "lower", "upper")},
        }
        for method, band in panel.bands.items()
    ]
    return _Readout(panel, {"cost": panel.cost, **axes, "lines": lines}, [_amount(cost) for cost in costs], rows)


def _listed(run: History) -> _Listed:
    best = chosen(run)
    found = "no trial counts"
    if best is not None:
        test = "" if best.test_value is None else f", test {_loss(best.test_value)}"
        found = f"best {_loss(best.value)}{test}, in trial {best.trial}"
    names = list(dict.fromkeys(name for trial in run.trials for name in trial.hyperparameters or ()))
    errors = ["error"] if any(trial.error for trial in run.trials) else []
    counted = [GRADIENT_EVALUATIONS] if run.counted else []
    rows = [
        [
            trial.trial,
            *(_rounded(loss) for loss in (trial.value, trial.test_value)),
            *(_rounded(trial.gradient_evaluations, 9) for _ in counted),
            _rounded(trial.seconds + trial.ask_seconds + trial.tell_seconds),
            trial.status,
            *(_rounded((trial.hyperparameters or {}).get(name)) for name in names),
            *(trial.error for _ in errors),
        ]
        for trial in run.trials
    ]
    count = f"{len(rows)} trial{'' if len(rows) == 1 else 's'}"
    columns = ["trial", "validation", "test", *counted, "seconds", "status", *names, *errors]
    return _Listed(
        run.key[2],
        f"{count}, {found}",
        {"columns": columns, "rows": rows, "best": None if best is None else best.trial},
    )


def _rounded(value: Any, digits: int = 4) -> Any:
    """Return a fraction with so many digits, so that the page stays small, and all else as it is.

    Whole numbers that JavaScript would round become texts.
    """
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int):
        return value if abs(value) <= 2**53 else str(value)
    if not math.isfinite(value):
        return _loss(value)
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _against(found: Verdict, budgets: Mapping[str, Budget | None]) -> list[_Against]:
    return [
        _Against(
            pairing.other,
            _loss(pairing.losses[1]),
            pairing.difference,
            f"{pairing.wins} of {pairing.seeds}",
            shown(pairing.p, "").strip(),
            shown(pairing.holm, "").strip(),
            DASH if math.isinf(pairing.needed) else _count(pairing.needed),
            budgets[pairing.other] == found.budget,
        )
        for pairing in found.against
    ]


def _winner(rows: Sequence[Summary]) -> str:
    """Say which method has the lowest validation loss, at which cost, and which one comes next."""
    if not rows:
        return "No run has finished."
    best, *others = rows
    if not math.isfinite(best.validation.median):
        return "No method has a finite median validation loss."
    text = (
        f"{best.method} has the lowest median validation loss, {_losses(best)}, for "
        f"{_costs(best)}{_seconds(best.seconds + best.ask_tell_seconds)} s of work a run."
    )
    if others:
        text += f" {others[0].method} comes next with {_losses(others[0])}."
    tested = [row for row in rows if row.test is not None and math.isfinite(row.test.median)]
    if tested:
        winner = min(tested, key=lambda row: row.test.median if row.test else math.inf)
        if winner is not best and winner.test is not None:
            text += f" On the test set {winner.method} is ahead with {_loss(winner.test.median)}."
    return text


def _costs(row: Summary) -> str:
    return "" if row.gradient_evaluations is None else f"{_count(row.gradient_evaluations)} {GRADIENT_EVALUATIONS} and "


def _losses(row: Summary) -> str:
    test = f" (test {_loss(row.test.median)})" if row.test else ""
    return _loss(row.validation.median) + test


def _budgets(runs: Iterable[History]) -> str:
    methods: dict[Budget | None, set[str]] = defaultdict(set)
    for run in runs:
        methods[run.budget].add(run.key[1])
    ordered = sorted(methods, key=lambda budget: 0 if budget is None else budget.amount)
    return "; ".join(f"{', '.join(sorted(methods[budget]))}: {budget or 'no limit'}" for budget in ordered)


def _endings(records: Sequence[Record]) -> _Endings:
    """Return how many trials of each method had each status, and the first error of each method and status."""
    ranked = [status for status, _ in statuses(records).most_common()]
    methods = sorted({record.method for record in records})
    counts = {method: statuses(r for r in records if r.method == method) for method in methods}
    errors: dict[tuple[str, str], str] = {}
    for record in records:
        if record.error:
            errors.setdefault((record.method, record.status), record.error)
    return _Endings(
        ranked,
        {method: [counts[method][status] for status in ranked] for method in methods},
        [(method, status, error) for (method, status), error in sorted(errors.items())],
    )


def _by_problem(rows: Iterable[Summary]) -> dict[str, list[Summary]]:
    groups: dict[str, list[Summary]] = defaultdict(list)
    for row in rows:
        groups[row.problem].append(row)
    return groups


def _best(row: Summary, rows: Sequence[Summary]) -> frozenset[str]:
    """Return the headings under which `row` has the lowest median of `rows`."""

    def lowest(mine: Quartiles | None, all_: Iterable[Quartiles | None]) -> bool:
        medians = [quartiles.median for quartiles in all_ if quartiles is not None]
        return mine is not None and math.isfinite(mine.median) and mine.median == min(medians)

    best = set()
    if lowest(row.validation, (other.validation for other in rows)):
        best.add("validation loss")
    if lowest(row.test, (other.test for other in rows)):
        best.add("test loss")
    return frozenset(best)


def _cells(row: Summary) -> tuple[str, ...]:
    """Return one text for each of `COLUMNS`."""
    return (
        row.method,
        str(row.validation.n),
        _quartiles(row.validation),
        _quartiles(row.test),
        DASH if row.gradient_evaluations is None else _count(row.gradient_evaluations),
        _seconds(row.seconds),
        _seconds(row.ask_tell_seconds),
        str(row.failures),
    )


def _quartiles(values: Quartiles | None) -> str:
    if values is None:
        return DASH
    return f"{_loss(values.median)} ({_loss(values.lower)}{DASH}{_loss(values.upper)})"


def _parts(cell: str) -> tuple[str, str]:
    """Return what stands in a cell, and what stands below it: the quartiles in brackets."""
    median, bracket, below = cell.partition(" (")
    return median, bracket.strip() + below


def _loss(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else "\N{INFINITY}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _amount(value: float) -> str:
    return _count(value) if value >= 100 else f"{value:.3g}"
