"""Every sampler of Optuna works as the explorer, with all kinds of parameters, and on a grid that ends."""

import importlib.util
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from hypergrad_optuna import HypergradSampler, attributes, explorer, report_gradient, suggest_array, wants_gradient

GRID: dict[str, Any] = {"array": [-0.5, 0.5], "number": [0.1, 1.0], "whole": [1, 3], "kind": ["a", "b"]}
EXPLORERS: dict[str, Callable[[], BaseSampler]] = {
    "BruteForceSampler": lambda: BruteForceSampler(seed=0),
    "CmaEsSampler": lambda: CmaEsSampler(seed=0, n_startup_trials=4),
    "GPSampler": lambda: GPSampler(seed=0, n_startup_trials=4),
    "GridSampler": lambda: GridSampler(GRID, seed=0),
    "NSGAIIISampler": lambda: NSGAIIISampler(seed=0, population_size=5),
    "NSGAIISampler": lambda: NSGAIISampler(seed=0, population_size=5),
    "PartialFixedSampler": lambda: PartialFixedSampler({"number": 1.0, "whole": 2}, RandomSampler(seed=0)),
    "QMCSampler": lambda: QMCSampler(seed=0),
    "RandomSampler": lambda: RandomSampler(seed=0),
    "TPESampler": lambda: TPESampler(seed=0),
    "TPESampler, jointly": lambda: TPESampler(seed=0, multivariate=True, group=True, constant_liar=True),
}
NEEDS = {"CmaEsSampler": "cmaes", "GPSampler": "torch"}


def objective(trial: optuna.Trial) -> float:
    """Return a bowl in an array and a number, to which an integer and a categorical add."""
    array, number = suggest_array(trial, "array", (2, 2), -1, 1), trial.suggest_float("number", 1e-3, 10, log=True)
    whole, kind = trial.suggest_int("whole", 1, 4), trial.suggest_categorical("kind", ["a", "b"])
    value = float(np.sum((array - 0.3) ** 2)) + math.log(number) ** 2 + 0.1 * whole + (kind == "a")
    if wants_gradient(trial, value):
        report_gradient(trial, {"array": 2 * (array - 0.3), "number": 2 * math.log(number) / number})
    return value


def run(explorer: BaseSampler, trials: int) -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(explorer=explorer))
    study.optimize(objective, n_trials=trials)
    return study


def explored(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if attributes.wanted(t).parent is None]


def test_the_table_has_every_sampler() -> None:
    samplers = {name for name in optuna.samplers.__all__ if name.endswith("Sampler") and not name.startswith("Base")}
    assert samplers <= EXPLORERS.keys()


