"""The command line as a user has it: a process, its output and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypergrad_studies import records

HYPERGRAD = [sys.executable, "-c", "from hypergrad_studies.cli import main; main()"]
STUDY = ["compare", "--problem", "digits-l2", "--methods", "random,random-2x,tpe,hyperband,hypergrad"]


def hypergrad(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [*HYPERGRAD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def lines_but_times(out: Path) -> list[dict[str, object]]:
    """The records without what differs from run to run: seconds."""
    lines = (out / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    done = hypergrad(*STUDY, "--budget", 600, "--seeds", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "hypergrad" in done.stdout
    assert "report.html" in done.stdout
    return out


def test_every_method_gets_its_budget(study: Path) -> None:
    loaded = records.Study.load(study)
    assert loaded.runs is not None
    assert len(loaded.runs) == 5 * 2
    for run in loaded.runs:
        mine = [r for r in loaded.records if r.key == run.key]
        assert run.budget == (1200 if run.method == "random-2x" else 600)
        assert mine[-1].gradient_evaluations >= run.budget
        assert mine[-2].gradient_evaluations < run.budget
        assert [r.trial for r in mine] == list(range(run.trials))
        assert all(r.test_value is not None for r in mine if r.status == "ok")


def test_a_trial_costs_its_steps_and_three_times_as_much_for_a_gradient(study: Path) -> None:
    loaded = records.Study.load(study)
    for method, allowed in (("random", {50}), ("tpe", {50}), ("hypergrad", {50, 200})):
        for seed in (0, 1):
            spent = [r.gradient_evaluations for r in loaded.records if (r.method, r.seed) == (method, seed)]
            assert {b - a for a, b in zip([0, *spent], spent, strict=False)} <= allowed
    assert any(r.status == "pruned" for r in loaded.records if r.method == "hyperband")


def test_the_report_can_be_made_again_from_the_records(study: Path) -> None:
    first = (study / "report.html").read_text()
    (study / "report.html").unlink()
    assert hypergrad("report", study).returncode == 0
    assert (study / "report.html").read_text() == first


def test_a_finished_study_has_nothing_left_to_do(study: Path) -> None:
    before = (study / "records.jsonl").read_bytes()
    assert hypergrad(*STUDY, "--budget", 600, "--seeds", 2, "--out", study).returncode == 0
    assert (study / "records.jsonl").read_bytes() == before


def test_a_killed_study_continues_to_the_same_records(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = [*STUDY, "--budget", 600, "--seeds", 2, "--out", out]
    victim = subprocess.Popen([*HYPERGRAD, *map(str, arguments)], stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    # in the midst of a run, not between two
    while not (out / "records.jsonl").exists() or (out / "records.jsonl").read_bytes().count(b"\n") < 30:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    done = hypergrad(*arguments)
    assert done.returncode == 0, done.stderr
    assert "finished runs found" in done.stdout
    assert lines_but_times(out) == lines_but_times(study)


@pytest.mark.slow
def test_ray_is_a_backend_too(tmp_path: Path) -> None:
    done = hypergrad(
        *("compare", "--problem", "digits-l2", "--backend", "ray", "--budget", 500, "--seeds", 1, "--out", tmp_path),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    loaded = records.Study.load(tmp_path)
    assert {r.method for r in loaded.records} == {"random", "random-2x", "asha", "optuna", "hypergrad"}
    assert any(r.status == "pruned" for r in loaded.records if r.method == "asha")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "digit"], "'digit' is not one of digits-mlp, digits-l2"),
        (["--methods", "random,bayes"], "'bayes' is not one of random, random-2x, tpe"),
        (["--backend", "ray", "--methods", "cmaes"], "'cmaes' is not one of random, random-2x, asha"),
        (["--backend", "dask"], "'dask' is not one of 'optuna', 'ray'"),
        (["--budget", "0"], "0 is not in the range x>=1"),
        (["--seeds", "many"], "'many' is not a valid integer"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = hypergrad("compare", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_broken_records_get_one_line(study: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records.jsonl"
    broken.write_bytes((study / "records.jsonl").read_bytes()[:-20] + b'"}\n')
    for arguments in (["report", tmp_path], ["report", tmp_path / "nowhere"]):
        done = hypergrad(*arguments)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert str(tmp_path) in done.stderr


def test_another_budget_in_the_same_folder_is_refused(study: Path) -> None:
    done = hypergrad(*STUDY, "--budget", 700, "--seeds", 2, "--out", study)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "choose another --out, or --budget 600" in done.stderr


def test_overhead_of_the_sampler_is_a_table() -> None:
    done = hypergrad("overhead", "--trials", 20, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "TPESampler" in done.stdout
    assert "10,000, one array" in done.stdout
