"""Anybody's problem is compared: objectives, training problems and trainables, in Python and on the command line."""

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution
from optuna.samplers import QMCSampler
from ray import tune
from ray.tune.search.sample import Domain
from rich.console import Console

from hypergrad_optuna import HypergradSampler, attributes, report_gradient, wants_gradient
from hypergrad_search import Float, TrainingProblem, from_function, sgd
from hypergrad_studies import CannotRun, compare, loading, of_factory, posing
from hypergrad_studies.cli import cli
from hypergrad_studies.obstacles import obstacle
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import Busy, OtherStudy, Study
from hypergrad_studies.rivals import KNOWN, RIVALS, Setting
from hypergrad_studies.spending import SECONDS, Budget, NoCost
from hypergrad_studies.tasks import ObjectiveTask, TrainableTask, TrainingTask

QUIET = Console(quiet=True)
HYPERGRAD = [sys.executable, "-c", "from hypergrad_studies.cli import main; main()"]


def bowl(trial: optuna.Trial) -> float:
    """Return a paraboloid, whose gradient is reported where it is wanted; it says what it costs, and a test loss."""
    x = [trial.suggest_float(f"x{i}", -5, 5) for i in range(4)]
    value = float(sum((number - 1) ** 2 for number in x))
    wanted = wants_gradient(trial, value)
    report_gradient(trial, {f"x{i}": 2 * (x[i] - 1) for i in range(4)} if wanted else {}, cost=4 if wanted else 1)
    trial.set_user_attr(attributes.TEST_LOSS, value + 1)
    return value


def silent(trial: optuna.Trial) -> float:
    time.sleep(0.005)
    return trial.suggest_float("x", -1, 1) ** 2


def training() -> tuple[Any, Any]:
    task = PROBLEMS["cancer-mlp"]()
    return task.problem, task.space


def test_an_objective_with_gradients_is_compared(tmp_path: Path) -> None:
    found = compare(bowl, budget=100, methods=["random", "tpe", "hypergrad"], seeds=5, out=tmp_path, console=QUIET)
    study = found.study
    assert study.runs is not None
    assert {run.key for run in study.runs} == {("bowl", m, s) for m in ("random", "tpe", "hypergrad") for s in range(5)}
    assert [r.gradient_evaluations for r in study.records if r.key == ("bowl", "random", 0)] == list(range(1, 101))
    ours = [r.gradient_evaluations or 0 for r in study.records if r.key == ("bowl", "hypergrad", 0)]
    assert {b - a for a, b in zip([0, *ours], ours, strict=False)} == {1, 4}
    assert all(r.test_value == pytest.approx(r.value + 1) for r in study.records)
    assert found.verdict is not None
    assert (found.verdict.pays, found.verdict.wins, found.verdict.measure) == (True, 5, "test loss")
    page = found.report().read_text()
    assert page.index(str(found.verdict)[:40]) < page.index("has the lowest median validation loss")
    assert found.table.row_count == 4


def test_the_same_call_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    compare(bowl, budget=20, methods=["random"], seeds=1, out=tmp_path, console=QUIET)
    before = (tmp_path / "records.jsonl").read_bytes()
    again = compare(bowl, budget=20, methods=["random"], seeds=range(1, 3), out=tmp_path, console=QUIET)
    assert (tmp_path / "records.jsonl").read_bytes().startswith(before)
    assert [run.seed for run in again.study.runs or ()] == [0, 1, 2]
    with pytest.raises(OtherStudy, match="choose another --out, or --budget 20"):
        compare(bowl, budget="20s", out=tmp_path, console=QUIET)
    with pytest.raises(OtherStudy, match="choose another --out, or --direction minimize"):
        compare(bowl, budget=20, direction="maximize", out=tmp_path, console=QUIET)


