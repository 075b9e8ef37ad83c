"""What the examination has found, as tables for the terminal and as a section of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from hypergrad_studies.bench_report import DASH, markdown_table, size
from hypergrad_studies.doctor import costs
from hypergrad_studies.doctor.findings import Findings
from hypergrad_studies.doctor.gradients import Agreement
from hypergrad_studies.doctor.reversals import Outcome


@dataclass(frozen=True)
class Sheet:
    """A table, before it is known where it is shown; its first column holds text, and others may hold numbers."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: bool
    note: str = ""


def tables(findings: Findings) -> list[Table]:
    """Return the tables for the terminal."""
    return [_table(sheet) for sheet in _sheets(findings)]


def markdown(findings: Findings, command: str) -> str:
    """Return the section of a page that `command` makes."""
    return "\n\n".join([f"`{command}`: {verdict(findings)}", *map(_markdown, _sheets(findings))]) + "\n"


def verdict(findings: Findings) -> str:
    """Return whether exact hypergradients can be trusted on the machine, in a sentence or two."""
    where = f"{findings.machine.kind} ({findings.machine.platform.upper()})"
    if findings.failures:
        return f"exact hypergradients cannot be trusted on {where}. {'; '.join(findings.failures)}"
    outcomes = [x.outcome for x in findings.reversals]
    trained = [x for x in outcomes if x is not Outcome.NOT_TRAINED]
    return (
        f"exact hypergradients can be trusted on {where}: of {len(outcomes):,} random settings {len(trained):,} could "
        "be trained, and all of these were reversed to the bit."
    )


def _table(sheet: Sheet) -> Table:
    view = Table(
        title=sheet.title,
        caption=sheet.note or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for i, heading in enumerate(sheet.headings):
        view.add_column(heading, justify="right" if sheet.numbers and i else "left")
    for row in sheet.rows:
        view.add_row(*row)
    return view


def _markdown(sheet: Sheet) -> str:
    rule = ["---", *["---:" if sheet.numbers else "---"] * (len(sheet.headings) - 1)]
    note = f"\n\n{sheet.note}" if sheet.note else ""
    return f"{sheet.title}:\n\n{markdown_table([sheet.headings, rule, *sheet.rows])}{note}"


def _sheets(findings: Findings) -> list[Sheet]:
    sheets = [_facts(findings), _checks(findings)]
    return [*sheets, _kinds(findings), _costs(findings)] if findings.reversals else sheets


def _facts(findings: Findings) -> Sheet:
    machine = findings.machine
    rows = [
        ("device", f"{machine.devices} x {machine.kind} ({machine.platform})"),
        *machine.versions.items(),
        ("float64 (x64)", "on" if machine.x64 else "off"),
        ("XLA_FLAGS", machine.xla_flags),
    ]
    return Sheet("The machine", ("", "found"), rows, numbers=False)


def _checks(findings: Findings) -> Sheet:
    rows = [(x.name, x.verdict, x.found, x.advice) for x in findings.machine.checks]
    return Sheet("What exact hypergradients need", ("", "verdict", "found", "set"), rows, numbers=False)


def _kinds(findings: Findings) -> Sheet:
    headings = ("", "settings", "exact", "isolated", "not trained", "inexact", "off", "float32 off", "verdict")
    note = (
        "Exact: trained, and run backwards to the same bits. Isolated: the same after the gradient was compiled by "
        "itself. Not trained: training itself failed, as with an overflow. Off: the relative error of the gradient "
        "against float64, the median and the largest; float32 off: that of float32 unrolled on the CPU."
    )
    rows = []
    for kind in findings.kinds:
        outcomes = findings.outcomes(kind)
        counts = [outcomes.total(), *(outcomes[x] for x in (Outcome.EXACT, Outcome.ISOLATED))]
        counts += [outcomes[x] for x in (Outcome.NOT_TRAINED, Outcome.INEXACT)]
        passed = "failed" if findings.fault(kind) else "ok"
        rows.append((kind, *(f"{n:,}" for n in counts), *_errors(findings.agreement(kind)), passed))
    return Sheet("Random settings", headings, rows, numbers=True, note=note)


def _errors(agreement: Agreement | None) -> tuple[str, str]:
    if agreement is None:
        return DASH, DASH
    first, second = (f"{np.median(x):.0e}, {np.max(x):.0e}" for x in (agreement.errors, agreement.on_the_cpu))
    return first, second


def _costs(findings: Findings) -> Sheet:
    peaks = any(x.is_peak for x in findings.costs)
    memory = "memory, the device's peak" if peaks else "memory, as XLA plans it"
    headings = ("", "value", "value and gradient", memory)
    rows = [(x.method, f"{x.value:.1f}", f"{x.both:.1f}", size(x.memory)) for x in findings.costs]
    note = f"Times are ratios to training in plain floats: {costs.CASE}, {costs.OPTIMIZER}."
    return Sheet("Time and memory", headings, rows, numbers=True, note=note)
