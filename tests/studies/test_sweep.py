"""One study by many processes: what is counted, what a signal does, and what happens where processes or servers die."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import optuna
import pytest
from click.testing import CliRunner
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.trial import TrialState, create_trial
from ray.cluster_utils import Cluster

from hypergrad_optuna import attributes
from hypergrad_search import evaluate
from hypergrad_studies import posing
from hypergrad_studies.cli import cli
from hypergrad_studies.spending import SECONDS, Budget, NoCost
from hypergrad_studies.sweep import ray_engine
from hypergrad_studies.sweep.plan import Limits, Plan
from hypergrad_studies.sweep.progress import progress, table
from hypergrad_studies.sweep.ray_engine import Spent
from hypergrad_studies.sweep.storages import open_storage
from hypergrad_studies.sweep.worker import work
from hypergrad_studies.tasks import TrainingTask

HYPERGRAD = [sys.executable, "-c", "from hypergrad_studies.cli import main; main()"]

pytestmark = pytest.mark.usefixtures("closed_connections")

MODULE = """
import os, time
from hypergrad_optuna import report_gradient

def bowl(seconds):
    def objective(trial):
        x = [trial.suggest_float(f"x{i}", -5, 5) - 1.3 for i in range(3)]
        trial.set_user_attr("process", os.getpid())
        time.sleep(seconds)
        report_gradient(trial, {f"x{i}": 2 * number for i, number in enumerate(x)}, cost=4)
        return sum(number**2 for number in x)
    return objective

def quick():
    return bowl(0.0)

def make():
    return bowl(0.2)

def slow():
    return bowl(1.0)

def training():
    import time
    import jax, jax.numpy as jnp
    from hypergrad_search import Float, TrainingProblem, sgd
    def slowly(x):
        time.sleep(0.002)
        return x
    def batches(step):
        return jax.pure_callback(slowly, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(1.0))
    problem = TrainingProblem(
        init=lambda key, h: jax.random.normal(key, (20,)),
        train_loss=lambda w, h, one, key: jnp.sum(h["l2"] * w**2) + one * jnp.mean((w - jnp.arange(20) / 10) ** 2),
        valid_loss=lambda w, h: jnp.mean((w - jnp.arange(20) / 20) ** 2),
        batches=batches,
        optimizer=sgd("rate", 0.5),
        steps=50,
    )
    return problem, {"l2": Float(1e-4, 1.0, log=True, shape=(20,)), "rate": Float(1e-2, 0.5, log=True)}

def silent():
    return lambda trial: trial.suggest_float("x", -1, 1) ** 2

def breaks():
    def objective(trial):
        raise KeyError("mine")
    return objective
