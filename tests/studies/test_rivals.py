"""The registry of methods says what each of them gets, and why one cannot run on a problem."""

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from rich.console import Console

from hypergrad_optuna import HypergradSampler, Objective, attributes, best_hyperparameters
from hypergrad_search import Cost, Evaluation, Float, Method, TrainingProblem, evaluate
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.hypergradient import Request
from hypergrad_search.search import ExploreDescend, QuasiNewton
from hypergrad_search.space import centre, floats
from hypergrad_studies import cli as command
from hypergrad_studies import comparison, jobs, obstacles, optuna_backend
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import PRUNED, Record
from hypergrad_studies.rivals import BY_METHOD, EXTRAS, KNOWN, RIVALS, TRIED, Rival, Setting, by_gradients
from hypergrad_studies.spending import Budget
from hypergrad_studies.tasks import Task

BUDGET = Budget(5000)
SETTING = Setting(seed=0, dimensions=10, steps=100, budget=BUDGET)
OPTUNA = {name: rival for name, rival in KNOWN.items() if rival.sampler}


def run(
    problem: str, rival: str | Rival, seed: int, budget: int, on_record: Callable[[Record], None]
) -> tuple[float, ...]:
    """Make a run of a rival in Optuna."""
    which = OPTUNA[rival] if isinstance(rival, str) else rival
    return optuna_backend.run(PROBLEMS[problem](), which, seed, Budget(budget), on_record)


def obstacle(rival: str | Rival, problem: str, backend: str = "optuna") -> str | None:
    which = KNOWN[rival] if isinstance(rival, str) else rival
    return obstacles.obstacle(which, PROBLEMS[problem](), backend, BUDGET)


def spent(record: Record) -> float:
    assert record.gradient_evaluations is not None
    return record.gradient_evaluations


def posed(problem: str) -> tuple[Any, Any]:
    return PROBLEMS[problem]().posed()


def sampler_of(name: str, setting: Setting = SETTING) -> BaseSampler:
    make = OPTUNA[name].sampler
    assert make is not None
    return make(setting)


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in EXTRAS else find(name, *rest))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[str]]]:
    """Return the methods for each problem that `hypergrad compare` would run."""
    seen: list[dict[str, list[str]]] = []

    def compare(out: Path, rivals: Mapping[Task, Sequence[Rival]], **_: object) -> None:
        seen.append({task.name: [rival.name for rival in of_task] for task, of_task in rivals.items()})

    monkeypatch.setattr(command, "run_comparison", compare)
    monkeypatch.setattr(command, "_show", lambda out, console: None)
    return seen


