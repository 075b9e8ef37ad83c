"""Records come back as they were written, and a study that was cut off goes on from whole runs alone."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Status
from hypergrad_studies.json_lines import BrokenRecords, read
from hypergrad_studies.records import (
    FAILED,
    PRUNED,
    OtherStudy,
    Plan,
    Record,
    Run,
    Study,
    add,
    begin,
    finish,
    finished,
    in_short,
    keep_finished,
)

RECORD = Record("digits", "tpe", 3, 0, 0.25, 0.5, 100, 1.5, 0.25, 0.125, "ok", None)
PLAN = Plan("optuna", 50)


def run_of(record: Record, trials: int) -> Run:
    return Run(*record.key, budget=1000, trials=trials, wall_seconds=2.0)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BrokenRecords, match=r"records\.jsonl: no such file; run a study"):
        Study.load(tmp_path)


def cut_off(out: Path) -> None:
    """Write a study that was killed in its second run: one run is whole, one has a trial and a line cut short."""
    begin(out, PLAN)
    for trial in range(2):
        add(out, replace(RECORD, trial=trial))
    finish(out, run_of(RECORD, 2))
    add(out, replace(RECORD, seed=4))
    with (out / "records.jsonl").open("a") as file:
        file.write(json.dumps(asdict(replace(RECORD, seed=4, trial=1)))[:40])


def test_cut_last_line_is_told_apart(tmp_path: Path) -> None:
    cut_off(tmp_path)
    with pytest.raises(BrokenRecords, match=r"line 4: is cut short.*continue the study"):
        read(tmp_path / "records.jsonl", Record)


def test_keep_finished_drops_runs_cut_off(tmp_path: Path) -> None:
    cut_off(tmp_path)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"problem": "digits", "method"')
    keep_finished(tmp_path)
    kept = Study.load(tmp_path)
    assert kept.records == (RECORD, replace(RECORD, trial=1))
    assert kept.runs == (run_of(RECORD, 2),)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "records.jsonl", "runs.jsonl"]


def test_keep_finished_refuses_damage_in_the_midst(tmp_path: Path) -> None:
    cut_off(tmp_path)
    path = tmp_path / "records.jsonl"
    damaged = path.read_text().replace('"trial": 0', '"trial": "0"', 1)
    path.write_text(damaged)
    with pytest.raises(BrokenRecords, match="line 1: field 'trial'"):
        keep_finished(tmp_path)
    assert path.read_text() == damaged


def test_begin_continues_the_same_study(tmp_path: Path) -> None:
    out = tmp_path / "new" / "study"
    assert begin(out, PLAN) == set()
    assert finished(tmp_path) == set()
    cut_off(out)
    assert begin(out, PLAN) == {RECORD.key} == finished(out)
    assert len(read(out / "records.jsonl", Record)) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            Plan("optuna", 60),
            r"with budget 50, which cannot continue with budget 60; choose another --out, or --budget 50$",
        ),
        (Plan("ray", 50), r"with backend optuna, .* backend ray; choose another --out, or --backend optuna$"),
    ],
)
def test_begin_refuses_another_plan(tmp_path: Path, plan: Plan, message: str) -> None:
    cut_off(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(OtherStudy, match=message):
        begin(tmp_path, plan)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_begin_never_clears_records_without_a_plan(tmp_path: Path) -> None:
    add(tmp_path, RECORD)
    with pytest.raises(OtherStudy, match=r"no plan\.json.*choose another --out"):
        begin(tmp_path, PLAN)
    assert read(tmp_path / "records.jsonl", Record) == [RECORD]


def test_load_notices_lost_records(tmp_path: Path) -> None:
    add(tmp_path, RECORD)
    finish(tmp_path, run_of(RECORD, 2))
    with pytest.raises(BrokenRecords, match=r"runs\.jsonl, line 1: .* has 2 trials, but records\.jsonl holds 1"):
        Study.load(tmp_path)


def test_records_alone_are_a_study(tmp_path: Path) -> None:
    add(tmp_path, RECORD)
    assert Study.load(tmp_path) == Study((RECORD,), None)


def test_a_status_is_sound_or_a_failure_or_neither() -> None:
    sound = {status for status in [*Status, PRUNED, FAILED] if replace(RECORD, status=status).sound}
    failed = {status for status in [*Status, PRUNED, FAILED] if replace(RECORD, status=status).failed}
    assert sound == {"ok", "exploded"}
    assert failed == {"nan", "overflow", "underflow", "diverged", "overfitted", "refused", FAILED}


def test_hyperparameters_are_kept_in_short(tmp_path: Path) -> None:
    weights = jnp.arange(2000.0).reshape(2, 1000)
    point = {
        "rate": np.float64(0.1),
        "width": 64,
        "kind": "adam",
        "l2": weights,
        "m[0]": 0.0,
        "m[1]": 1.0,
        "of": [1, "a"],
    }
    short = in_short(point)
    assert short == {
        "rate": 0.1,
        "width": 64,
        "kind": "adam",
        "l2": "2x1,000 numbers, 0 to 2e+03, median 1e+03",
        "m": "2 numbers, 0 to 1, median 0.5",
        "of": "[1, 'a']",
    }
    record = replace(RECORD, hyperparameters=short)
    add(tmp_path, record)
    assert read(tmp_path / "records.jsonl", Record) == [record]


def test_nested_hyperparameters_have_a_name_for_each_value() -> None:
    assert in_short({"opt": {"rate": 0.1, "l2": np.array([1.0, 3.0])}}) == {
        "opt/rate": 0.1,
        "opt/l2": "2 numbers, 1 to 3, median 2",
    }
    assert in_short({"layers": {0: 64}}) == {"layers": "{0: 64}"}  # which a space of Ray's may hold