"""


@pytest.fixture
def problem(tmp_path: Path) -> Callable[[str], str]:
    """Return a function from a name in a user's file to the problem on the command line."""
    (tmp_path / "mine.py").write_text(MODULE)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HYPERGRAD, "sweep", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """Return what a sweep has printed when it has ended, with no process left behind."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    output, _ = process.communicate(timeout=timeout)
    assert not [child for child in children if Path("/proc", child).exists()]
    return output


def study_in(storage: str, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(storage))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_storages_have_names(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"journal:{tmp_path / 'journal'}"), JournalStorage)
    database = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    assert isinstance(database, optuna.storages.RDBStorage)
    assert database.get_heartbeat_interval() == 10
    for name in ("study.db", "journal:", "", "grpc://host", "grpc:host:1"):
        with pytest.raises(ValueError, match=r"a storage must be a URL such as|must be named grpc://HOST:PORT"):
            open_storage(name)


def test_a_plan_is_text() -> None:
    for budget in (None, Budget(100), Budget(0.5, SECONDS)):
        plan = Plan("a.py:make", "sqlite:///a.db", "a", "tpe", "maximize", Limits(5, budget))
        assert Plan.from_json(plan.to_json()) == plan


def test_progress_counts_each_trial_once() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=2.0, user_attrs={attributes.COST: 4}))
    study.add_trial(create_trial(value=math.inf, user_attrs={attributes.COST: 1}))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=0.5))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(value=1.0, system_attrs={"failed_trial": 4, "retry_history": [4]}))
    study.ask()
    found = progress(study)
    assert (found.done, found.running, found.taken_over, found.evaluations) == (5, 1, 1, 5)
    assert found.best is not None
    assert found.best.number == 5
    for limits, reached, with_running in (
        (Limits(), False, False),
        (Limits(trials=5), True, True),
        (Limits(trials=6), False, True),
        (Limits(trials=7), False, False),
        (Limits(budget=Budget(5)), True, True),
        (Limits(trials=9, budget=Budget(6)), False, False),
        (Limits(budget=Budget(1, SECONDS)), False, False),
    ):
        assert found.reached(limits) == reached
        assert found.reached(limits, with_running=True) == with_running
    assert table(study).row_count == 8
    assert progress(optuna.create_study(storage=InMemoryStorage())).best is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is not one of digits-mlp"),
        (["digits-mlp", "--method", "bayes"], "'bayes' is not one of random"),
        (["digits-mlp", "--method", "asha"], "asha does not run in optuna"),
        (["digits-mlp", "--method", "prodigy"], "prodigy trains once, and searches nothing"),
        (["digits-l2", "--method", "tpe-tied"], "tpe-tied is for comparisons alone"),
        (["digits-mlp", "--method", "freeze-thaw"], "freeze-thaw is for comparisons alone"),
        (["digits-mlp", "--storage", "here.db"], "a storage must be a URL such as"),
        (["digits-mlp", "--budget", "soon"], "budget must be a whole number of gradient evaluations"),
        (["status"], "name the problem, or the study by --study"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["sweep", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize(
    ("limits", "trials"),
    [(Limits(trials=7), 7), (Limits(budget=Budget(18)), 5), (Limits(trials=3, budget=Budget(100)), 3)],
)
def test_a_process_works_until_a_limit_is_reached(
    limits: Limits, trials: int, problem: Callable[[str], str], tmp_path: Path
) -> None:
    plan = Plan(problem("quick"), f"sqlite:///{tmp_path / 'study.db'}", "mine", "hypergrad", "minimize", limits)
    work(plan, lambda: False)
    assert [trial.state for trial in plan.join().trials] == [TrialState.COMPLETE] * trials
    work(plan, lambda: False)
    assert len(plan.join().trials) == trials
    with pytest.raises(ValueError, match=r"has the direction minimize, and not maximize; choose another --study"):
        replace(plan, direction="maximize").join()


def test_a_process_trains_several_trials_at_once(problem: Callable[[str], str], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    plan = Plan(problem("training"), storage, "mine", "hypergrad", "minimize", Limits(trials=7), batch=4)
    plan.check()
    work(plan, lambda: False)
    trials = plan.join().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    began = [trial.datetime_start for trial in trials[:4] if trial.datetime_start is not None]
    assert len(began) == 4
    assert all(trial.datetime_complete is not None and trial.datetime_complete > max(began) for trial in trials[:4])
    assert any(trial.user_attrs.get("hypergrad:exact") for trial in trials)


@pytest.mark.parametrize(
    ("name", "method", "engine", "message"),
    [
        ("quick", "hypergrad", "optuna", "--batch needs --engine optuna and a training problem"),
        ("training", "hypergrad", "ray", "--batch needs --engine optuna and a training problem"),
        ("training", "hypernet", "optuna", r"batches need method=Reversible\(\)|hyperparameter"),
    ],
)
def test_what_cannot_be_batched_is_refused(
    name: str,
    method: str,
    engine: Literal["optuna", "ray"],
    message: str,
    problem: Callable[[str], str],
    tmp_path: Path,
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    plan = Plan(problem(name), storage, "mine", method, "minimize", Limits(trials=7), engine, batch=4)
    with pytest.raises(ValueError, match=message):
        plan.check()


def test_batches_do_not_count_seconds(problem: Callable[[str], str], tmp_path: Path) -> None:
    limits, storage = Limits(budget=Budget.parse("10s")), f"sqlite:///{tmp_path / 'study.db'}"
    plan = Plan(problem("training"), storage, "mine", "hypergrad", "minimize", limits, batch=4)
    with pytest.raises(ValueError, match="--batch needs a --budget in gradient evaluations"):
        plan.check()


def test_a_process_stops_when_it_is_told_to(problem: Callable[[str], str], tmp_path: Path) -> None:
    plan = Plan(problem("quick"), f"journal:{tmp_path / 'journal'}", "mine", "tpe", "minimize", Limits())
    asked = iter([False, False, False, True])
    work(plan, lambda: next(asked))
    assert len(plan.join().trials) == 3


def test_a_process_raises_what_is_wrong(problem: Callable[[str], str], tmp_path: Path) -> None:
    limits, storage = Limits(budget=Budget(100)), f"journal:{tmp_path / 'journal'}"
    with pytest.raises(NoCost, match="does not say what it cost"):
        work(Plan(problem("silent"), storage, "a", "random", "minimize", limits), lambda: False)
    with pytest.raises(KeyError, match="mine"):
        work(Plan(problem("breaks"), storage, "b", "random", "minimize", limits), lambda: False)


@pytest.mark.slow
def test_two_processes_work_until_the_trials_are_there(problem: Callable[[str], str], tmp_path: Path) -> None:
    storage, name = f"sqlite:///{tmp_path / 'study.db'}", problem("make")
    output = ended(start(name, "--storage", storage, "--study", "mine", "--workers", 2, "--trials", 12))
    assert "12  complete" in output or "13  complete" in output
    study = study_in(storage, "mine")
    assert len({trial.user_attrs["process"] for trial in study.trials}) == 2
    assert study.best_value < 1.0
    done = CliRunner().invoke(cli, ["sweep", "status", "--storage", storage, "--study", "mine"])
    assert done.output.strip() in output
    missing = CliRunner().invoke(cli, ["sweep", "status", "--storage", storage, "--study", "other"])
    assert "has no study 'other'; it has mine" in missing.output


@pytest.mark.slow
def test_a_signal_lets_trials_end_and_the_same_command_goes_on(problem: Callable[[str], str], tmp_path: Path) -> None:
    storage, name = f"journal:{tmp_path / 'journal'}", problem("make")
    arguments = (name, "--storage", storage, "--budget", 100)
    process = start(*arguments)
    wait_for(lambda: (tmp_path / "journal").exists() and progress(study_in(storage, name)).done > 2)
    process.send_signal(signal.SIGINT)
    output = ended(process)
    assert process.returncode == 0
    assert "stopping when the trials under way have ended" in output
    assert "not done yet; to continue: hypergrad sweep" in output
    before = study_in(storage, name).trials
    assert {trial.state for trial in before} == {TrialState.COMPLETE}
    assert len(before) < 25
    assert "25  complete" in ended(start(*arguments))  # of a cost of 4
    assert [t.params for t in study_in(storage, name).trials[: len(before)]] == [t.params for t in before]


@pytest.mark.slow
def test_what_an_objective_raises_is_shown(problem: Callable[[str], str], tmp_path: Path) -> None:
    process = start(problem("breaks"), "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--workers", 2)
    output = ended(process)
    assert process.returncode == 1
    assert "KeyError: 'mine'" in output
    assert "a process of the sweep ended with the status 1; mend what it says above" in output


@pytest.mark.slow
def test_a_budget_needs_costs(problem: Callable[[str], str], tmp_path: Path) -> None:
    process = start(problem("silent"), "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--budget", 100)
    assert "does not say what it cost" in ended(process)
    assert process.returncode == 1


@pytest.mark.slow
def test_killed_processes_and_a_restarted_server_lose_no_trial(
    problem: Callable[[str], str], postgresql_url: str, restart_postgresql: Callable[[], None]
) -> None:
    """Of four processes two are killed, and the server is started again; each trial is there once."""
    name = problem("slow")
    process = start(name, "--storage", postgresql_url, "--study", "mine", "--workers", 4, "--trials", 80)
    storage = open_storage(postgresql_url)
    wait_for(lambda: "mine" in optuna.get_all_study_names(storage), 120)
    study = optuna.load_study(study_name="mine", storage=storage)
    wait_for(lambda: progress(study).done > 8 and progress(study).running == 4, 120)
    running = study.get_trials(states=(TrialState.RUNNING,))
    victims = {trial.number: trial.user_attrs["process"] for trial in running[:2] if "process" in trial.user_attrs}
    for victim in victims.values():
        os.kill(victim, signal.SIGKILL)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    wait_for(lambda: progress(study).done > 24, 120)
    restart_postgresql()
    output = ended(process, 300)
    assert process.returncode == 0, output
    trials = study_in(postgresql_url, "mine").trials
    assert [trials[t.number].value for t in finished] == [t.value for t in finished]
    assert 80 <= progress(study_in(postgresql_url, "mine")).done <= 83
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    failed = {trial.number for trial in trials if trial.state is TrialState.FAIL}
    assert set(victims) <= failed
    taken_over = [trial.system_attrs["failed_trial"] for trial in trials if "failed_trial" in trial.system_attrs]
    assert sorted(taken_over) == sorted(failed)  # each by one other trial
    for trial in trials:
        if "failed_trial" in trial.system_attrs:
            assert trial.params == trials[trial.system_attrs["failed_trial"]].params
            assert trial.state is TrialState.COMPLETE
    assert study.best_value < 1e-3


@pytest.mark.filterwarnings("ignore:os.fork")  # nodes of Ray are started by a process that has JAX, and leave it alone
@pytest.mark.slow
def test_a_node_of_ray_is_lost_and_another_one_joins(
    problem: Callable[[str], str], tmp_path: Path, ray_cluster: Cluster
) -> None:
    """All 200 trials are there once; each has the value that training in this process has; chains go on."""
    name = problem("training")
    lost = ray_cluster.add_node(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
    process = start(
        *(name, "--engine", "ray", "--address", ray_cluster.address, "--storage", tmp_path, "--study", "mine"),
        *("--trials", 200),
    )
    assert process.stdout is not None
    wait_for(lambda: process.poll() is not None or len(list((tmp_path / "mine").glob("*/result.json"))) > 12, 180)
    assert process.poll() is None, process.communicate()
    ray_cluster.remove_node(lost, allow_graceful=False)
    ray_cluster.add_node(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
    output = ended(process, 400)
    assert process.returncode == 0, output
    assert "200  terminated" in output
    trials = ray_engine.find(str(tmp_path), "mine").trials or []
    assert len(trials) == len({trial.trial_id for trial in trials}) == 200
    task = posing.named(name)
    assert isinstance(task, TrainingTask)
    for trial in trials[::20]:
        hyperparameters = {key: trial.config[key] for key in task.space}
        assert evaluate(task.problem, hyperparameters, key=jax.random.key(0)).value == trial.last_result["loss"]
    parents = [trial.config["hypergrad"]["parent"] for trial in trials]
    assert any(parents[30:])
    assert min(trial.last_result["loss"] for trial in trials) < 0.1
    shown = CliRunner().invoke(
        cli, ["sweep", "status", "--engine", "ray", "--storage", str(tmp_path), "--study", "mine"]
    )
    assert "200  terminated" in shown.output


@pytest.mark.slow
def test_a_proxy_of_optuna_is_a_storage_too(problem: Callable[[str], str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    proxy = subprocess.Popen([sys.executable, "-c", PROXY, f"sqlite:///{tmp_path / 'study.db'}", str(port)])
    try:
        name = problem("make")
        output = ended(start(name, "--storage", f"grpc://127.0.0.1:{port}", "--workers", 2, "--trials", 10))
    finally:
        proxy.kill()
        proxy.wait()
    assert "10  complete" in output or "11  complete" in output
    assert progress(study_in(f"sqlite:///{tmp_path / 'study.db'}", name)).done in (10, 11)


PROXY = """
import sys
import optuna
optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def test_a_trial_that_was_left_running_does_not_hold_up_a_journal(
    problem: Callable[[str], str], tmp_path: Path
) -> None:
    plan = Plan(problem("quick"), f"journal:{tmp_path / 'journal'}", "mine", "random", "minimize", Limits(trials=4))
    plan.join().ask()
    work(plan, lambda: False)
    assert [t.state for t in plan.join().trials] == [TrialState.RUNNING, *[TrialState.COMPLETE] * 4]


def test_a_budget_of_ray_is_spent_once(tmp_path: Path) -> None:
    spent = Spent(Budget(10), tmp_path / "spent.json")
    assert not spent.stop_all()
    spent("a", {"gradient_evaluations": 4})
    spent("a", {"gradient_evaluations": 6})
    again = Spent(Budget(10), tmp_path / "spent.json")  # as a run that goes on has it
    again("b", {"gradient_evaluations": 3})
    assert not again.stop_all()
    again("c", {"gradient_evaluations": 1})
    assert again.stop_all()
    again("d", {})
    with pytest.raises(NoCost, match="a trial does not say what it cost"):
        again.stop_all()


def test_storages_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ValueError, match="the storage 'foo://bar' cannot be used"):
        open_storage("foo://bar")
