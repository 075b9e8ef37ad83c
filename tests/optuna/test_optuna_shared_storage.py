"""Several real processes on one study, in a real SQLite file, a real PostgreSQL and a journal file."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hypergrad_optuna import HypergradSampler, attributes, claims, report_gradient
from hypergrad_optuna.history import in_order

WORKER = Path(__file__).with_name("worker.py")
PROCESSES, TRIALS = 4, 15


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return f"journal:{tmp_path / 'journal'}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return str(request.getfixturevalue("postgresql_url"))


def each_storage(*slow: str) -> pytest.MarkDecorator:
    """Every storage is in a fast test, and each test is fast with one of them."""
    names = ("sqlite", "postgresql", "journal")
    return pytest.mark.parametrize(
        "storage", [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names], indirect=True
    )


def opened(storage: str) -> optuna.storages.BaseStorage:
    if storage.startswith("journal:"):
        return optuna.storages.JournalStorage(JournalFileBackend(storage.removeprefix("journal:")))
    return optuna.storages.get_storage(storage)


def ready(storage: str, trials: int, processes: int = 1, **environment: str) -> subprocess.Popen[str]:
    """Return processes that start when they get a line."""
    command = [sys.executable, str(WORKER), storage, "shared", str(trials), str(processes)]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@each_storage("sqlite")
def test_four_processes_share_a_study(storage: str) -> None:
    study = optuna.create_study(study_name="shared", storage=opened(storage))
    workers = ready(storage, TRIALS, PROCESSES)
    _, errors = workers.communicate("go\n", timeout=300)
    assert workers.returncode == 0, errors

    trials = study.get_trials()
    assert [t.number for t in trials] == list(range(PROCESSES * TRIALS))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    processes = [t.user_attrs["process"] for t in trials]
    assert {processes.count(p) for p in processes} == {TRIALS}

    links = [(t, trials[int(attributes.wanted(t).parent or 0)]) for t in trials if _is_step(t)]
    handed_over = [1 for child, parent in links if _process(child) != _process(parent)]
    assert handed_over, "every chain was extended by the process that had started it"
    taken = [(attributes.wanted(t).parent, *t.params.values()) for t in trials if _is_step(t)]
    assert len(taken) - len(set(taken)) <= len(taken) // 10, "the same steps were taken twice"
    assert any(attributes.wanted(t).variant for t in trials), "no two steps were taken from one trial"
    assert study.best_value < 1.0


@each_storage("postgresql", "journal")
def test_a_killed_worker_loses_nothing_but_its_trial(storage: str) -> None:
    study = optuna.create_study(study_name="shared", storage=opened(storage))
    victim, survivor = ready(storage, 10_000), ready(storage, TRIALS)
    assert victim.stdin is not None
    victim.stdin.write("go\n")
    victim.stdin.flush()
    while sum(_is_step(t) for t in study.get_trials(deepcopy=False)) < 3:
        assert victim.poll() is None
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    before = study.get_trials()
    time.sleep(claims.PATIENCE.total_seconds())  # the step of the dead worker is then given to another
    _, errors = survivor.communicate("go\n", timeout=120)
    assert survivor.returncode == 0, errors
    trials = study.get_trials()
    unfinished = [t for t in trials if t.state == TrialState.RUNNING]
    assert len(unfinished) <= 1
    assert len(trials) == len(before) + TRIALS
    assert sum(t.state == TrialState.COMPLETE for t in trials[len(before) :]) == TRIALS
    assert any(_is_step(t) for t in trials[len(before) :])


@pytest.mark.slow
def test_processes_in_other_time_zones_go_on_with_the_same_chains(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="shared", storage=storage)
    for zone in ("EAST-14", "WEST12", "UTC"):
        _, errors = ready(storage, 4, TZ=zone).communicate("go\n", timeout=120)
        assert not errors
    trials = study.get_trials()
    steps = [(t, trials[int(attributes.wanted(t).parent or 0)]) for t in trials if _is_step(t)]
    assert any(_process(child) != _process(parent) for child, parent in steps), "a chain goes on in another time zone"
    taken = [(parent.number, *child.params.values()) for child, parent in steps]
    assert len(taken) == len(set(taken))


def test_a_child_comes_after_its_parent_whatever_the_clocks_say() -> None:
    """The clocks of two machines may differ, and local times repeat when summer ends."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, sampler=HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=12)
    trials = study.get_trials()
    assert any(_is_step(t) for t in trials)
    assert [t.number for t in in_order(reversed(trials))] == list(range(12)), "in the order in which they ended"
    for trial in trials:
        if _is_step(trial):
            assert trial.datetime_complete is not None
            trial.datetime_complete -= timedelta(hours=1)
    position = {trial.number: place for place, trial in enumerate(in_order(reversed(trials)))}
    assert all(position[int(attributes.wanted(t).parent or 0)] < position[t.number] for t in trials if _is_step(t))


def bowl(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5, 5)
    report_gradient(trial, {"x": 2 * x})
    return x**2


def _is_step(trial: optuna.trial.FrozenTrial) -> bool:
    return attributes.wanted(trial).parent is not None


def _process(trial: optuna.trial.FrozenTrial) -> int:
    return int(trial.user_attrs["process"])