@pytest.mark.filterwarnings("ignore:.* is experimental")
@pytest.mark.filterwarnings("ignore:Argument .* is an experimental feature")
@pytest.mark.filterwarnings("ignore:HypergradSampler. BruteForceSampler cannot choose 'array'")
@pytest.mark.parametrize("name", EXPLORERS)
def test_every_sampler_explores(name: str) -> None:
    needed = NEEDS.get(name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{name} needs {needed}, which is not installed")
    study = run(EXPLORERS[name](), 50)
    steps = len(study.trials) - len(explored(study))
    assert steps > 5
    assert len(explored(study)) > 5
    best = study.best_params
    assert study.best_value - 0.1 * best["whole"] - (best["kind"] == "a") < 0.2, "the floats have been found"
    if name == "GridSampler":
        cells = [tuple(t.params[name] for name in GRID) for t in explored(study)]
        assert set(cells) == set(itertools.product(*GRID.values()))
        assert len(set(cells[:16])) == 16, "no cell is lost to a step"
    else:
        assert len(study.trials) == 50
    if name == "PartialFixedSampler":
        assert {(t.params["number"], t.params["whole"]) for t in study.trials} == {(1.0, 2)}


@pytest.mark.filterwarnings("ignore:.* is experimental")
def test_what_a_grid_lacks_is_drawn_at_random_and_said_once() -> None:
    with pytest.warns(
        UserWarning, match="GridSampler cannot choose 'array' .*, so this and other such parameters"
    ) as said:
        study = run(GridSampler({"whole": [1, 3], "kind": ["a", "b"]}, seed=0), 40)
    assert len(said) == 1
    assert len(study.trials) == 40, "the grid is done, but the floats go on"
    assert {t.params["whole"] for t in study.trials} == {1, 3}
    assert len({t.params["number"] for t in explored(study)}) == len(explored(study))


def test_a_grid_that_is_done_ends_the_study_once_no_chain_goes_on() -> None:
    study = run(GridSampler({"array": [-0.5, 0.5], "number": [0.1], "whole": [1], "kind": ["b"]}, seed=0), 1000)
    parents = [attributes.wanted(t).parent for t in study.trials]
    assert len(study.trials) < 1000
    assert len(study.trials) - parents.count(None) > 3
    assert study.best_value < 0.11, "the chain has reached the bottom"
    assert parents[-1] is None, "a trial that explores is the last"


@pytest.mark.filterwarnings("ignore:.* is experimental")
@pytest.mark.parametrize("name", ["GridSampler", "BruteForceSampler"])
def test_without_gradients_a_finite_explorer_ends_the_study_as_it_would_alone(name: str) -> None:
    grid: dict[str, Any] = {"a": [1, 2, 3], "b": ["u", "v"]}
    explorer = GridSampler(grid, seed=0) if name == "GridSampler" else BruteForceSampler(seed=0)

    def silent(trial: optuna.Trial) -> float:
        return trial.suggest_int("a", 1, 3) + (trial.suggest_categorical("b", ["u", "v"]) == "u")

    study = optuna.create_study(sampler=HypergradSampler(explorer=explorer))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HypergradSampler: the objective reported no gradient")
        study.optimize(silent, n_trials=50)
    assert len(study.trials) == 6
    assert len({tuple(t.params.values()) for t in study.trials}) == 6


def test_asking_and_telling_has_no_loop_to_end() -> None:
    study = optuna.create_study(sampler=HypergradSampler(explorer=GridSampler({"x": [0.2, 0.4]}, seed=0)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HypergradSampler: the objective reported no gradient")
        for _ in range(5):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))
    assert len(study.trials) == 5


no_gradients = pytest.mark.filterwarnings("ignore:.*reported no gradient")


@no_gradients
def test_the_default_explorer_sees_the_best_and_the_newest_of_a_long_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "BEST", 3)
    monkeypatch.setattr(explorer, "NEWEST", 5)
    seen: list[list[int]] = []

    def sample_relative(self: TPESampler, study: optuna.Study, trial: FrozenTrial, space: dict[str, Any]) -> Any:
        seen.append([t.number for t in study._get_trials(deepcopy=False)])
        return {}

    monkeypatch.setattr(TPESampler, "sample_relative", sample_relative)
    values = [5.0, 0.0, 3.0, 1.0, 9.0, 2.0, 7.0, 8.0, 6.0, 4.0, 9.5, 9.6]
    for maximise, best in ((False, [1, 3, 5]), (True, [4, 10, 11])):
        seen.clear()
        study = optuna.create_study(sampler=HypergradSampler(), direction="maximize" if maximise else "minimize")
        for value in values:
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, value)
        study.tell(study.ask({"x": FloatDistribution(0, 1)}), 5.5)
        assert seen[-1] == sorted({*best, 7, 8, 9, 10, 11})


@no_gradients
def test_an_explorer_of_the_users_own_sees_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "NEWEST", 2)
    seen: list[int] = []

    class Counting(RandomSampler):
        def sample_relative(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, Any]) -> Any:
            seen.append(len(study._get_trials(deepcopy=False)))
            return {}

    study = optuna.create_study(sampler=HypergradSampler(explorer=Counting()))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6)
    assert seen[-1] == 6
