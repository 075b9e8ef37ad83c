"""The command line: studies and one error as a user has them, in a process; the rest inside of the tests' process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hypergrad_studies import records
from hypergrad_studies.cli import main

HYPERGRAD = [sys.executable, "-c", "from hypergrad_studies.cli import main; main()"]
# The problem has few hyperparameters, since TPE takes long to model hundreds of them.
STUDY = ["compare", "--problem", "cancer-mlp", "--methods", "random,random-2x,tpe,hyperband,hypergrad"]

Outcome = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the processes of these tests share what JAX compiles."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def hypergrad(*arguments: object, environment: Mapping[str, str], timeout: float = 300) -> Outcome:
    command = [*HYPERGRAD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs `hypergrad` in this process, which saves the seconds that imports take."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hypergrad", *map(str, arguments)])
        code: str | int | None = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(sys.argv, int(code or 0), *capsys.readouterr())

    return run


def lines_but_times(out: Path) -> list[dict[str, object]]:
    """Return the records without seconds, which differ from run to run."""
    lines = (out / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    done = hypergrad(*STUDY, "--budget", 1200, "--seeds", 2, "--out", out, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "hypergrad" in done.stdout
    assert "report.html" in done.stdout
    return out


def spent(record: records.Record) -> float:
    assert record.gradient_evaluations is not None
    return record.gradient_evaluations


def test_every_method_gets_its_budget(study: Path) -> None:
    loaded = records.Study.load(study)
    assert loaded.runs is not None
    assert len(loaded.runs) == 5 * 2
    for run in loaded.runs:
        mine = [r for r in loaded.records if r.key == run.key]
        assert run.budget == (2400 if run.method == "random-2x" else 1200)
        assert spent(mine[-1]) >= run.budget
        assert spent(mine[-2]) < run.budget
        assert [r.trial for r in mine] == list(range(run.trials))
        assert all(r.test_value is not None for r in mine if r.status == "ok")


def test_a_trial_costs_its_steps_and_three_times_as_much_for_a_gradient(study: Path) -> None:
    loaded = records.Study.load(study)
    for method, allowed in (("random", {100}), ("tpe", {100}), ("hypergrad", {100, 400})):
        for seed in (0, 1):
            costs = [spent(r) for r in loaded.records if (r.method, r.seed) == (method, seed)]
            assert {b - a for a, b in zip([0, *costs], costs, strict=False)} <= allowed
    assert any(r.status == "pruned" for r in loaded.records if r.method == "hyperband")


def test_the_report_can_be_made_again_from_the_records(study: Path, inside: Callable[..., Outcome]) -> None:
    first = (study / "report.html").read_text()
    (study / "report.html").unlink()
    assert inside("report", study).returncode == 0
    assert (study / "report.html").read_text() == first


def test_a_finished_study_has_nothing_left_to_do(study: Path, inside: Callable[..., Outcome]) -> None:
    before = (study / "records.jsonl").read_bytes()
    assert inside(*STUDY, "--budget", 1200, "--seeds", 2, "--out", study).returncode == 0
    assert (study / "records.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, inside: Callable[..., Outcome]) -> None:
    (tmp_path / "file").write_text("")
    done = inside("compare", "--problem", "synthetic-quadratic", "--out", tmp_path / "file" / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("hypergrad: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_study_continues_to_the_same_records(study: Path, environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = [*STUDY, "--budget", 1200, "--seeds", 2, "--out", out]
    victim = subprocess.Popen(
        [*HYPERGRAD, *map(str, arguments)], stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    deadline = time.monotonic() + 200
    # the process is killed in the middle of a run, not between two
    while not (out / "records.jsonl").exists() or (out / "records.jsonl").read_bytes().count(b"\n") < 30:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    done = hypergrad(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "finished runs found" in done.stdout
    assert lines_but_times(out) == lines_but_times(study)


@pytest.mark.slow
def test_ray_is_a_backend_too(environment: dict[str, str], tmp_path: Path) -> None:
    done = hypergrad(
        *("compare", "--problem", "digits-l2", "--backend", "ray", "--budget", 500, "--seeds", 1, "--out", tmp_path),
        environment=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    loaded = records.Study.load(tmp_path)
    assert {r.method for r in loaded.records} == {"random", "random-2x", "asha", "tpe", "hypergrad", "hypernet"}
    assert any(r.status == "pruned" for r in loaded.records if r.method == "asha")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "digit"], "'digit' is not one of digits-mlp, digits-l2"),
        (["--methods", "random,bayes"], "'bayes' is not one of random, random-2x, random-tied"),
        (["--backend", "ray", "--methods", "cmaes"], "'cmaes' is not one of random, random-2x, tpe, asha"),
        (["--backend", "dask"], "'dask' is not one of 'optuna', 'ray'"),
        (["--backend", "ray", "--workers", "2"], "in Ray one search runs at a time"),
        (["--address", "ray://head:10001"], "run this on a node of the cluster, with the address auto"),
        (["--workers", "0"], "0 is not in the range x>=1"),
        (["--budget", "0"], "budget must be positive, got 0 gradient evaluations"),
        (["--budget", "1.5"], "must be a whole number of gradient evaluations, or a time such as 90s"),
        (["--seeds", "many"], "must be a whole number, or FROM:TO such as 5:10, got 'many'"),
        (["--seeds", "3:3"], "must be at least one seed from 0, got '3:3'"),
        (["--problem", "nowhere.py:make"], "there is no file nowhere.py"),
        (["--problem", "no.such.module:make"], "there is no module 'no.such.module'"),
        (["--problem", "hypergrad_studies.tasks:nothing"], "hypergrad_studies.tasks has no 'nothing'"),
        (["--method", "qmc"], "must be NAME=MODULE:FACTORY, got 'qmc'"),
        (["--method", "tpe=optuna.samplers:TPESampler"], "there is a method 'tpe' already"),
        (["--method", "grid=optuna.samplers:GridSampler"], "the factory of a method is called with seed="),
        (["--method", "odd=builtins:dict"], "must make a sampler of Optuna or a searcher of Ray Tune"),
    ],
)
def test_bad_arguments_get_one_line(
    tmp_path: Path, inside: Callable[..., Outcome], arguments: list[str], message: str
) -> None:
    done = inside("compare", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line_and_a_status_of_the_process(environment: dict[str, str], tmp_path: Path) -> None:
    done = hypergrad("compare", "--budget", 0, "--out", tmp_path / "out", environment=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "budget must be positive" in done.stderr


def test_broken_records_get_one_line(study: Path, inside: Callable[..., Outcome], tmp_path: Path) -> None:
    broken = tmp_path / "records.jsonl"
    broken.write_bytes((study / "records.jsonl").read_bytes()[:-20] + b'"}\n')
    for arguments in (["report", tmp_path], ["report", tmp_path / "nowhere"]):
        done = inside(*arguments)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert str(tmp_path) in done.stderr


def test_another_budget_in_the_same_folder_is_refused(study: Path, inside: Callable[..., Outcome]) -> None:
    done = inside(*STUDY, "--budget", 1300, "--seeds", 2, "--out", study)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "choose another --out, or --budget 1200" in done.stderr


@pytest.mark.slow
def test_overhead_of_the_sampler_is_a_table(inside: Callable[..., Outcome]) -> None:
    done = inside("overhead", "--trials", 20, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "TPESampler" in done.stdout
    for part in ("2 after 0", "2 after 100", "2 after 200"):
        assert done.stdout.count(part) == 6, "three samplers in two storages"
    assert "100,000, one array" in done.stdout


@pytest.mark.slow
def test_overhead_in_ray_is_a_table(inside: Callable[..., Outcome]) -> None:
    done = inside("overhead", "--engine", "ray", "--trials", 10)
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    few, many = (float(row[2]) for row in rows if row[:1] in (["10"], ["1,000,000"]) and len(row) == 3)
    assert few < 1 < many < 40  # an array is 8 MB, and a gradient as much
