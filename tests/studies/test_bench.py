"""The bench's ways differentiate the same function, and what it measures arrives in records, tables, plot and page."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from hypergrad_studies import bench, bench_convolutions, bench_report, json_lines
from hypergrad_studies.bench import Case, Record, Way
from hypergrad_studies.cli import cli

SMALL = Case(20, 0.9, 8, bench.WAYS)
TINY = ["bench", "--steps", "20", "--decays", "0.9", "--widths", "8", "--repeats", "1", "--quick"]
PAGE = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_all_ways_differentiate_the_same_function(optimizer: str) -> None:
    values: dict[str, float] = {}
    gradients: dict[str, dict[str, jax.Array]] = {}
    for way in bench.WAYS:
        if way.optimizer == optimizer:
            jitted, hyperparameters = bench.program(SMALL, way)
            quickly: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}  # saves half a minute
            result = jax.device_get(jitted.lower(hyperparameters).compile(quickly)(hyperparameters))
            if way.name == "plain":
                plain = result
            else:
                values[way.name], gradients[way.name] = result
    reference = gradients["checkpointed"]
    for name, value in values.items():
        assert value == pytest.approx(plain, rel=1e-5)
        assert set(gradients[name]) == set(reference) == set(hyperparameters)
        for of, gradient in gradients[name].items():
            assert gradient == pytest.approx(reference[of], rel=1e-3, abs=1e-6), (name, of)


@pytest.mark.slow
def test_a_small_bench_ends_with_records_tables_plot_and_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    arguments = [*TINY, "--ways", "sgd-reversible", "--out", str(tmp_path / "out"), "--page", str(page)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plain, reversible = json_lines.read(tmp_path / "out" / "records.jsonl", Record)
    for record in (plain, reversible):
        assert record.status == "ok"
        assert record.compile_seconds
        assert record.xla_bytes
        assert record.rss_before
        assert record.rss_after
        assert len(record.seconds) == 1
    assert reversible.ratios == [reversible.seconds[0] / plain.seconds[0]]
    assert reversible.difference == 0  # the only gradient
    assert "sgd-reversible" in result.output
    assert f"{SMALL.weights:,} weights, 20 steps, decay 0.9" in result.output
    for plot in (tmp_path / "out" / "bench.svg", tmp_path / "bench.svg"):
        assert plot.read_text().rstrip().endswith("</svg>")
    text = page.read_text()
    assert text.startswith("before\n<!-- bench -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "**reversible**" in text
    assert "old" not in text
    assert str(tmp_path) not in text


def test_what_needs_too_much_memory_is_compiled_but_not_run() -> None:
    record = bench.alone(SMALL, Way("sgd", "plain"), limit=1.0)
    assert record.status == "not run"
    assert "GB" in record.reason
    assert record.xla_bytes
    assert record.compile_seconds
    assert record.rss_after is None
    assert "not run" in bench_report.markdown([record], [])


def test_a_way_that_raises_is_a_record_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def in_this_process(function: partial[Any]) -> Any:
        if function.func is bench.alone and function.args[1].name == "scan":
            raise MemoryError("no more\nthan this")
        return function()

    monkeypatch.setattr(bench, "in_a_process", in_this_process)
    monkeypatch.setattr(bench, "alone", lambda case, way, limit: Record.of(case, way))
    monkeypatch.setattr(bench, "together", lambda case, ways, repeats: {way: ([2.0, 3.0], None) for way in ways})
    ways = bench.with_plain([Way("sgd", "scan"), Way("sgd", "binomial")])
    records = bench.run(tmp_path, [Case(20, 0.9, 8, ways)], repeats=2, limit=1e12, console=Console(quiet=True))
    assert [(r.way, r.status) for r in records] == [("plain", "ok"), ("scan", "failed"), ("binomial", "ok")]
    assert records[1].reason == "MemoryError: no more than this"
    assert records[2].ratios == [1.0, 1.0]
    assert "failed" in bench_report.markdown(records, [])


def test_one_thing_varies_at_a_time() -> None:
    found = bench.cases([100, 300, 1000], [0.5, 0.9], [50, 512], bench.WAYS, long=True)
    assert [(c.steps, c.decay, c.width) for c in found] == [
        (300, 0.9, 512),
        (100, 0.9, 50),
        (300, 0.9, 50),
        (1000, 0.9, 50),
        (100, 0.9, 512),
        (300, 0.5, 512),
        (10_000, 0.9, 965),
    ]
    assert {way.name for way in found[5].ways} == {"plain", "reversible"}
    assert [case.long for case in found] == [False] * 6 + [True]
    assert 990_000 < found[-1].weights < 1_010_000


def test_the_page_says_how_often_reversible_training_is_slower() -> None:
    def record(way: str, ratio: float) -> Record:
        return Record.of(SMALL, Way("sgd", way), ratios=[ratio], xla_bytes=1000)

    slower = bench_report.markdown([record("checkpointed", 3.0), record("reversible", 4.0)], [])
    faster = bench_report.markdown([record("checkpointed", 4.0), record("reversible", 3.0)], [])
    assert "with sgd in 1 of the 1 cases" in slower
    assert "with sgd in 0 of the 1 cases" in faster


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--steps", "100,0"], "--steps"),
        (["--decays", "1"], "--decays"),
        (["--widths", "many"], "--widths"),
        (["--ways", "sgd-forward"], "--ways"),
        (["--repeats", "0"], "--repeats"),
        (["--memory-limit", "0"], "--memory-limit"),
        (["--page", __file__], "--page"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], option: str) -> None:
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2
    assert option in result.output


def test_numbers_of_numpy_are_recorded_and_shown(tmp_path: Path) -> None:
    record = Record.of(SMALL, Way("sgd", "plain"), ratios=[np.float64(1.0)], xla_bytes=np.int64(1_500_000))
    json_lines.append(tmp_path / "records.jsonl", record)
    assert json_lines.read(tmp_path / "records.jsonl", Record) == [record]
    assert "1.5 MB" in bench_report.markdown([record], [])


@pytest.mark.slow
def test_all_evaluations_of_the_convolutional_network_train_it_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_convolutions, "STEPS", 5)
    values = {way: run() for way, run in bench_convolutions.ways().items()}
    assert values.keys() == bench_report.EVALUATIONS.keys()
    for value in values.values():
        assert value == pytest.approx(values["loop"], rel=1e-5)


def test_evaluations_are_shown_as_ratios_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_convolutions, "ways", lambda: {"loop": lambda: 0.5, "reversible-value": lambda: 0.5})
    timings = bench_convolutions.measure(3)
    assert [(timing.way, len(timing.seconds)) for timing in timings] == [("loop", 3), ("reversible-value", 3)]
    assert timings[0].ratios == [1.0] * 3
    page = bench_report.markdown([Record.of(SMALL, Way("sgd", "plain"))], timings)
    assert "| Python loop over a jitted step of optax | 1.00 (1.00\N{EN DASH}1.00) |" in page
    assert "| **`Reversible`**, value alone |" in page
