"""The page and the terminal's table say what the statistics say, and survive poor studies."""

import html
import io
import json
import math
import re
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hypergrad_studies import plots
from hypergrad_studies.json_lines import BrokenRecords
from hypergrad_studies.records import Plan, Record, Run, Study, add, begin, finish
from hypergrad_studies.report import COLUMNS, table, verdicts, write_report
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


def text_of(page: str) -> str:
    """Return what a page says, in single spaces."""
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def rows(page: str) -> list[list[str]]:
    """Return the texts of every table row on the page."""
    found = [re.findall(r"<t[hd].*?</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    return [[text_of(cell) for cell in row] for row in found]


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
    assert page.count("<strong>0.330<") == 1
    assert "<strong>0.530<" not in page
    assert page.index(">tpe</a></th>") < page.index(">random</a></th>")
    assert "tpe has the lowest median validation loss, 0.330 (test 1.33), for 2,000 gradient evaluations" in page


def paired(out: Path) -> Study:
    """Write a study in which ours pays."""
    begin(out, Plan("optuna", 2000))
    for method, runs in LOSSES.items():
        name = {"tpe": "hypergrad", "random": "tpe"}[method]
        for seed, values in enumerate(runs):
            for i, loss in enumerate(values):
                point: dict[str, str | bool | int | float | None] = {"rate": 0.123456 * (i + 1), "kind": "adam"}
                point["l2"] = "640 numbers, 0 to 1, median 0.5"
                record = Record("digits", name, seed, i, loss, loss + 1, 1000 * (i + 1), 1.5, 0.25, 0.0, "ok", None)
                add(out, replace(record, hyperparameters=point))
            finish(out, Run("digits", name, seed, 2000, 2, 1.0, gradients=name == "hypergrad"))
    return Study.load(out)


def test_the_answer_comes_first_and_is_that_of_the_terminal(tmp_path: Path) -> None:
    (found,) = verdicts(paired(tmp_path)).values()
    page = write_report(tmp_path).read_text()
    text = text_of(page)
    assert found.pays
    assert text.index("Does search by hypergradients pay? pays") < text.index(str(found)) < text.index("has the lowest")
    (row,) = [row for row in rows(page) if row[:1] == ["tpe"] and "lower" in " ".join(row)]
    assert row == ["tpe", "1.53", "13 % (13 % to 13 %) lower", "5 of 5", "0.031", "0.031", "9"]
    assert "p = 0.031." in str(found)


def test_every_trial_is_listed(tmp_path: Path) -> None:
    study = paired(tmp_path)
    page = write_report(tmp_path).read_text()
    method = re.compile(r'<details id="trials-1-\d" data-method="(.*?)">(.*?)\n</details>\n</details>', re.DOTALL)
    run = re.compile(r'data-seed="(\d+)">.*?<script type="application/json">(.*?)</script>', re.DOTALL)
    texts = method.findall(page)
    lists = [(name, int(seed), json.loads(found)) for name, text in texts for seed, found in run.findall(text)]
    assert [(name, seed) for name, seed, _ in lists] == [(m, s) for m in ("hypergrad", "tpe") for s in range(5)]
    assert sum(len(found["rows"]) for *_, found in lists) == len(study.records)
    first = lists[0][2]
    assert dict(zip(first["columns"], first["rows"][1], strict=True)) == {
        "trial": 1,
        "validation": 0.31,
        "test": 1.31,
        "gradient evaluations": 2000,
        "seconds": 1.75,
        "status": "ok",
        "rate": 0.2469,
        "kind": "adam",
        "l2": "640 numbers, 0 to 1, median 0.5",
    }
    assert first["best"] == 1
    assert "seed 0: 2 trials, best 0.310, test 1.31, in trial 1" in page


def test_whole_numbers_are_listed_as_they_are(tmp_path: Path) -> None:
    point: dict[str, str | bool | int | float | None] = {
        "n": 123456,
        "most": 2**53,
        "seed": 2**53 + 1,
        "rate": 123456.7,
    }
    (first, *rest) = small()
    save(tmp_path, [replace(first, hyperparameters=point, gradient_evaluations=12345678901), *rest])
    found = json.loads(
        next(
            text
            for text in re.findall(
                r'<script type="application/json">(.*?)</script>', write_report(tmp_path).read_text()
            )
            if '"most"' in text
        )
    )
    row = dict(zip(found["columns"], found["rows"][0], strict=True))
    assert {name: row[name] for name in point} == point | {"seed": "9007199254740993", "rate": 123500}
    assert row["gradient evaluations"] == 12345678901


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    save(tmp_path, [replace(record, problem="c$_$", method=f"{record.method}$b^$") for record in small()])
    assert "tpe$b^$ (n = 5)" in write_report(tmp_path).read_text()


def test_the_table_says_by_what_it_is_sorted(tmp_path: Path) -> None:
    assert "sorted by validation loss" in terminal(save(tmp_path, small()))


def test_page_warns_of_lucky_draws_where_trials_have_seeds_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, [*small("digits-noisy"), *small("digits-mlp")])
    assert write_report(tmp_path).read_text().count("lucky draw: go by the test loss") == 1


def test_page_is_self_contained(tmp_path: Path) -> None:
    save(tmp_path, small())
    page = write_report(tmp_path).read_text()
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?\s*(https?:|//|file:)', page)
    assert not re.search(r"<(link|img|iframe|object)\b|<script[^>]* src|@import|fetch\(|import\(|XMLHttpRequest", page)
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
    assert "<script>alert" not in page
    assert ["random", "6"] in [row[:2] for row in rows(page)]


def test_error_text_is_escaped(tmp_path: Path) -> None:
    save(tmp_path, [failed(error="<script>alert(1)</script>")])
    page = write_report(tmp_path).read_text()
    assert "&lt;script&gt;" in page
    assert "\\u003cscript\\u003ealert" in page  # in the list of trials
    assert "<script>alert" not in page


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
    panels = plots.curves(runs, look, "one")
    assert [panel.cost for panel in panels] == ["gradient evaluations", "seconds of work"]
    for figure in (*(p.svg for p in panels), plots.final_losses(final_tests(runs), finals(runs), look, "two")):
        found = ElementTree.fromstring(figure)
        assert found.tag == "{http://www.w3.org/2000/svg}svg"
        assert found.attrib["role"] == "img"
        assert "methods" in found.attrib["aria-label"]
        assert "currentColor" in figure
        assert look["tpe"].css in figure


def test_dots_lie_where_the_axis_says() -> None:
    """The dots of the test losses are laid over the figure by its transformation; the axis's own ticks must agree."""
    losses = {"tpe": {0: 1.0, 1: 2.0}, "random": {0: 3.0, 1: math.inf}}
    look = plots.styles(losses)
    figure = ElementTree.fromstring(plots.final_losses(losses, losses, look, "dots"))
    svg = "{http://www.w3.org/2000/svg}"
    dots = {(d.attrib["data-method"], d.attrib["data-seed"]): d for d in figure.iter(f"{svg}circle")}
    assert sorted(dots) == [("random", "0"), ("tpe", "0"), ("tpe", "1")]
    ticks = {}
    for group in figure.iter(f"{svg}g"):
        if "xtick_" in group.attrib.get("id", ""):
            text = next(group.iter(f"{svg}text"))
            ticks[float(text.text or "nan")] = float(next(group.iter(f"{svg}use")).attrib["x"])
    for key, loss in zip(sorted(dots), (3.0, 1.0, 2.0), strict=True):
        assert float(dots[key].attrib["cx"]) == pytest.approx(ticks[loss], abs=0.2)
    assert [dots[key].findtext(f"{svg}title") for key in sorted(dots)] == [
        "random, seed 0: 3",
        "tpe, seed 0: 1",
        "tpe, seed 1: 2",
    ]


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as the Web Content Accessibility Guidelines define it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_curves_stand_out_from_light_and_dark_paper() -> None:
    known = ["hypergrad", "hypergrad-unlifted", "tpe", "gp", "cmaes", "hyperband", "random", "a", "b", "c", "d"]
    style = files("hypergrad_studies").joinpath("style.html").read_text()
    ((light, dark),) = re.findall(r"--paper: light-dark\((#\w{6}), (#\w{6})\)", style)
    for name, look in plots.styles(known).items():
        assert (luminance(light) + 0.05) / (luminance(look.colour) + 0.05) > 3, name
        assert (luminance(look.dark) + 0.05) / (luminance(dark) + 0.05) > 3, name


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