def refusal(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that `hypergrad compare` ends with."""
    monkeypatch.setattr(sys, "argv", ["hypergrad", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_budgets_and_lifts() -> None:
    assert {name for name, rival in KNOWN.items() if rival.lifts and name not in BY_METHOD} == {"hypergrad"}
    for name, rival in KNOWN.items():
        assert rival.name == name
        assert rival.budget_factor == (2 if name.endswith("-2x") else 1)
        assert rival.gradients == (name.startswith(("hypergrad", "hypernet")) or name in TRIED)


TIED = {"random-tied", "tpe-tied", "cmaes-tied", "tpe-tied-centre"}
CENTRE = {"random-centre", "tpe-centre", "tpe-tied-centre", "gp-centre"}
UNTUNED = {"prodigy", "dog", "dowg", "schedule-free", "schedule-free-sgd"}
NEEDY = {name for name, m in OPTUNA.items() if m.needs}


def test_rivals_are_what_they_are_called() -> None:
    assert {name for name, m in OPTUNA.items() if m.tied} == TIED
    assert {name for name, m in OPTUNA.items() if m.centre and name not in TRIED} == CENTRE | UNTUNED
    assert {name for name, m in OPTUNA.items() if m.optimizer} == UNTUNED
    for name in TIED | CENTRE:
        assert OPTUNA[name].sampler is OPTUNA[name.split("-")[0]].sampler
    tpe = sampler_of("tpe")
    assert isinstance(tpe, TPESampler)
    assert tpe._is_multivariate(optuna.create_study())
    assert isinstance(sampler_of("gp"), GPSampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "random,gp"], "gp needs torch: pip install 'hypergrad-search[gp]'"),
        (["--methods", "random,smac"], "smac needs smac: pip install 'hypergrad-search[rivals]'"),
        (
            ["--problem", "digits-l2", "--methods", "random,hypergrad-unlifted"],
            "hypergrad-unlifted finds nothing to leave unlifted in digits-l2; leave out one of them",
        ),
        (["--problem", "digits-noisy", "--backend", "ray"], "a new seed each trial; choose --backend optuna"),
        (
            ["--problem", "digits-mlp", "--methods", "tpe,tpe-tied"],
            "tied methods find no array in digits-mlp; leave out one of them",
        ),
        (
            ["--problem", "digits-rates", "--methods", "tpe-tied,cmaes-tied"],
            "cmaes-tied needs at least 2 numbers, and digits-rates has fewer; leave out one of them",
        ),
        (
            ["--problem", "synthetic-steps", "--methods", "random,prodigy"],
            "prodigy needs more than one training step, and synthetic-steps has no more; leave out one of them",
        ),
        (
            ["--problem", "cancer-mlp", "--methods", "random,hypernet"],
            "on cancer-mlp, Hypernet cannot tune learning_rate_1, learning_rate_2, init_scale_1, init_scale_2,",
        ),
        (
            ["--problem", "digits-mlp", "--methods", "hypergrad:implicit"],
            "on digits-mlp, Implicit cannot tune learning_rate_1,",
        ),
        (
            ["--problem", "digits-mlp", "--methods", "hypergrad:one-pass"],
            "on digits-mlp, OnePass cannot tune init_scale_1,",
        ),
    ],
)
@pytest.mark.usefixtures("no_extras", "compared")
def test_what_cannot_run_gets_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal([*arguments, "--out", "nowhere"], monkeypatch, capsys)


def test_by_default_what_cannot_run_is_left_out(no_extras: None, compared: list[dict[str, list[str]]]) -> None:
    done = CliRunner().invoke(command.cli, ["compare", "--problem", "digits-mlp,digits-l2", "--out", "nowhere"])
    assert done.exit_code == 0, done.output
    (rivals,) = compared
    assert rivals["digits-mlp"] == [
        name for name in OPTUNA if name in RIVALS and name not in NEEDY | TIED and "hypernet" not in name
    ]
    assert rivals["digits-l2"] == [
        name for name in OPTUNA if name in RIVALS and name not in NEEDY | {"hypergrad-unlifted"}
    ]
    assert "left out: gp needs torch: pip install 'hypergrad-search[gp]'" in done.output
    assert done.output.count("left out: on digits-mlp, Hypernet cannot tune") == 1
    assert "left out: hypergrad-unlifted finds nothing to leave unlifted in digits-l2" in done.output
    assert done.output.count("left out: tied methods find no array in digits-mlp") == 1


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", sorted(NEEDY))
def test_rivals_of_extras_need_one_package_alone(name: str, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert (obstacle(name, "synthetic-quadratic") is None) == installed


@pytest.mark.parametrize("problem", PROBLEMS)
def test_tied_methods_are_offered_where_there_is_an_array(problem: str) -> None:
    _, space = posed(problem)
    has_array = any(parameter.shape for parameter in floats(space).values())
    assert has_array == (problem in ("digits-l2", "digits-rates", "digits-schedules", "digits-labels", "data-cleaning"))
    for name in ("random-tied", "tpe-tied", "tpe-tied-centre"):
        assert (obstacle(name, problem) is None) == has_array


@pytest.mark.parametrize("name", sorted(TIED))
def test_tied_methods_search_one_number_an_array_and_train_with_it_everywhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, float], dict[str, np.ndarray]]] = []
    dimensions: list[int | None] = []

    def evaluate(self: Objective, trial: optuna.Trial, hyperparameters: dict[str, np.ndarray]) -> float:
        seen.append((trial.params, hyperparameters))
        return float(len(seen))

    def sampler(setting: Setting) -> BaseSampler:
        dimensions.append(setting.dimensions)
        return sampler_of(name, setting)

    monkeypatch.setattr(Objective, "evaluate", evaluate)
    records: list[Record] = []
    run("digits-l2", replace(OPTUNA[name], sampler=sampler), 0, 50 * 12, records.append)
    assert dimensions == [2]
    assert len(records) == len(seen) == 12
    _, space = posed("digits-l2")
    for numbers, arrays in seen:
        assert numbers.keys() == arrays.keys() == space.keys()
        for parameter, array in arrays.items():
            assert array.shape == floats(space)[parameter].shape
            assert (array == numbers[parameter]).all()


def test_a_tied_method_has_the_loss_of_the_array() -> None:
    seen: list[Record] = []
    run("digits-l2", "tpe-tied", 0, 50, seen.append)
    problem, space = posed("digits-l2")
    study = optuna.create_study(sampler=TPESampler(seed=0))
    numbers = Objective(problem, {n: replace(p, shape=()) for n, p in floats(space).items()}).suggest(study.ask())
    arrays = {n: np.full(p.shape, numbers[n]) for n, p in floats(space).items()}
    trained = evaluate(problem, arrays, key=jax.random.key(0), gradient_below=-math.inf)
    assert [(r.value, r.test_value, r.gradient_evaluations) for r in seen] == [(trained.value, trained.test_loss, 50)]


def test_methods_that_use_gradients_are_for_both_hosts() -> None:
    for rival in RIVALS.values():
        if rival.gradients:
            assert isinstance(sampler_of(rival.name), HypergradSampler)
            assert (rival.searcher is None) == rival.retrains
            assert rival.own_space


class Caught(Exception):
    """Ends a run when a test has seen enough."""


class Halving(Method):
    """A toy way to a value and a gradient: those of the default method, for a training run that costs 1."""

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Mapping[str, Any], key: jax.Array, request: Request
    ) -> Evaluation:
        found = DEFAULT_METHOD.evaluate(problem, hyperparameters, key, request)
        return replace(found, value=found.value / 2, cost=Cost(1.0, 0.0))


def test_a_new_method_is_one_rival() -> None:
    toy = by_gradients("toy", how=Halving())
    assert obstacle(toy, "synthetic-quadratic") is None
    plain: list[Record] = []
    seen: list[Record] = []
    run("synthetic-quadratic", "hypergrad", 0, 1, plain.append)
    run("synthetic-quadratic", toy, 0, 5, seen.append)
    assert [record.gradient_evaluations for record in seen] == [1, 2, 3, 4, 5]
    assert seen[0].value == plain[0].value / 2


def test_other_settings_of_the_strategy_are_one_rival() -> None:
    toy = by_gradients("toy", strategy=ExploreDescend(step=QuasiNewton()))
    landed: list[Record] = []
    seen: list[Record] = []
    run("synthetic-quadratic", "hypergrad", 0, 60, landed.append)
    run("synthetic-quadratic", toy, 0, 60, seen.append)
    assert seen[0].value == landed[0].value  # at the centre
    assert [r.value for r in seen] != [r.value for r in landed]
    assert min(r.value for r in seen[1:4]) < seen[0].value


@pytest.mark.parametrize(
    "name", [n for n in OPTUNA if n not in NEEDY | TIED | UNTUNED | BY_METHOD.keys() and "hypernet" not in n]
)
def test_every_method_searches_a_synthetic_problem(name: str) -> None:
    problem = "synthetic-quadratic"  # it has no lifts, but only the command line refuses that
    seen: list[Record] = []
    run(problem, name, 0, 20, seen.append)
    assert spent(seen[-1]) >= 20
    assert all(math.isfinite(record.value) for record in seen)


@pytest.mark.parametrize(("name", "budget"), [("tpe-tied", 200), ("hypergrad", 210), ("hypergrad", 900)])
def test_what_was_found_is_trained_with_keys_that_no_trial_had(name: str, budget: int) -> None:
    """It is what was found within the budget: with 210, only the first trial of 200 counts."""
    seen: list[Record] = []
    fresh = run("digits-l2", name, 3, budget, seen.append)
    sound = [r for r in seen if r.sound and spent(r) <= budget]
    best = min(sound, key=lambda r: r.value)
    assert best.trial == 0 or budget != 210
    assert spent(seen[-1]) > budget or name == "tpe-tied"
    problem, space = posed("digits-l2")
    asked: list[dict[str, Any]] = []

    class Asking(Objective):
        def evaluate(self, trial: Any, hyperparameters: dict[str, Any]) -> float:
            asked.append(hyperparameters)
            return super().evaluate(trial, hyperparameters)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(optuna_backend, "Objective", Asking)
        assert run("digits-l2", name, 3, budget, lambda record: None) == fresh
    keys = [jax.random.fold_in(jax.random.key(3), 2**31 + i) for i in range(5)]
    wanted = [evaluate(problem, asked[best.trial], key=key, gradient_below=-math.inf, space=space) for key in keys]
    assert fresh == tuple(evaluation.test_loss for evaluation in wanted)
    assert len(set(fresh)) == 5
    assert best.test_value not in fresh


#: A problem for each way to the gradient that can tune all of it.
TUNED = dict.fromkeys(BY_METHOD, "digits-l2") | {
    "hypergrad:forward": "cancer-mlp",
    "hypergrad:one-pass": "digits-rates",
    "hypergrad:persistent": "cancer-mlp",
    "hypergrad:real-time": "digits-rates",
    "hypergrad:smoothed": "cancer-mlp",
}
#: Two trials and more; a tangent for each of 100 rates takes 200 training runs.
BUDGETS = dict.fromkeys(BY_METHOD, 6000) | {"hypergrad:real-time": 30_000}


SHORT = ("hypergrad:implicit", "hypergrad:persistent")


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in BY_METHOD])
def test_our_search_runs_by_each_way_to_the_gradient(name: str) -> None:
    assert obstacle(name, TUNED[name]) is None
    seen: list[Record] = []
    run(TUNED[name], name, 0, BUDGETS[name], seen.append)
    assert {record.status for record in seen} <= {"ok", "overfitted"}
    assert min(record.value for record in seen) < 0.97 * seen[0].value


def test_a_hypernet_has_no_losses_of_fresh_keys() -> None:
    assert run("digits-l2", "hypernet", 0, 400, lambda record: None) == ()


def test_a_hypernet_is_recorded_with_its_own_weights_and_retrained() -> None:
    own: list[Record] = []
    retrained: list[Record] = []
    run("digits-l2", "hypernet", 0, 800, own.append)
    run("digits-l2", "hypernet-retrained", 0, 1000, retrained.append)
    assert [r.gradient_evaluations for r in own] == [200, 400, 600, 800]
    assert [r.gradient_evaluations for r in retrained] == [250, 500, 750, 1000]
    problem, space = posed("digits-l2")
    study = optuna.create_study(sampler=sampler_of("hypernet"))
    study.optimize(Objective(problem, space, method=OPTUNA["hypernet"].how, key=jax.random.key(0)), n_trials=1)
    assert own[0].value == study.best_value
    trained = evaluate(problem, best_hyperparameters(study), key=jax.random.key(0), gradient_below=-math.inf)
    assert retrained[0].value == trained.value != own[0].value
    assert {(r.status, type(r.status)) for r in (*own, *retrained)} == {("ok", str)}
    assert retrained[0].test_value == trained.test_loss


@pytest.mark.parametrize("name", sorted(NEEDY))
def test_rivals_of_extras_search_too(name: str) -> None:
    needs = OPTUNA[name].needs
    assert needs is not None
    pytest.importorskip(needs)
    seen: list[Record] = []
    run("synthetic-quadratic", name, 0, 13, seen.append)
    assert len(seen) == 13


@pytest.mark.parametrize("problem", ["digits-l2", "digits-mixed"])
@pytest.mark.parametrize("name", ["random", "random-centre", "tpe-tied-centre"])
def test_the_centre_comes_first(name: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def evaluate(self: Objective, trial: optuna.Trial, hyperparameters: dict[str, Any]) -> float:
        seen.append(hyperparameters)
        return 1.0

    monkeypatch.setattr(Objective, "evaluate", evaluate)
    run(problem, name, 0, 200, lambda record: None)
    middle = centre(posed(problem)[1])
    at_centre = [
        all(
            np.allclose(values[n], middle[n]) if n in floats(posed(problem)[1]) else values[n] == middle[n]
            for n in middle
        )
        for values in seen
    ]
    assert at_centre == [name != "random", *[False] * (len(seen) - 1)]
    assert len(seen) > 1


@pytest.mark.parametrize("name", sorted(UNTUNED))
@pytest.mark.parametrize("problem", ["digits-l2", pytest.param("digits-mixed", marks=pytest.mark.slow)])
def test_untuned_optimizers_train_once(name: str, problem: str) -> None:
    seen: list[Record] = []
    run(problem, name, 0, 1000, seen.append)
    (record,) = seen
    assert (record.status, record.error) == ("ok", None)
    assert record.gradient_evaluations == posed(problem)[0].steps


@pytest.mark.slow
def test_hyperband_pays_for_the_steps_that_it_trained() -> None:
    seen: list[Record] = []
    run("digits-mlp", "hyperband", 0, 1500, seen.append)
    spent = np.diff([0, *(record.gradient_evaluations for record in seen)])
    for record, cost in zip(seen, spent, strict=True):
        assert cost in (3, 9, 27, 81) if record.status == PRUNED else cost == 100
    assert {3, 100} <= set(spent)


@pytest.mark.parametrize(("name", "lifts"), [("hypergrad-unlifted", False), ("hypergrad", True)])
def test_the_lifted_method_alone_gets_lifts_and_holds_back_a_fold(
    name: str, lifts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def catch(self: Objective, trial: optuna.Trial, hyperparameters: object) -> None:
        momentum = self.hosted.space["momentum"]
        assert isinstance(momentum, Float)
        assert bool(momentum.lift) == lifts
        assert (attributes.wanted(trial).held_back(self.hosted.space) is not None) == lifts
        raise Caught

    monkeypatch.setattr(Objective, "evaluate", catch)
    with pytest.raises(Caught):
        run("digits-mlp", name, 0, 10, lambda record: None)


@pytest.mark.parametrize(("problem", "noisy"), [("digits-mlp", False), ("digits-noisy", True)])
def test_trials_of_noisy_problems_have_seeds_of_their_own(
    problem: str, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def catch(self: Objective, *_: object) -> None:
        assert self.reseed == noisy
        raise Caught

    monkeypatch.setattr(Objective, "evaluate", catch)
    with pytest.raises(Caught):
        run(problem, "random", 0, 10, lambda record: None)


def test_a_problem_is_warmed_up_once_for_each_method_that_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Unhashable(Halving):
        settings: dict[str, int]

    toy = by_gradients("toy", how=Unhashable({"weights": 20}))
    warmed: list[tuple[str, Method, bool | None]] = []
    monkeypatch.setattr(jobs, "warm_up", lambda task, rival, how: warmed.append((task.name, how, rival.lifts)))
    rivals: dict[Task, list[Rival]] = {
        PROBLEMS["synthetic-quadratic"](): [RIVALS["random"], toy, RIVALS["hypergrad-unlifted"]]
    }
    quiet = Console(quiet=True)
    comparison.run(tmp_path, rivals, budget=Budget(1), seeds=range(2), backend="optuna", console=quiet)
    assert warmed == [
        ("synthetic-quadratic", DEFAULT_METHOD, None),
        ("synthetic-quadratic", toy.how, None),
        ("synthetic-quadratic", DEFAULT_METHOD, False),
    ]
