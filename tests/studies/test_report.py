"""The page and the terminal's table say what the statistics say, and survive poor studies."""

import html
import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hypergrad_studies import plots
from hypergrad_studies.json_lines import BrokenRecords
from hypergrad_studies.records import Plan, Record, Run, Study, add, begin, finish
from hypergrad_studies.report import COLUMNS, table, write_report
from hypergrad_studies.statistics import final_tests, finals, histories, summaries

LOSSES = {
    "tpe": [[0.5, 0.31], [0.6, 0.32], [0.7, 0.33], [0.5, 0.34], [0.5, 0.35]],
    "random": [[0.9, 0.51], [0.8, 0.52], [0.7, 0.53], [0.8, 0.54], [0.8, 0.55]],
}
"""Validation losses by method and seed; the test loss is 1 higher."""


def save(out: Path, records: list[Record], unfinished: frozenset[int] = frozenset()) -> Study:
    """Write a study into `out`, and return it; runs of `unfinished` seeds get no mark that they finished."""
    begin(out, Plan("optuna", 2))
    for record in records:
        add(out, record)
    for key in dict.fromkeys(record.key for record in records):
        if key[2] not in unfinished:
            trials = sum(r.key == key for r in records)
            finish(out, Run(*key, 2000, trials, wall_seconds=1.0, reseed=key[0] == "digits-noisy"))
    return Study.load(out)


def small(problem: str = "digits") -> list[Record]:
    return [
        Record(problem, method, seed, i, loss, loss + 1, 1000 * (i + 1), 1.5, 0.25, 0.0, "ok", None)
        for method, runs in LOSSES.items()
        for seed, values in enumerate(runs)
        for i, loss in enumerate(values)
    ]


def failed(seed: int = 9, error: str = "the loss was not finite") -> Record:
    return Record("digits", "random", seed, 0, math.inf, None, 1000, 1.0, 0.0, 0.0, "overflow", error)


