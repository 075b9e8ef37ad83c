"""The registry of methods: what each gets, and which one cannot run where."""

import importlib.util
import math
import sys
from collections.abc import Sequence

import jax
import optuna
import pytest
from click.testing import CliRunner
from optuna.samplers import GPSampler, TPESampler

from hypergrad_optuna import Objective, best_refined
from hypergrad_search import TrainingProblem, evaluate
from hypergrad_studies import cli as command
from hypergrad_studies import optuna_backend
from hypergrad_studies.methods import BACKENDS, OPTUNA, RAY, method, obstacle
from hypergrad_studies.problems import posed
from hypergrad_studies.records import Record


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[str]]]:
    """What `hypergrad compare` would run: methods by problem."""
    seen: list[dict[str, list[str]]] = []
    monkeypatch.setattr(command, "run_comparison", lambda out, rivals, **_: seen.append(rivals))
    monkeypatch.setattr(command, "_show", lambda out, console: None)
    return seen


def refusal(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that `hypergrad compare` ends with."""
    monkeypatch.setattr(sys, "argv", ["hypergrad", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_budgets_and_lifts() -> None:
    assert {name for backend in (OPTUNA, RAY) for name, m in backend.items() if m.lifts} == {"hypergrad-lifted"}
    for backend, names in BACKENDS.items():
        for name in names:
            assert method(backend, name).budget_factor == (2 if name.endswith("-2x") else 1)


def test_rivals_are_what_they_are_called() -> None:
    tpe = OPTUNA["tpe"].sampler(0, 10)
    assert isinstance(tpe, TPESampler)
    assert tpe._is_multivariate(optuna.create_study())
    assert isinstance(OPTUNA["gp"].sampler(0, 10), GPSampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "random,gp"], "gp needs torch: pip install 'hypergrad-search[gp]'"),
        (
            ["--problem", "digits-l2", "--methods", "random,hypergrad-lifted"],
            "hypergrad-lifted finds nothing to lift in digits-l2; leave out one of them",
        ),
        (["--problem", "digits-noisy", "--backend", "ray"], "a new seed each trial; choose --backend optuna"),
        (
            ["--problem", "cancer-mlp", "--methods", "random,hypernet"],
            "on cancer-mlp, Hypernet cannot tune learning_rate_1, learning_rate_2, init_scale_1, init_scale_2,",
        ),
    ],
)
@pytest.mark.usefixtures("no_torch", "compared")
def test_what_cannot_run_gets_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal([*arguments, "--out", "nowhere"], monkeypatch, capsys)


def test_by_default_what_cannot_run_is_left_out(no_torch: None, compared: list[dict[str, list[str]]]) -> None:
    done = CliRunner().invoke(command.cli, ["compare", "--problem", "digits-mlp,digits-l2", "--out", "nowhere"])
    assert done.exit_code == 0, done.output
    (rivals,) = compared
    assert rivals["digits-mlp"] == [name for name in OPTUNA if name != "gp" and "hypernet" not in name]
    assert rivals["digits-l2"] == [name for name in OPTUNA if name not in ("gp", "hypergrad-lifted")]
    assert "left out: gp needs torch: pip install 'hypergrad-search[gp]'" in done.output
    assert done.output.count("left out: on digits-mlp, Hypernet cannot tune") == 1
    assert "left out: hypergrad-lifted finds nothing to lift in digits-l2" in done.output


@pytest.mark.parametrize("installed", [True, False])
def test_gp_needs_torch_alone(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert (obstacle("optuna", "gp", "synthetic-quadratic") is None) == installed


@pytest.mark.parametrize("name", [name for name in OPTUNA if name != "gp" and "hypernet" not in name])
def test_every_method_searches_a_synthetic_problem(name: str) -> None:
    problem = "synthetic-quadratic"  # no lifts there, which the backend leaves to the command line to refuse
    seen: list[Record] = []
    optuna_backend.run(problem, name, 0, 20, seen.append)
    assert seen[-1].gradient_evaluations >= 20
    assert all(math.isfinite(record.value) for record in seen)


def test_a_hypernet_is_recorded_with_its_own_weights_and_retrained() -> None:
    own: list[Record] = []
    retrained: list[Record] = []
    optuna_backend.run("digits-l2", "hypernet", 0, 800, own.append)
    optuna_backend.run("digits-l2", "hypernet-retrained", 0, 1000, retrained.append)
    assert [r.gradient_evaluations for r in own] == [200, 400, 600, 800]
    assert [r.gradient_evaluations for r in retrained] == [250, 500, 750, 1000]
    problem, space = posed("digits-l2")
    study = optuna.create_study(sampler=OPTUNA["hypernet"].sampler(0, 650))
    study.optimize(Objective(problem, space, method=OPTUNA["hypernet"].how, key=jax.random.key(0)), n_trials=1)
    assert own[0].value == study.best_value
    trained = evaluate(problem, best_refined(study).hyperparameters, key=jax.random.key(0), gradient_below=-math.inf)
    assert retrained[0].value == trained.value != own[0].value
    assert {(r.status, type(r.status)) for r in (*own, *retrained)} == {("ok", str)}
    assert retrained[0].test_value == trained.diagnostics["test_loss"]


def test_gp_searches_too() -> None:
    pytest.importorskip("torch")
    seen: list[Record] = []
    optuna_backend.run("synthetic-quadratic", "gp", 0, 13, seen.append)
    assert len(seen) == 13


@pytest.mark.parametrize(("name", "lifts"), [("hypergrad", False), ("hypergrad-lifted", True)])
def test_the_lifted_method_alone_gets_lifts_and_a_fitted_loss(
    name: str, lifts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Caught(Exception):
        pass

    def catch(problem: TrainingProblem, space: dict, **_: object) -> None:
        assert (problem.fitted_loss is not None) == lifts
        assert (space["momentum"].lift is not None) == lifts
        raise Caught

    monkeypatch.setattr(optuna_backend, "Objective", catch)
    with pytest.raises(Caught):
        optuna_backend.run("digits-mlp", name, 0, 10, lambda record: None)


@pytest.mark.parametrize(("problem", "noisy"), [("digits-mlp", False), ("digits-noisy", True)])
def test_trials_of_noisy_problems_have_seeds_of_their_own(
    problem: str, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Caught(Exception):
        pass

    def catch(*_: object, reseed: bool, **__: object) -> None:
        assert reseed == noisy
        raise Caught

    monkeypatch.setattr(optuna_backend, "Objective", catch)
    with pytest.raises(Caught):
        optuna_backend.run(problem, "random", 0, 10, lambda record: None)