def test_where_costs_are_not_said_the_budget_is_seconds(tmp_path: Path) -> None:
    with pytest.raises(NoCost, match=r"silent: trial 0 does not say what it cost; report it, .* as in 60s"):
        compare(silent, budget=20, methods=["random"], out=tmp_path / "a", console=QUIET)
    found = compare(silent, budget="0.3s", methods=["random", "tpe"], seeds=1, out=tmp_path / "b", console=QUIET)
    for run in found.study.runs or ():
        assert (run.budget, run.unit) == (0.3, SECONDS)
        of_run = [r for r in found.study.records if r.key == run.key]
        seconds = [r.seconds + r.ask_seconds + r.tell_seconds for r in of_run]
        assert sum(seconds[:-1]) < 0.3 <= sum(seconds) + 0.01  # records have four digits
        assert {r.gradient_evaluations for r in of_run} == {None}
    assert "0.3 s" in found.report().read_text()


def test_an_objective_is_maximised(tmp_path: Path) -> None:
    def hill(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        report_gradient(trial, {"x": -2 * x}, cost=1)
        return 3 - x**2

    found = compare(
        hill, budget=12, methods=["tpe", "hypergrad"], seeds=1, direction="maximize", out=tmp_path, console=QUIET
    )
    values = [r.value for r in found.study.records]
    assert -3 <= min(values) < -2.99
    assert max(values) <= -2


def test_nan_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    def sometimes(trial: optuna.Trial) -> float:
        report_gradient(trial, {}, cost=1)
        return math.nan if trial.suggest_float("x", 0, 1) > 0.5 else 1.0

    with pytest.warns(UserWarning, match="nan is not acceptable"):
        found = compare(sometimes, budget=20, methods=["random"], seeds=1, out=tmp_path, console=QUIET)
    failed = [r for r in found.study.records if r.status == "failed"]
    assert 0 < len(failed) < 20
    assert {(r.value, r.error) for r in failed} == {(math.inf, "the objective returned nan")}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_an_objective_raises_is_raised(workers: int, tmp_path: Path) -> None:
    def broken(trial: optuna.Trial) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compare(broken, budget="1s", methods=["random"], out=tmp_path, console=QUIET, workers=workers)


@pytest.mark.slow
def test_training_problems_and_functions_of_a_users_own(tmp_path: Path) -> None:
    problem, space = training()
    found = compare(problem, space, budget=800, methods=["random", "hypergrad"], seeds=1, out=tmp_path, console=QUIET)
    assert {r.problem for r in found.study.records} == {"problem"}
    assert all(r.test_value is not None for r in found.study.records)

    def loss(h: Any) -> Any:
        return (h["x"] - 0.3) ** 2

    function = compare(
        from_function(loss),
        {"x": Float(-1.0, 1.0)},
        budget=300,
        methods=["tpe", "hypergrad"],
        seeds=1,
        out=tmp_path / "function",
        console=QUIET,
    )
    ours = [r.value for r in function.study.records if r.method == "hypergrad"]
    assert min(ours) < 1e-4


def test_a_users_own_sampler_joins(tmp_path: Path) -> None:
    rival = of_factory("qmc", QMCSampler)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        found = compare(bowl, budget=8, methods=["random", rival], seeds=1, out=tmp_path, console=QUIET)
    assert {r.method for r in found.study.records} == {"random", "qmc"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["bayes"]}, "methods: 'bayes' is not one of random"),
        ({"backend": "dask"}, "backend must be one of optuna, ray, got 'dask'"),
        ({"direction": "down"}, "direction must be 'minimize' or 'maximize', got 'down'"),
        ({"budget": "soon"}, "budget must be a whole number of gradient evaluations, or a time"),
        ({"budget": "0s"}, "budget must be positive, got 0 s"),
        ({"methods": ["hyperband"]}, "hyperband needs a training problem and its space, and bowl is none"),
        ({"methods": ["asha"]}, "asha does not run in optuna"),
        ({"backend": "ray"}, "bowl is an objective of Optuna; choose --backend optuna"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"budget": 10, "out": tmp_path / "out", "console": QUIET, **arguments}
    with pytest.raises(ValueError, match=message):
        compare(bowl, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("problem", "space", "message"),
    [
        (3, None, "problem must be a TrainingProblem with its space, an objective"),
        ("digit", None, "'digit' is not one of digits-mlp"),
        (PROBLEMS["digits-mlp"]().problem, None, "a training problem needs its space"),
    ],
)
def test_a_problem_that_is_none_is_refused(problem: Any, space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(problem, space, budget=10)


def test_by_default_what_cannot_run_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = posing.pose(bowl)
    from hypergrad_studies.comparison import who_can_run

    able = [rival.name for rival in who_can_run(task, [], [], "optuna", Budget(10), Console())]
    said = capsys.readouterr().out
    assert {"random", "tpe", "cmaes", "hypergrad"} <= set(able)
    assert {"hyperband", "first-epoch", "freeze-thaw", "prodigy", "hypernet", "tpe-tied", "tpe-centre"}.isdisjoint(able)
    assert "left out: hyperband needs a training problem" in said
    with pytest.raises(CannotRun, match="prodigy needs a training problem"):
        who_can_run(task, [RIVALS["prodigy"]], [], "optuna", Budget(10), QUIET)
    own = of_factory("mine", optuna.samplers.RandomSampler)
    assert [*able, "mine"] == [rival.name for rival in who_can_run(task, [], [own], "optuna", Budget(10), QUIET)]
    with pytest.raises(CannotRun, match="mine does not run in ray"):
        who_can_run(posing.pose(lambda config: None, {"x": tune.uniform(0, 1)}), [], [own], "ray", Budget(10), QUIET)


MODULE = """
from hypergrad_optuna import report_gradient
from hypergrad_search import from_function
from beside import CENTRE

def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    report_gradient(trial, {"x": 2 * (x - CENTRE)}, cost=1)
    return (x - CENTRE) ** 2

def make():
    return objective

def number():
    return 3

def asks(x):
    return objective

def breaks():
    return {}["nothing"]

class Inner:
    make = staticmethod(make)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a file of a user's own, beside another one that it imports."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("CENTRE = 0.25\n")
    return tmp_path / "mine.py"


@pytest.mark.slow
def test_a_problem_in_a_file_is_compared_by_two_processes(own: Path, tmp_path: Path) -> None:
    name = f"{own}:make"
    shared = ["compare", "--problem", name, "--budget", "12", "--seeds", "2", "--methods", "random,hypergrad"]
    for out, more in (("one", []), ("two", ["--workers", "2"])):
        done = CliRunner().invoke(cli, [*shared, *more, "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
        assert "report.html" in done.output
        assert f"hypergrad was not shown to pay for {name} at 12 gradient evaluations" in " ".join(done.output.split())
    one, two = (sorted((r.key, r.trial, r.value) for r in Study.load(tmp_path / out).records) for out in ("one", "two"))
    assert one == two
    assert len(one) == 4 * 12


@pytest.mark.slow
def test_runs_compute_on_one_core_whatever_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX's last bits depend on the number of threads."""
    monkeypatch.setenv("NPROC", "3")
    (tmp_path / "threads.py").write_text(
        "import os\n"
        "def make():\n"
        "    return lambda trial: float(os.environ['NPROC']) + 0 * trial.suggest_float('x', 0, 1)\n"
    )
    shared = ["compare", "--problem", f"{tmp_path / 'threads.py'}:make", "--budget", "0.05s", "--seeds", "2"]
    for out, workers in (("one", 1), ("two", 2)):
        more = ["--methods", "random", "--workers", str(workers), "--out", str(tmp_path / out)]
        assert CliRunner().invoke(cli, [*shared, *more]).exit_code == 0
        assert {r.value for r in Study.load(tmp_path / out).records} == {1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "has no 'nothing'; it has objective, make, number, asks, breaks, Inner"),
        ("number", "problem must be a TrainingProblem with its space, an objective"),
        ("asks", "is called without arguments, and must return"),
    ],
)
def test_what_a_file_lacks_is_named(own: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=message):
        posing.named(f"{own}:{name}")