def rows(page: str) -> list[list[str]]:
    """Return the texts of every table row on the page."""
    return [
        [html.unescape(re.sub(r"<[^>]*>", " ", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    ]


def terminal(study: Study) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(study.records, study.runs))
    return console.export_text(styles=True)


def test_page_shows_the_numbers(tmp_path: Path) -> None:
    save(tmp_path, small())
    page = write_report(tmp_path).read_text()
    shown = rows(page)
    assert list(COLUMNS) in shown
    assert [
        "tpe",
        "5",
        "0.330 (0.320\u20130.340)",
        "1.33 (1.32\u20131.34)",
        "2,000",
        "3",
        "0.5",
        "0",
    ] in shown
    assert [
        "random",
        "5",
        "0.530 (0.520\u20130.540)",
        "1.53 (1.52\u20131.54)",
        "2,000",
        "3",
        "0.5",
        "0",
    ] in shown
    assert page.count("<strong>0.330 (") == 1
    assert "<strong>0.530 (" not in page
    assert page.index(">tpe</th>") < page.index(">random</th>")
    # Five losses lie completely apart from the other five: p is 2 in 252, for one pair.
    assert ["tpe", "", "100% p = 0.0079"] in [[re.sub(r"\s+", " ", cell) for cell in row] for row in shown]
    assert "tpe has the lowest median validation loss, 0.330 (test 1.33), for 2,000 gradient evaluations" in page
    assert re.findall(r'class="(better|worse)">(\d+%)', page) == [("better", "100%"), ("worse", "0%")] * 2
    assert "unlikely to be chance (p = 0.0079)" in page


def test_page_warns_of_lucky_draws_where_trials_have_seeds_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, [*small("digits-noisy"), *small("digits-mlp")])
    assert write_report(tmp_path).read_text().count("lucky draw: go by the test loss") == 1


def test_page_is_self_contained(tmp_path: Path) -> None:
    save(tmp_path, small())
    page = write_report(tmp_path).read_text()
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?\s*(https?:|//|file:)', page)
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import", page)
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {a or b for a, b in targets} <= set(identifiers)


def test_page_can_be_made_again(tmp_path: Path) -> None:
    save(tmp_path, small())
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_exclusions_and_failures_are_listed(tmp_path: Path) -> None:
    save(tmp_path, [*small(), failed(9), failed(8, "<script>alert(1)</script>")], unfinished=frozenset({8}))
    page = write_report(tmp_path).read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    assert "ranked last with an infinite loss: random seed 9." in text
    assert "table of how trials ended: random seed 8." in text
    assert ["random", "10", "2"] in rows(page)
    assert ["random", "overflow", "the loss was not finite"] in rows(page)
    assert "<script" not in page
    assert ["random", "6"] in [row[:2] for row in rows(page)]


def test_error_text_is_escaped(tmp_path: Path) -> None:
    save(tmp_path, [failed(error="<script>alert(1)</script>")])
    page = write_report(tmp_path).read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("records", "unfinished", "says"),
    [
        ([], frozenset(), "No trial has been recorded yet."),
        ([failed()], frozenset(), "No method has a finite median validation loss."),
        ([failed()], frozenset({9}), "No run has finished."),
        (small()[:2], frozenset(), "tpe has the lowest median validation loss, 0.310 (test 1.31)"),
        ([replace(r, test_value=None) for r in small()], frozenset(), "This problem has no test loss."),
        ([replace(r, value=-r.value) for r in small()], frozenset(), "random has the lowest"),
    ],
)
def test_poor_studies_still_make_a_page(
    tmp_path: Path, records: list[Record], unfinished: frozenset[int], says: str
) -> None:
    study = save(tmp_path, records, unfinished)
    assert says in write_report(tmp_path).read_text()
    terminal(study)


def test_broken_records_make_no_page(tmp_path: Path) -> None:
    save(tmp_path, small())
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(json.dumps(asdict(failed()))[:-5])
    with pytest.raises(BrokenRecords, match="cut short"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_terminal_table_agrees_with_the_page(tmp_path: Path) -> None:
    study = save(tmp_path, [*small(), *small("mnist")])
    shown = terminal(study)
    assert shown.index("digits") < shown.index("mnist")
    assert shown.index("tpe") < shown.index("random")
    assert shown.count("(0.320\u20130.340)") == 2
    bold = re.findall(r"\x1b\[1m([^\x1b]*)\x1b", shown)
    assert sum("0.330" in text for text in bold) == 2
    assert not any("0.530" in text for text in bold)


def test_table_of_records_alone_counts_every_run() -> None:
    view = table([*small(), failed()])
    assert [cell.plain for cell in view.columns[1].cells if hasattr(cell, "plain")] == ["5", "6"]


def test_figures_are_svg_in_the_ink_of_the_page() -> None:
    runs = histories(small())
    look = plots.styles(run.key[1] for run in runs)
    for figure in (
        plots.curves(runs, look, "one"),
        plots.final_losses(final_tests(runs), finals(runs), look, "two"),
    ):
        assert ElementTree.fromstring(figure).tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" in figure
        assert "tpe (n = 5)" in figure
        assert look["tpe"].colour in figure


def test_styles_are_fixed_by_name_and_tell_methods_apart() -> None:
    alone, together = plots.styles(["tpe"]), plots.styles(["tpe", "random", "random-2x", "mine", "yours"])
    assert alone["tpe"] == together["tpe"]
    assert len(set(together.values())) == 5
    tpe = plots.styles(["tpe", "tpe-2x", "tpe-tied"])
    assert len({style.colour for style in tpe.values()}) == 1
    assert len({style.dashes for style in tpe.values()}) == 3


def test_columns_hold_a_cell_each(tmp_path: Path) -> None:
    study = save(tmp_path, small())
    (tpe, _) = summaries(histories(study.records, study.runs))
    assert len(table(study.records, study.runs).columns) == len(COLUMNS)
    assert tpe.gradient_evaluations == 2000
