"""`hypergrad reproduce` writes records, figures, results and a page, and chaos computes its numbers as it says."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hypergrad_studies import json_lines, records
from hypergrad_studies.cli import cli, main
from hypergrad_studies.papers import STUDIES, results
from hypergrad_studies.papers.reversible_learning import chaos

POINT = chaos.AtRate(
    seed=0, log_rate=0.0, loss=1.0, gradient=1.0, slope=1.0, status="ok", exact=True, growth=2.0, seconds=0.5
)


def points(slopes: Sequence[float], seed: int = 0) -> list[chaos.AtRate]:
    """Return points at the log rates 0, 1, ..., with a gradient of 1."""
    return [replace(POINT, seed=seed, log_rate=float(i), slope=slope) for i, slope in enumerate(slopes)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run at three rates with two seeds."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chaos.SETUPS, "small", replace(chaos.SETUPS["small"], rates=(0.5, 2.5, 3)))
        done = CliRunner().invoke(cli, ["reproduce", "chaos", "--seeds", "2", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert str(folder / "results.json") in done.output.replace("\n", "")
    return folder


def test_a_record_for_each_rate_and_seed(out: Path) -> None:
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [(r["seed"], r["log_rate"]) for r in records] == [(s, rate) for s in (0, 1) for rate in (0.5, 1.5, 2.5)]
    assert all(r["exact"] is True for r in records)
    for tame, _, wild in (records[:3], records[3:]):
        assert tame["status"] == "ok"
        assert tame["gradient"] == pytest.approx(tame["slope"], rel=0.01)
        assert 1 <= tame["growth"] < 1000
        assert abs(float(wild["gradient"])) > 1000 * abs(wild["slope"])
        assert float(wild["growth"]) > 1e6


def test_results_and_figure(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert {tuple(result) for result in results} == {("study", "quantity", "paper", "ours", "seeds", "seconds")}
    assert {(result["study"], result["seeds"]) for result in results} == {("chaos (small)", 2)}
    assert {result["paper"] for result in results} == {None}  # the paper used other data
    assert "</svg>" in (out / "chaos.svg").read_text()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def test_what_was_cut_off_goes_on(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study goes on even where a line was cut short."""
    monkeypatch.setitem(chaos.SETUPS, "small", replace(chaos.SETUPS["small"], rates=(0.5, 2.5, 3)))
    records, measured = (out / "records.jsonl").read_text(), []
    cut = tmp_path / "chaos"
    cut.mkdir()
    results.claim(cut, "chaos", "small")
    (cut / "records.jsonl").write_text(records[:-100])

    def measure(problem: object, seed: int, rate: float) -> chaos.AtRate:
        measured.append((seed, rate))
        return json_lines.read(out / "records.jsonl", chaos.AtRate)[-1]

    monkeypatch.setattr(chaos, "measure", measure)
    assert CliRunner().invoke(cli, ["reproduce", "chaos", "--seeds", "2", "--out", str(cut)]).exit_code == 0
    assert measured == [(1, 2.5)]
    assert (cut / "records.jsonl").read_text() == records
    assert CliRunner().invoke(cli, ["reproduce", "chaos", "--seeds", "1", "--out", str(cut)]).exit_code == 0
    assert (cut / "records.jsonl").read_text() == records  # the other seed's are kept


def test_a_folder_keeps_its_scale(out: Path) -> None:
    done = CliRunner().invoke(cli, ["reproduce", "chaos", "--scale", "paper", "--out", str(out)])
    assert isinstance(done.exception, records.OtherStudy)
    assert "holds the study chaos (small), not chaos (paper); choose another --out" in str(done.exception)


def test_files_that_cannot_be_read_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"seed": 0}\n')
    with pytest.raises(json_lines.BrokenRecords, match=r"records\.jsonl, line 1: .*'log_rate' is missing; mend or"):
        json_lines.read(tmp_path / "records.jsonl", chaos.AtRate)
    with pytest.raises(records.OtherStudy, match="holds records of another study"):
        results.claim(tmp_path, "chaos", "small")
    for name, read in (("study.json", results.claim), ("results.json", None)):
        (tmp_path / name).write_text('{"stu')
        with pytest.raises(json_lines.BrokenRecords, match=f"{name}: is not JSON .* remove the file"):
            read(tmp_path, "chaos", "small") if read else results.read(tmp_path / name, "chaos", "small", 1)


@pytest.mark.parametrize("text", ["[1]", "3", '[{"study": "chaos (small)"}]'])
def test_results_of_another_form_get_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(json_lines.BrokenRecords, match=r"results\.json: .* remove the file to make it again"):
        results.read(tmp_path / "results.json", "chaos", "small", 1)


