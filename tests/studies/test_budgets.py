"""The table of what each method had found after so many training runs."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hypergrad_studies import records
from hypergrad_studies.budgets import Interval, Ratio, Row, interval, markdown, ratios, rows
from hypergrad_studies.budgets_plot import write_plot
from hypergrad_studies.cli import cli
from hypergrad_studies.records import Plan, Record, Run, Study

STEPS = {"digits-mlp": 100}


def record(method: str, seed: int, trial: int, value: float, spent: int) -> Record:
    return Record("digits-mlp", method, seed, trial, value, value + 1, spent, 1.0, 0.0, 0.0, "ok", None)


def study() -> Study:
    """Two methods with three seeds, of which the second one has a later and better trial."""
    plain = [record("a", seed, i, 3.0 - i + seed, 100 * (i + 1)) for seed in range(3) for i in range(3)]
    others = [record("b", seed, 0, 5.0, 100) for seed in range(3)]
    others += [record("b", seed, 1, 1.5, 300) for seed in range(3)]
    runs = [Run("digits-mlp", "a", seed, 300, 3, 1.0, (7.0, 8.0, 90.0)) for seed in range(3)]
    runs += [Run("digits-mlp", "b", seed, 300, 2, 1.0) for seed in range(3)]
    return Study((*plain, *others), tuple(runs))


def test_medians_are_those_of_the_trials_within_the_budget() -> None:
    first, second = rows(study(), STEPS, (1, 3, 4))["digits-mlp"]
    assert [first.method, first.seeds, second.method] == ["a", 3, "b"]
    assert [i and i.median for i in first.validation] == [4.0, 2.0, None]  # no run had the budget of four
    assert [i and i.median for i in first.test] == [5.0, 3.0, None]
    assert first.fresh == Interval(8.0, 8.0, 8.0)
    assert second.fresh is None
    assert [i and i.median for i in second.validation] == [5.0, 1.5, None]


def test_an_interval_holds_the_median() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.median == 3.0
    assert 1.0 <= found.low < 3.0 < found.high <= 100.0
    assert interval([1.0, 2.0, 3.0, 4.0, 100.0]) == found
    assert interval([2.0]) == Interval(2.0, 2.0, 2.0)
    assert interval([1.0, 2.0, math.inf]) == Interval(2.0, 1.0, math.inf)


def test_the_lowest_test_losses_are_bold() -> None:
    text = markdown(rows(study(), STEPS, (1, 3)), (1, 3), "hypergrad budgets out")
    lines = [line for line in text.splitlines() if line.startswith(("| a", "| b"))]
    assert lines == [
        "| b | 5 / 6 (6 to 6) | 1.5 / **2.5** (2.5 to 2.5) |  | 3 |",
        "| a | 4 / **5** (4 to 6) | 2 / 3 (2 to 4) | **8** | 3 |",
    ]


def test_the_command_reads_folders_and_writes_a_section(tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    records.begin(out, Plan("optuna", 300))
    for one in study().records:
        records.add(out, one)
    for run in study().runs or ():
        records.finish(out, run)
    page.write_text("before\n<!-- budgets -->\nold\n<!-- /budgets -->\nafter\n")
    shown = CliRunner().invoke(cli, ["budgets", str(out), "--runs", "1,3"])
    assert shown.exit_code == 0, shown.output
    assert "| a | 4 / **5** (4 to 6)" in shown.output
    written = CliRunner().invoke(cli, ["budgets", str(out), "--runs", "1,3", "--page", str(page)])
    assert written.exit_code == 0, written.output
    assert not (tmp_path / "page.svg").exists()  # without a method of ours there is nothing to draw
    assert page.read_text() == f"before\n<!-- budgets -->\n{shown.output}<!-- /budgets -->\nafter\n"


def test_ours_is_held_against_the_best_of_the_others() -> None:
    table = rows(study(), STEPS, (1, 3, 4))["digits-mlp"]
    first, second, third = ratios(table, {"b", "c"})
    assert first is not None
    assert second is not None
    assert (first.ours, first.other, first.losses, first.ratio.median) == ("b", "a", (6.0, 5.0), 1.2)
    assert (first.ratio.low, first.ratio.high) == (1.0, 1.5)  # the others' seeds have 4, 5 and 6
    assert (second.losses, second.ratio.median) == ((2.5, 3.0), 2.5 / 3)
    assert third is None  # no run had the budget
    assert ratios(table, {"c"}) == []
    assert ratios(table, {"a", "b"}) == [None] * 3


def test_what_one_of_the_others_had_no_budget_for_is_not_compared() -> None:
    few = replace(study(), runs=tuple(replace(r, budget=100 if r.method == "b" else 300) for r in study().runs or ()))
    first, second = ratios(rows(few, STEPS, (1, 3))["digits-mlp"], {"a"})
    assert first is not None
    assert second is None


def test_the_picture_shows_losses_as_well_as_wins(tmp_path: Path) -> None:
    def ratio(median: float, low: float, high: float) -> Ratio:
        return Ratio(Interval(median, low, high), "hypergrad", "tpe", (median, 1.0))

    found = {"lost": [ratio(2.0, 1.5, 3.0)], "won": [ratio(0.5, 0.4, 0.6)], "open": [ratio(1.0, 0.9, 1.1)], "none": []}
    text = write_plot(found, (25,), tmp_path / "picture.svg").read_text()
    assert write_plot(found, (25,), tmp_path / "again.svg").read_text() == text
    assert all(f"fill: var(--{name})" in text for name in ("better", "worse", "open"))
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#1234\w\w", text)  # all that is drawn has a colour for each page
    order = [name for name in re.findall(r"<!-- (\w+) -->", text) if name in found]
    assert order == ["won", "open", "lost"]


def test_problems_without_a_common_number_of_runs_are_drawn_at_their_own(tmp_path: Path) -> None:
    ratio = Ratio(Interval(2.0, 1.5, 3.0), "hypergrad", "tpe", (2.0, 1.0))
    text = write_plot({"few": [ratio, None], "many": [None, ratio]}, (25, 50), tmp_path / "a.svg").read_text()
    assert [name for name in re.findall(r"<!-- (\w+) -->", text) if name in {"few", "many"}] == ["few", "many"]
    assert all(f"<!-- after {number} training runs -->" in text for number in (25, 50))


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    ratio = Ratio(Interval(2.0, 1.5, 3.0), "ours$^$", "theirs$_$", (2.0, 1.0))
    text = write_plot({"a$b^$": [ratio]}, (25,), tmp_path / "a.svg").read_text()
    assert all(f"<!-- {name}" in text for name in ("a$b^$", "ours$^$ is better"))


@pytest.mark.parametrize(
    ("ours", "others", "bounds"),
    [
        ([1.0, math.inf, math.inf, 1.0, 1.0], [2.0, math.inf, math.inf, 2.0, 2.0], (0.0, math.inf)),
        ([1.0, 1.0, 1.0], [2.0, math.inf, 2.0], (0.0, 0.5)),
    ],
)
def test_bounds_of_a_ratio_allow_for_failed_runs(
    ours: list[float], others: list[float], bounds: tuple[float, float]
) -> None:
    own, other = (Row(n, (), (interval(x),), None, len(x), (tuple(x),)) for n, x in (("a", ours), ("b", others)))
    (found,) = ratios([own, other], {"a"})
    assert found is not None
    assert (found.ratio.low, found.ratio.high) == bounds


def test_a_loss_of_nothing_has_no_multiple() -> None:
    own, other = (Row(n, (), (interval(x),), None, 3, (tuple(x),)) for n, x in (("a", [1.0] * 3), ("b", [0.0] * 3)))
    assert ratios([own, other], {"a"}) == [None]
    likely = Row("b", (), (interval([0.0, 1.0, 1.0]),), None, 3, ((0.0, 1.0, 1.0),))
    (found,) = ratios([own, likely], {"a"})
    assert found is not None
    assert (found.ratio.low, found.ratio.high) == (1.0, math.inf)


def test_folders_may_have_methods_of_the_same_problem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        records.begin(tmp_path / name, Plan("optuna", 300))
        records.add(tmp_path / name, *(r for r in study().records if r.method == name))
        for run in study().runs or ():
            if run.method == name:
                records.finish(tmp_path / name, run)
    apart = CliRunner().invoke(cli, ["budgets", str(tmp_path / "a"), str(tmp_path / "b"), "--runs", "1,3"])
    assert apart.exit_code == 0, apart.output
    found = [line for line in apart.output.splitlines() if line.startswith("|")]
    whole = markdown(rows(study(), STEPS, (1, 3)), (1, 3), "")
    assert found == [line for line in whole.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("arguments", [[], ["nowhere"], [".", "--runs", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["budgets", *arguments]).exit_code == 2
