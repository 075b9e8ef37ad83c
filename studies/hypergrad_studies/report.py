"""The report of a study: a page and a table for the terminal, both made from the study's records alone."""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from hypergrad_studies import plots
from hypergrad_studies.pages import render
from hypergrad_studies.records import Key, Record, Run, Study
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget
from hypergrad_studies.statistics import (
    History,
    Quartiles,
    Summary,
    by_problem,
    compare,
    final_tests,
    finals,
    histories,
    statuses,
    summaries,
    unfinished,
    win_rate,
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
    "failures",
)
"""Headings of the main table, in the terminal and on the page."""

_OF_NOISE = (
    " Each trial had a seed of its own here, so that the lowest validation loss is in part a lucky draw:"
    " go by the test loss of several seeds."
)


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    best: frozenset[str]
    colour: str


@dataclass(frozen=True)
class _Cell:
    wins: str
    p: str
    outcome: str


@dataclass(frozen=True)
class _Pairs:
    measure: str
    methods: tuple[str, ...]
    cells: tuple[tuple[_Cell | None, ...], ...]
    count: int


@dataclass(frozen=True)
class _Endings:
    statuses: list[str]
    counts: dict[str, list[int]]
    errors: list[tuple[str, str, str]]


@dataclass(frozen=True)
class _Section:
    problem: str
    words: list[str]
    budgets: str
    rows: list[_Row]
    curves: Markup
    final_losses: Markup | None
    pairs: list[_Pairs]
    endings: _Endings
    without_result: list[Key]
    unfinished: list[Key]


def table(records: Sequence[Record], runs: Sequence[Run] | None = None) -> Table:
    """Return the main table for a terminal, about 95 columns wide: a row for each method on each problem, best in bold.

    Runs that did not finish are left out; where `runs` is None, all count as finished.
    """
    view = Table(
        title="Median over seeds (lower to upper quartile)",
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

    The page needs no network and no script; the same records give the same page.
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
    order = [row.method for row in rows]
    validation, test = finals(runs), final_tests(runs)
    return _Section(
        problem,
        ([] if found is None else [str(found)])
        + [_winner(rows, validation) + (_OF_NOISE if any(run.reseed for run in runs) else "")],
        _budgets(runs),
        [_Row(_cells(row), _best(row, rows), look[row.method].colour) for row in rows],
        Markup(plots.curves(runs, look, identifier + "a") if runs else ""),
        Markup(plots.final_losses(test, validation, look, identifier + "b")) if test else None,
        [
            _pairs(measure, {method: losses[method] for method in order if method in losses})
            for measure, losses in (("validation loss", validation), ("test loss", test))
            if len(losses) > 1
        ],
        _endings(records),
        without_result(runs),
        left_out,
    )


def _winner(rows: Sequence[Summary], validation: Mapping[str, Mapping[int, float]]) -> str:
    """Say which method won, by how much, at which cost, and whether it may be chance."""
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
        (p,) = (c.holm for c in compare(validation) if {c.first, c.second} == {best.method, others[0].method})
        chance = "unlikely to be chance" if p < 0.05 else "possibly chance"
        text += f" {others[0].method} comes next with {_losses(others[0])}; the difference is {chance} ({_p(p)})."
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


def _pairs(measure: str, losses: Mapping[str, Mapping[int, float]]) -> _Pairs:
    comparisons = compare(losses)
    adjusted = {frozenset((c.first, c.second)): c.holm for c in comparisons}

    def cell(row: str, column: str) -> _Cell | None:
        if row == column:
            return None
        wins, p = win_rate(losses[row], losses[column]), adjusted[frozenset((row, column))]
        outcome = "" if p >= 0.05 or wins.n == 0 else "better" if wins.rate > 0.5 else "worse"
        return _Cell(f"{wins.rate:.0%}" if wins.n else "\N{EN DASH}", _p(p), outcome)

    methods = tuple(losses)
    cells = tuple(tuple(cell(row, column) for column in methods) for row in methods)
    return _Pairs(measure, methods, cells, len(comparisons))


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
        "\N{EN DASH}" if row.gradient_evaluations is None else _count(row.gradient_evaluations),
        _seconds(row.seconds),
        _seconds(row.ask_tell_seconds),
        str(row.failures),
    )


def _quartiles(values: Quartiles | None) -> str:
    if values is None:
        return "\N{EN DASH}"
    return f"{_loss(values.median)} ({_loss(values.lower)}\N{EN DASH}{_loss(values.upper)})"


def _loss(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else "\N{INFINITY}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