def test_several_make_a_page_and_a_table(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is made of what the studies left, and nothing is run again."""

    def found(scale: str, folder: Path, seeds: int, console: object) -> list[results.Result]:
        (folder / "memory.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
        row = results.Result("memory (small)", "bits", 0.152, 0.155, 2, 1234.0)
        return [row, replace(row, quantity="reversals", paper=None, ours=math.inf)]

    monkeypatch.setitem(STUDIES, "memory", found)
    monkeypatch.setattr(found, "__module__", "hypergrad_studies.papers.reversible_learning.memory", raising=False)
    (tmp_path / "chaos").symlink_to(out)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- reproduce -->\nold\n<!-- /reproduce -->\nafter\n")
    arguments = ["reproduce", "memory", "chaos", "--seeds", "2", "--out", str(tmp_path), "--page", str(page)]
    for _ in range(2):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        monkeypatch.setitem(STUDIES, "memory", refuse)
        monkeypatch.setattr(refuse, "__module__", "hypergrad_studies.papers.reversible_learning.memory")
        monkeypatch.setattr(chaos, "measure", refuse)
    text = page.read_text()
    assert text.startswith("before\n<!-- reproduce -->\n`hypergrad reproduce memory chaos --scale small --seeds 2`, on")
    assert "| `memory` | bits | 0.152 | 0.155 | 2 | 1,234 |\n<!-- /reproduce -->\nafter\n" in text
    assert "reversals" not in text
    assert "old" not in text
    whole = (tmp_path / "index.html").read_text()
    assert whole.count("data:image/svg+xml;base64,") == 2
    assert all(part in whole for part in ('<h2 id="study-2">chaos</h2>', "inf", "1,234", "paper has 1,000 rates"))


def test_a_page_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    done = CliRunner().invoke(cli, ["reproduce", "chaos", "--out", str(tmp_path / "out"), "--page", str(page)])
    assert done.exit_code == 2
    assert "no <!-- reproduce -->" in done.output
    assert page.read_text() == "text\n"
    assert not (tmp_path / "out").exists()


def test_results_are_read_back(tmp_path: Path) -> None:
    rows = [results.Row("a", 1.5, [math.inf, 1.0, 2.0]), results.Row("b", None, [math.nan] * 3)]
    found = results.medians("chaos", rows, 2.5, "paper")
    results.write(tmp_path / "results.json", found)
    assert list(map(str, results.read(tmp_path / "results.json", "chaos", "paper", 3))) == list(map(str, found))
    others: list[tuple[str, results.Scale, int]] = [
        ("memory", "paper", 3),
        ("chaos", "small", 3),
        ("chaos", "paper", 2),
    ]
    for study, scale, seeds in others:
        assert results.read(tmp_path / "results.json", study, scale, seeds) == []
    assert results.read(tmp_path / "nothing.json", "chaos", "paper", 3) == []


def test_an_unknown_name_gets_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hypergrad", "reproduce", "chaso"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(repr(name) in message for name in ("chaso", *STUDIES))


@pytest.mark.parametrize(
    ("slopes", "end"),
    [
        ([1, 1, 1, 1, 1, 1], math.inf),
        ([1, 1.2, 1, 1.2, 1.2, 1], math.inf),  # never three in a row
        ([1, 1.2, 1, 1.2, 0.8, -1], 3),
        ([1, 1, 0, math.nan, 2, 1], 2),
        ([1, 1.05, 1.05, 1.05, 1.05, 1], math.inf),
    ],
)
def test_the_gradient_is_useful_until_several_rates_in_a_row_disagree(slopes: list[float], end: float) -> None:
    assert chaos.useful_below(points(slopes), 0.1) == end


@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_agrees_with_nothing(gradient: float) -> None:
    assert not chaos.agrees(replace(POINT, gradient=gradient), 0.1)


def test_numbers_are_medians_over_seeds() -> None:
    seeds = [points([1] * start + [2] * 5, seed) for seed, start in enumerate((2, 7, 3))]
    for growth, mine in zip((10.0, 30.0, 20.0), seeds, strict=True):
        mine[-1] = replace(mine[-1], growth=growth)
    found = {r.quantity: r for r in chaos.results([p for mine in seeds for p in mine], "paper")}
    start = found["log rate from which gradient and finite difference differ by 1 %"]
    assert (start.study, start.paper, start.ours) == ("chaos (paper)", 1.47, 3)
    assert found["log rate from which they differ by 10 %"].ours == 3
    assert found["growth of the adjoint where they agree to 10 %: quantile 100 %"].ours == 2
    assert found["growth of the adjoint where they differ by more: quantile 50 %"].ours == 2
    assert {(r.seeds, r.seconds) for r in found.values()} == {(3, 0.5 * 27)}


def test_quantiles_of_infinite_growth() -> None:
    assert chaos.quantile([1, math.inf, math.inf, math.nan], 50) == math.inf
    assert math.isnan(chaos.quantile([math.nan], 50))