def test_names_are_looked_up_as_python_does(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own.parent))
    assert isinstance(posing.named(f"{own}:Inner.make"), ObjectiveTask)
    monkeypatch.chdir(own.parent)
    assert isinstance(posing.named("mine:make"), ObjectiveTask)
    assert isinstance(posing.named("hypergrad_studies.problems.digits_l2:problem"), TrainingTask)
    with pytest.raises(KeyError, match="nothing"):  # the user's own error, with its traceback
        posing.named("mine:breaks")
    (own.parent / "needy.py").write_text("import not_there\n")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        loading.load("needy:make")
    for reference in ("mine", ":make", "mine:"):
        with pytest.raises(ValueError, match=r"must be module:name or path/to/file\.py:name"):
            loading.load(reference)


def test_seeds_are_divided_and_merged(tmp_path: Path, own: Path) -> None:
    shared = ["compare", "--problem", f"{own}:make", "--budget", "6", "--methods", "random"]
    for out, seeds in (("whole", "4"), ("first", "0:2"), ("second", "1:4")):
        done = CliRunner().invoke(cli, [*shared, "--seeds", seeds, "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli, ["merge", *(str(tmp_path / out) for out in ("all", "first", "second"))])
    assert done.exit_code == 0, done.output
    assert "2 runs added" in done.output.replace("\n", " ")
    whole, merged = (
        [(r.key, r.trial, r.value) for r in Study.load(tmp_path / out).records] for out in ("whole", "all")
    )
    assert merged == whole
    CliRunner().invoke(cli, [*shared, "--seeds", "1", "--budget", "7", "--out", str(tmp_path / "other")])
    refused = CliRunner().invoke(cli, ["merge", str(tmp_path / "all"), str(tmp_path / "other")])
    assert isinstance(refused.exception, OtherStudy)
    assert len(Study.load(tmp_path / "all").runs or ()) == 4


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=r"another process is writing into .*; wait for it, or choose another --out"):
        compare(bowl, budget=4, methods=["random"], seeds=1, out=tmp_path, console=QUIET)
    os.kill(holder.pid, signal.SIGKILL)  # a lock dies with its process
    holder.communicate()
    assert compare(bowl, budget=4, methods=["random"], seeds=1, out=tmp_path, console=QUIET).study.runs


HOLD = """
import sys, time
from pathlib import Path
from hypergrad_studies import records
with records.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2500", Budget(2500)),
        ("90s", Budget(90, SECONDS)),
        ("1.5 min", Budget(90, SECONDS)),
        ("2h", Budget(7200, SECONDS)),
    ],
)
def test_budgets_are_read_and_written(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget == Budget.parse(budget.option)


TRAINABLE = """
from ray import tune
from ray.tune.search.sample import Domain
from hypergrad_ray import wants_gradient

def make():
    def train(config):
        x, y = config["x"], config["inner"]["y"]
        value = (x - 0.3) ** 2 + y**2
        result = {"score": -value, "gradient_evaluations": 1}
        if wants_gradient(config, -value):
            result |= {"gradient": {"x": -2 * (x - 0.3), "inner": {"y": -2 * y}}, "gradient_evaluations": 4}
        tune.report(result)
    return train, {"x": tune.uniform(-1, 1), "inner": {"y": tune.uniform(-1, 1), "constant": 3}}
"""


@pytest.mark.slow
def test_a_trainable_of_ray_is_compared_and_swept(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRAINABLE)
    goal = ["--metric", "score", "--direction", "maximize"]
    name = f"{tmp_path / 'mine.py'}:make"
    words = ["compare", "--problem", name, "--budget", "40", "--seeds", "1", "--methods", "random,tpe,hypergrad", *goal]
    run = partial(subprocess.run, capture_output=True, text=True, timeout=300, check=False)
    done = run([*HYPERGRAD, *words, "--out", tmp_path / "out"], env={**os.environ, "RAY_ADDRESS": "10.0.0.1:6379"})
    assert done.returncode == 0, done.stderr
    study = Study.load(tmp_path / "out")
    best = {
        method: min(r.value for r in study.records if r.method == method) for method in ("random", "tpe", "hypergrad")
    }
    assert 0 <= best["hypergrad"] < 1e-4 < best["random"]
    assert {r.status for r in study.records} == {"ok"}
    for run_ in study.runs or ():
        costs = [r.gradient_evaluations or 0 for r in study.records if r.key == run_.key]
        assert costs[-1] >= 40 > costs[-4]
    swept = run(
        [*HYPERGRAD, "sweep", name, "--engine", "ray", "--trials", "12", "--storage", tmp_path / "sweep", *goal],
        env={**os.environ, "RAY_ADDRESS": "10.0.0.1:6379"},
    )
    assert swept.returncode == 0, swept.stderr
    assert "12  terminated" in swept.stdout
    assert "is the best score" in swept.stdout


def test_a_trainable_needs_a_method_that_leaves_training_alone() -> None:
    task = posing.pose(lambda config: None, {"x": tune.uniform(0, 1)})
    assert posing.backend_of(task) == "ray"
    assert obstacle(RIVALS["hypergrad"], task, "ray", Budget(10)) is None
    assert obstacle(RIVALS["random"], task, "ray", Budget(10)) is None
    for name, message in (("asha", "asha needs a training problem"), ("cmaes", "cmaes does not run in ray")):
        assert str(obstacle(RIVALS[name], task, "ray", Budget(10))).startswith(message)
    assert obstacle(RIVALS["hypergrad"], task, "optuna", Budget(10)) == (
        "<lambda> is a trainable of Ray Tune; choose --backend ray"
    )


def test_what_would_repeat_a_run_is_refused_or_left_out(tmp_path: Path) -> None:
    found = compare(bowl, budget=4, methods=["random"], seeds=[0, 0, 2], out=tmp_path / "a", console=QUIET)
    assert [run.seed for run in found.study.runs or ()] == [0, 2]
    twice = of_factory("random", optuna.samplers.RandomSampler)
    with pytest.raises(CannotRun, match="there are two methods 'random'; give one of them another name"):
        compare(bowl, budget=4, methods=["random", twice], out=tmp_path / "b", console=QUIET)
    for arguments, message in (
        ({"seeds": 0}, "seeds"),
        ({"seeds": [-1]}, "each of seeds"),
        ({"workers": 0}, "workers"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(bowl, budget=4, out=tmp_path / "b", console=QUIET, **arguments)
    with pytest.raises(ValueError, match="in Ray one search runs at a time"):
        compare(lambda config: None, {"x": tune.uniform(0, 1)}, budget=4, workers=2)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("failure", [FloatingPointError, optuna.TrialPruned])
def test_a_trial_that_fails_before_it_says_its_cost_is_charged_as_the_dearest(
    failure: type[Exception], tmp_path: Path
) -> None:
    def sometimes(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        if x < 0 and trial.number > 2:
            raise failure
        report_gradient(trial, {"x": 2 * x}, cost=3)
        return x**2

    found = compare(sometimes, budget=60, methods=["random"], seeds=1, out=tmp_path, console=QUIET)
    assert [record.gradient_evaluations for record in found.study.records] == list(range(3, 61, 3))
    assert {record.status for record in found.study.records} > {"ok"}


def test_spaces_of_trainables_may_be_nested_and_mixed() -> None:
    nested = posing.pose(lambda config: None, {"net": {"x": tune.uniform(0, 1)}})
    assert isinstance(nested, TrainableTask)
    mixed = posing.pose(lambda config: None, {"y": tune.uniform(0, 1), "x": Float(0.0, 1.0)})
    assert isinstance(mixed, TrainableTask)
    assert all(isinstance(domain, Domain) for domain in mixed.param_space.values())
    for space, message in (([1], "space must be a dict of domains"), ({"x": 3}, "space must hold something to search")):
        with pytest.raises(ValueError, match=message):
            posing.pose(lambda config: None, space)  # type: ignore[arg-type]  # as a user may

    deep = posing.pose(lambda config: None, {"net": {"x": Float(0.0, 1.0), "n": 3}, "y": tune.uniform(0, 1)})
    assert isinstance(deep, TrainableTask)
    assert isinstance(deep.param_space["net"]["x"], Domain)
    assert deep.param_space["net"]["n"] == 3


SPACES = {
    "ray": {"opt": {"rate": tune.loguniform(1e-2, 1.0)}, "l2": {"first": tune.uniform(0.0, 1.0)}},
    "optuna": {
        "opt": {"rate": FloatDistribution(1e-2, 1.0, log=True)},
        "l2": {"first": FloatDistribution(0.0, 1.0)},
    },
    "ours": {"opt": {"rate": Float(1e-2, 1.0, log=True)}, "l2": {"first": Float(0.0, 1.0)}},
}


def nested_problem() -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda w, h, batch, key: jnp.sum((w - 1) ** 2) + h["l2"]["first"] * jnp.sum(w**2),
        valid_loss=lambda w, h: jnp.sum((w - 0.8) ** 2),
        batches=lambda step: None,
        optimizer=sgd("opt/rate", momentum=0.5),
        steps=2,
    )


@pytest.mark.parametrize("kind", list(SPACES))
def test_the_space_of_a_training_problem_is_translated_where_it_is_posed(kind: str) -> None:
    task = posing.pose(nested_problem(), SPACES[kind])
    assert isinstance(task, TrainingTask)
    assert task.space == {"opt/rate": Float(1e-2, 1.0, log=True), "l2/first": Float(0.0, 1.0)}
    assert obstacle(KNOWN["hypergrad"], task, "optuna", Budget(100)) is None
    assert "Hypernet cannot tune opt/rate" in str(obstacle(KNOWN["hypernet"], task, "optuna", Budget(100)))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"x": tune.quniform(0.0, 1.0, 0.1)}, r"space\['x'\]: a quantised domain has no gradient; leave q out"),
        ({"x": FloatDistribution(0.0, 1.0, step=0.1)}, r"mine: space\['x'\] cannot be .* a step has no gradient"),
        ({"x": 3}, r"space\['x'\] must be a Float, Int or Categorical, got 3"),
        ({"x": tune.grid_search([0.1, 0.2])}, r"space\['x'\]: grid_search cannot be searched; use tune.choice"),
    ],
)
def test_what_a_training_problem_cannot_search_is_named(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posing.pose(nested_problem(), space, name="mine")


def test_a_nested_space_of_domains_is_searched_in_optuna(tmp_path: Path) -> None:
    methods = ["hypergrad", "random"]
    found = compare(nested_problem(), SPACES["ray"], budget=20, methods=methods, seeds=1, out=tmp_path, console=QUIET)
    assert {record.method for record in found.study.records} == set(methods)
    assert {record.status for record in found.study.records} <= {"ok", "overfitted"}
    assert all(set(record.hyperparameters or ()) == {"opt/rate", "l2/first"} for record in found.study.records)


@pytest.mark.slow
def test_a_nested_space_of_distributions_is_searched_in_ray(tmp_path: Path) -> None:
    methods = ["hypergrad", "random"]
    found = compare(
        nested_problem(),
        SPACES["optuna"],
        budget=20,
        methods=methods,
        seeds=1,
        backend="ray",
        out=tmp_path,
        console=QUIET,
    )
    assert {record.method for record in found.study.records} == set(methods)
    assert {record.status for record in found.study.records} <= {"ok", "overfitted"}


def test_a_searcher_of_ours_in_ray_takes_paths_for_nested_names() -> None:
    searcher = KNOWN["hypergrad"].searcher
    assert searcher is not None
    space = {"opt/rate": Float(0.0, 1.0), "l2": Float(0.0, 1.0)}
    config = searcher(Setting(0, Budget(100), 2, 2), space).suggest("first")
    assert isinstance(config, dict)
    assert (config["opt"], config["l2"]) == ({"rate": 0.5}, 0.5)


def test_a_sampler_of_ours_is_one_of_ours() -> None:
    assert of_factory("mine", HypergradSampler).gradients
    assert not of_factory("mine", optuna.samplers.TPESampler).gradients


def test_long_budgets_are_written_in_full() -> None:
    for text in ("300h", "0.1s", "1234567.5s"):
        assert Budget.parse(Budget.parse(text).option) == Budget.parse(text)
    with pytest.raises(ValueError, match=r"a file is named with its ending, as in file\.py:name"):
        loading.load("./mine:make")
