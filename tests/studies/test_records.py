"""Records come back as they were written, and a study that was cut off goes on from whole runs alone."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from hypergrad_studies.records import (
    BrokenRecords,
    OtherStudy,
    Plan,
    Record,
    Run,
    Study,
    append,
    begin,
    finish,
    finished,
    keep_finished,
    read,
)

RECORD = Record("digits", "tpe", 3, 0, 0.25, 0.5, 100, 1.5, 0.25, 0.125, "ok", None)
PLAN = Plan("optuna", 50)


def run_of(record: Record, trials: int) -> Run:
    return Run(*record.key, budget=1000, trials=trials, wall_seconds=2.0)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, value=math.inf, test_value=None, status="overflow", error='two\nlines, "quoted", \u2028 ü'),
        replace(RECORD, value=-math.inf, test_value=math.inf),
        replace(RECORD, value=0.1 + 0.2, seconds=5e-324),
    ],
)
def test_records_round_trip(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record)
    append(path, RECORD)
    assert read(path) == [record, RECORD]


def test_nan_round_trips_as_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, replace(RECORD, value=math.nan, status="nan"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["value"] == "nan"
    assert math.isnan(read(path)[0].value)


def test_array_scalars_become_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    scalars = {"value": np.float32(0.25), "trial": np.int64(0), "gradient_evaluations": np.int32(100)}
    append(path, replace(RECORD, **scalars))
    assert read(path) == [RECORD]


def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for wrong in ({"trial": 1.5}, {"value": None}, {"status": 3}):
        with pytest.raises(TypeError):
            append(path, replace(RECORD, **wrong))
    assert not path.exists()


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert read(tmp_path / "records.jsonl") == []


def changed(**fields: object) -> str:
    return json.dumps(asdict(RECORD) | fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({k: v for k, v in asdict(RECORD).items() if k != "value"}), "field 'value' is missing"),
        (changed(stepz=1), "field 'stepz' is unknown"),
        (changed(seed="3"), "field 'seed' must be an integer, got '3'"),
        (changed(trial=1.0), "field 'trial' must be an integer, got 1.0"),
        (changed(trial=True), "field 'trial' must be an integer, got True"),
        (changed(value=None), "field 'value' must be a number"),
        (changed(value="Infinity"), "got 'Infinity'"),
        (changed(error=7), "field 'error' must be a string or null, got 7"),
        (changed(value=math.inf), 'Infinity must be written as "inf"'),
        ('{"problem": ', "is not JSON"),
        ("\x00\x00", "is not JSON"),
        ("", "is not JSON"),
        ("[]", "must be a JSON object, got []"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    append(path, RECORD)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BrokenRecords) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2: ")
    assert message in text
    assert text.endswith("; mend or remove the line")
    assert "\n" not in text


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BrokenRecords, match=r"records\.jsonl: no such file; run a study"):
        Study.load(tmp_path)


def cut_off(out: Path) -> None:
    """A study killed in its second run: one run whole, one with a trial and a line cut short."""
    begin(out, PLAN)
    for trial in range(2):
        append(out / "records.jsonl", replace(RECORD, trial=trial))
    finish(out, run_of(RECORD, 2))
    append(out / "records.jsonl", replace(RECORD, seed=4))
    with (out / "records.jsonl").open("a") as file:
        file.write(changed(seed=4, trial=1)[:40])


def test_cut_last_line_is_told_apart(tmp_path: Path) -> None:
    cut_off(tmp_path)
    with pytest.raises(BrokenRecords, match=r"line 4: is cut short.*continue the study"):
        read(tmp_path / "records.jsonl")


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
    assert len(read(out / "records.jsonl")) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            Plan("optuna", 60),
            r"with budget 50, asked to continue with 60; choose another --out, or --budget 50$",
        ),
        (Plan("ray", 50), r"with backend optuna, asked .* ray; choose another --out, or --backend optuna$"),
    ],
)
def test_begin_refuses_another_plan(tmp_path: Path, plan: Plan, message: str) -> None:
    cut_off(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(OtherStudy, match=message):
        begin(tmp_path, plan)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_begin_never_clears_records_without_a_plan(tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", RECORD)
    with pytest.raises(OtherStudy, match=r"no plan\.json.*choose another --out"):
        begin(tmp_path, PLAN)
    assert read(tmp_path / "records.jsonl") == [RECORD]


def test_load_notices_lost_records(tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", RECORD)
    finish(tmp_path, run_of(RECORD, 2))
    with pytest.raises(BrokenRecords, match=r"runs\.jsonl, line 1: .* has 2 trials, but records\.jsonl holds 1"):
        Study.load(tmp_path)


def test_records_alone_are_a_study(tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", RECORD)
    assert Study.load(tmp_path) == Study((RECORD,), None)
