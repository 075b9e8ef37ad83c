"""Runs that are spread over processes by Ray: their records, and what happens where a process is lost."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from optuna.samplers import RandomSampler
from ray.cluster_utils import Cluster
from rich.console import Console

from hypergrad_studies import records
from hypergrad_studies.comparison import run as compare
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import Record
from hypergrad_studies.rivals import RIVALS, Rival, Setting
from hypergrad_studies.spending import Budget
from hypergrad_studies.tasks import Task
from hypergrad_studies.workers import WorkerLost


def quadratic(*rivals: Rival) -> dict[Task, list[Rival]]:
    """Return these rivals, or two others, on a problem."""
    return {PROBLEMS["synthetic-quadratic"](): list(rivals) or [RIVALS["random"], RIVALS["hypergrad-unlifted"]]}


def run(out: Path, workers: int, rivals: dict[Task, list[Rival]]) -> list[Record]:
    """Return the records of a comparison, without the order of runs and what differs from time to time."""
    compare(
        out,
        rivals,
        budget=Budget(40),
        seeds=range(2),
        backend="optuna",
        console=Console(quiet=True),
        workers=workers,
    )
    study = records.Study.load(out)
    assert study.runs is not None
    assert len(study.runs) == 2 * len(*rivals.values())
    timeless = [Record(**{**vars(r), "seconds": 0, "ask_seconds": 0, "tell_seconds": 0}) for r in study.records]
    return sorted(timeless, key=lambda record: (record.key, record.trial))


@pytest.mark.slow
def test_two_workers_make_the_records_of_one(tmp_path: Path) -> None:
    assert run(tmp_path / "two", 2, quadratic()) == run(tmp_path / "one", 1, quadratic())


@pytest.mark.slow
def test_a_run_whose_process_is_killed_is_made_again(tmp_path: Path) -> None:
    """The third trial of one run kills its process; all records are there in the end, and none twice."""
    killed = tmp_path / "killed"

    def make(setting: Setting) -> RandomSampler:
        class Killer(RandomSampler):
            def after_trial(self, study, trial, state, values) -> None:  # type: ignore[no-untyped-def]  # as Optuna's
                if setting.seed == 1 and trial.number == 2 and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        return Killer(setting.seed)

    rivals = quadratic(Rival("random", sampler=make), RIVALS["hypergrad-unlifted"])
    found = run(tmp_path / "out", 2, rivals)
    assert killed.exists()
    assert found == run(tmp_path / "one", 1, rivals)


@pytest.mark.slow
def test_a_run_that_always_kills_its_process_ends_the_study(tmp_path: Path) -> None:
    def make(setting: Setting) -> RandomSampler:
        os.kill(os.getpid(), signal.SIGKILL)
        return RandomSampler(setting.seed)

    with pytest.raises(WorkerLost, match="synthetic-quadratic random seed 0: its process was lost 3 times"):
        compare(
            tmp_path,
            quadratic(Rival("random", sampler=make)),
            budget=Budget(40),
            seeds=range(1),
            backend="optuna",
            console=Console(quiet=True),
            workers=2,
        )
    assert records.finished(tmp_path) == set()


@pytest.mark.slow
def test_runs_of_a_node_that_is_lost_are_made_by_the_others(ray_cluster: Cluster, tmp_path: Path) -> None:
    """A node goes when both have begun; no core is left for another worker, and the first one makes all runs."""
    begun, gone = tmp_path / "begun", tmp_path / "gone"
    begun.mkdir()

    def make(setting: Setting) -> RandomSampler:
        class Waiting(RandomSampler):
            def after_trial(self, study, trial, state, values) -> None:  # type: ignore[no-untyped-def]  # as Optuna's
                (begun / ray.get_runtime_context().get_node_id()).touch()
                while not gone.exists():
                    time.sleep(0.1)

        return Waiting(setting.seed)

    def lose_a_node() -> None:
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.1)
        ray_cluster.remove_node(ray_cluster.worker_nodes.copy().pop(), allow_graceful=False)
        gone.touch()

    rivals = quadratic(Rival("random", sampler=make), RIVALS["hypergrad-unlifted"])
    killer = threading.Thread(target=lose_a_node)
    killer.start()
    console = Console(quiet=True)
    out = tmp_path / "out"
    address = ray_cluster.address
    compare(out, rivals, budget=Budget(40), seeds=range(2), backend="optuna", console=console, address=address)
    killer.join()
    study = records.Study.load(out)
    assert study.runs is not None
    assert len(study.runs) == 4
    assert len(list(begun.iterdir())) == 2
