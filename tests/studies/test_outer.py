"""Outer loops do what their optimizers do, and a loop that was cut off goes on as if it had not been."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_optuna.attributes import wanted
from hypergrad_search import Float, TrainingProblem, evaluate, sgd
from hypergrad_studies.papers.reversible_learning import comparison, outer
from hypergrad_studies.papers.reversible_learning.comparison import Reported
from hypergrad_studies.papers.reversible_learning.descent import Descent
from hypergrad_studies.papers.reversible_learning.outer import Iteration, OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled

TARGET = jnp.array([1.0, -2.0, 0.5])
SPACE = {"log_rate": Float(-4.0, 1.0), "aim": Float(-5.0, 5.0, shape=(3,))}
START = {"log_rate": -2.0, "aim": 0.0}


@pytest.fixture(scope="module")
def problem() -> TrainingProblem:
    """Return training that draws weights towards `aim` from a random start; the outer loss is 0 at `TARGET`."""
    return TrainingProblem(
        init=lambda key, h: 0.1 * jax.random.normal(key, (3,)),
        train_loss=lambda w, h, batch, key: jnp.sum((w - h["aim"]) ** 2),
        valid_loss=lambda w, h: jnp.sum((w - TARGET) ** 2),
        test_loss=lambda w, h: jnp.sum((w - 0.9 * TARGET) ** 2),
        batches=lambda step: None,
        optimizer=sgd(lambda h, step: jnp.exp(h["log_rate"]), 0.5, dampening=True),
        steps=5,
    )


def descent(problem: TrainingProblem, **options: Any) -> Descent:
    return Descent(problem, SPACE, START, 6, **{"optimizer": optax.adam(0.1), **options})


def sampled(problem: TrainingProblem) -> Sampled:
    return Sampled(problem, SPACE, START, 9, sampler=lambda seed: HypergradSampler(seed=seed))


def without_seconds(iterations: list[Iteration]) -> list[dict[str, Any]]:
    return [{**vars(i), "seconds": None} for i in iterations]


@pytest.mark.slow
def test_a_descent_is_the_optimizers_own(problem: TrainingProblem, tmp_path: Path) -> None:
    done = list(descent(problem, reseed=True).run("paper", 3, tmp_path))
    here: Any = {"log_rate": np.float32(-2.0), "aim": np.zeros(3, np.float32)}
    optimizer = optax.adam(0.1)
    state = optimizer.init(here)
    for i in range(7):
        found = evaluate(problem, here, key=jax.random.fold_in(jax.random.key(3), i))
        assert (done[i].value, done[i].test) == (found.value, found.test_loss)
        assert done[i].gradient_evaluations == (20 if i < 6 else 5)  # the last point needs no gradient
        if i < 6:
            updates, state = optimizer.update(found.gradient, state, here)
            here = optax.apply_updates(here, updates)
    end = descent(problem).found("paper", 3, tmp_path)
    assert all(np.array_equal(end[name], here[name]) for name in here)
    assert done[-1].value < 0.7 * done[0].value
    trajectory = descent(problem).trajectory("paper", 3, tmp_path)
    assert {name: path.shape for name, path in trajectory.items()} == {"log_rate": (7,), "aim": (7, 3)}


def test_a_descent_stays_in_its_space(problem: TrainingProblem, tmp_path: Path) -> None:
    wild = descent(problem, optimizer=optax.sgd(1000.0))
    done = list(wild.run("paper", 0, tmp_path))
    end = wild.found("paper", 0, tmp_path)
    assert all(((p.low <= end[name]) & (end[name] <= p.high)).all() for name, p in SPACE.items())
    assert np.isfinite([i.value for i in done]).all()


def test_an_iteration_without_a_gradient_moves_nothing(tmp_path: Path) -> None:
    nowhere = TrainingProblem(
        init=lambda key, h: jnp.zeros(3),
        train_loss=lambda w, h, batch, key: jnp.sum(w * h["aim"]) / h["log_rate"] * jnp.inf,
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.5),
        steps=2,
    )
    loop = descent(nowhere)
    done = list(loop.run("paper", 0, tmp_path))
    assert {i.status for i in done} == {"nan"}
    assert {i.value for i in done} == {math.inf}
    assert math.isnan(done[0].test)
    assert loop.found("paper", 0, tmp_path)["log_rate"] == -2.0
    assert list(map(str, loop.run("paper", 0, tmp_path))) == list(map(str, done))  # NaN is not equal to itself


@pytest.mark.parametrize("make", [descent, sampled])
def test_what_was_cut_off_goes_on(make: Any, problem: TrainingProblem, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    expected = list(make(problem).run("mine", 0, whole))
    first = list(itertools.islice(make(problem).run("mine", 0, cut), 4))
    assert without_seconds(first) == without_seconds(expected[:4])
    if make is sampled:  # a killed process leaves a step under way
        make(problem)._study("mine", 0, cut).ask()
    again = list(make(problem).run("mine", 0, cut))
    assert again[:4] == first
    assert len(again) == len(expected)
    if make is descent:
        assert without_seconds(again) == without_seconds(expected)
        found = [make(problem).found("mine", 0, folder) for folder in (whole, cut)]
        assert all(np.array_equal(found[0][name], found[1][name]) for name in SPACE)
    else:  # the step is taken again, and is the same; where the search explores, it draws other points
        trials = [make(problem)._study("mine", 0, folder).trials for folder in (whole, cut)]
        assert [t.number for t in trials[1]] == list(range(10))
        parents = [wanted(t[4]).parent for t in trials]
        assert parents[0] == parents[1] is not None
        assert again[4].value == expected[4].value


def test_a_study_killed_in_its_first_trial_begins_at_the_start(problem: TrainingProblem, tmp_path: Path) -> None:
    loop = sampled(problem)
    study = loop._study("mine", 0, tmp_path)
    study.enqueue_trial(START)
    study.ask()
    study.enqueue_trial({**START, "aim": 3.0})
    done = list(loop.run("mine", 0, tmp_path))
    assert [t.number for t in loop._study("mine", 0, tmp_path).trials] == list(range(10))
    assert without_seconds(done) == without_seconds(list(loop.run("mine", 0, tmp_path)))
    start = evaluate(problem, loop.start_arrays(), key=jax.random.key(0))
    assert done[0].value == start.value


def test_nothing_is_computed_twice(problem: TrainingProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: dict[str, OuterLoop] = {"paper": descent(problem), "hypergrad": sampled(problem)}
    done = outer.record(loops, 2, tmp_path, Console(quiet=True))
    records = (tmp_path / "records.jsonl").read_text()
    assert [json.loads(line)["search"] for line in records.splitlines()] == 2 * (7 * ["paper"] + 10 * ["hypergrad"])

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("hypergrad_studies.papers.reversible_learning.descent.evaluate", refuse)
    monkeypatch.setattr(optuna.Study, "optimize", refuse)
    assert outer.record(loops, 2, tmp_path, Console(quiet=True)) == done
    assert (tmp_path / "records.jsonl").read_text() == records


def test_a_study_begins_at_the_start_and_finds_its_best(problem: TrainingProblem, tmp_path: Path) -> None:
    loop = sampled(problem)
    done = list(loop.run("hypergrad", 0, tmp_path))
    start = {"log_rate": np.float32(-2.0), "aim": np.zeros(3, np.float32)}
    assert done[0].value == evaluate(problem, start, key=jax.random.key(0)).value
    assert done[0].gradient_evaluations == 20
    best = loop.found("hypergrad", 0, tmp_path)
    assert loop.outcome(done).value == min(i.value for i in done)
    assert evaluate(problem, best, key=jax.random.key(0)).value == pytest.approx(loop.outcome(done).value, rel=1e-5)


@pytest.mark.slow
def test_a_killed_process_loses_one_iteration_at_most(tmp_path: Path) -> None:
    """The command itself is killed twice, while each kind of outer loop is under way."""
    command = [sys.executable, "-c", "from hypergrad_studies.cli import main; main()", "reproduce", "training-data"]
    arguments = ["--seeds", "1", "--out", str(tmp_path)]
    for lines in (10, 60):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
        wait_for(tmp_path / "records.jsonl", lines, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = (tmp_path / "records.jsonl").read_text().splitlines()[:-1]  # the last may be cut short
    assert subprocess.run([*command, *arguments], capture_output=True, check=False).returncode == 0
    after = (tmp_path / "records.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 2 * 41
    assert (tmp_path / "results.json").exists()


def wait_for(path: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_text().count("\n") >= lines):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def iterations(*values: float, search: str = "paper") -> list[Iteration]:
    return [Iteration(search, 0, i, value, 10 * value, "ok", 1.0, 0.5) for i, value in enumerate(values)]


def test_how_soon_a_search_is_where_the_paper_ends(problem: TrainingProblem) -> None:
    loops: dict[str, OuterLoop] = {"paper": descent(problem), "hypergrad": sampled(problem)}
    done = {
        "paper": [iterations(5, 4, 3), iterations(5, 3, 2)],
        "hypergrad": [iterations(5, 1, 2, search="hypergrad"), iterations(5, 4, 2.5, search="hypergrad")],
    }
    rows = {row.quantity: row for row in comparison.rows(loops, done, "loss", Reported(6.0, 2.5, 9.0, 50))}
    assert rows["paper: loss at the start"] == ("paper: loss at the start", 6.0, [5, 5])
    assert rows["paper: loss after 6 iterations"][1:] == (2.5, [3, 2])
    assert rows["paper: test loss there"][1:] == (9.0, [30, 20])
    assert rows["paper: first iteration at 2.5 or below"][1:] == (50, [math.inf, 2])
    assert rows["hypergrad: loss after 9 iterations"].ours == [1, 2.5]  # the best, not the last
    assert rows["hypergrad: the same, worst seed"].ours == [2.5, 2.5]
    assert rows["hypergrad: first iteration where paper ends"][1:] == (50, [1, math.inf])
    assert "paper: first iteration where paper ends" not in rows
    spent = [
        row for row in comparison.rows(loops, done, "loss", Reported(6.0, 2.5, 9.0, 50)) if "evaluations" in row[0]
    ]
    assert [row.ours for row in spent] == [[math.inf, 3], [2, 3], [2, math.inf]]
    assert rows["paper: iterations that failed"].ours == [0, 0]
    assert all(row.paper is None for row in comparison.rows(loops, done, "loss", None))


def test_networks_at_once_are_charged_each(problem: TrainingProblem, tmp_path: Path) -> None:
    four: dict[str, OuterLoop] = {"a": descent(problem), "b": sampled(problem)}
    for name, loop in four.items():
        first, *_ = replace(loop, iterations=1, networks=4).run(name, 0, tmp_path)
        assert first.gradient_evaluations == 4 * 20


def test_other_studies_leave_the_records_alone(problem: TrainingProblem, tmp_path: Path) -> None:
    loops: dict[str, OuterLoop] = {"paper": descent(problem), "hypergrad": sampled(problem)}
    done = outer.record(loops, 1, tmp_path, Console(quiet=True))
    records = (tmp_path / "records.jsonl").read_text()
    again = outer.finish({"paper": descent(problem)}, 1, tmp_path, Console(quiet=True))
    assert again["paper"] == done["paper"]
    assert (tmp_path / "records.jsonl").read_text() == records


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)
