"""Trials that know no study: finished ones, and those of fixed hyperparameters, give their values to the bit."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FixedTrial

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    attributes,
    best_hyperparameters,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)
from hypergrad_search import Categorical, Float, Hypernet, Int, Space, TrainingProblem, Unrolled, sgd
from hypergrad_search.hypergradient import Linear

X = np.float32(np.random.default_rng(0).normal(size=(12, 3)))
SPACE: Space = {
    "rate": Float(0.01, 0.3, log=True, lift=(5,)),
    "penalty": Float(1e-3, 1.0, log=True, shape=(3,)),
    "width": Int(1, 2),
    "kind": Categorical(["plain", None]),
}


def problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: 0.1 * jax.random.normal(key, (3,)),
        "train_loss": lambda p, h, batch, key: jnp.mean((X @ p - 1) ** 2) + jnp.sum(h["penalty"] * p**2),
        "valid_loss": lambda p, h: (X @ p - 1) ** 2 + h.get("width", 1),
        "batches": lambda step: None,
        "optimizer": sgd("rate", 0.5),
        "steps": 5,
    }
    return TrainingProblem(**{**parts, **changes})


PROBLEM = problem()


@pytest.mark.parametrize("method", [{}, {"method": Unrolled()}], ids=["default", "unrolled"])
@pytest.mark.parametrize("sampler", [HypergradSampler(seed=0), RandomSampler(seed=0)], ids=lambda s: type(s).__name__)
def test_finished_trials_give_their_values_again_and_stay_as_they_are(
    sampler: BaseSampler, method: dict[str, Any]
) -> None:
    objective = Objective(PROBLEM, SPACE, reseed=True, **method)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=14)
    before = copy.deepcopy(study.trials)
    assert [objective(trial) for trial in study.get_trials(deepcopy=False)] == [trial.value for trial in before]
    assert study.trials == before
    bare = study.best_trial
    bare.user_attrs = {key: kept for key, kept in bare.user_attrs.items() if key not in attributes.REPORTED}
    assert objective(bare) == study.best_value
    assert attributes.STATUS not in bare.user_attrs
    if isinstance(sampler, HypergradSampler):
        assert any(attributes.wanted(trial).parent for trial in before)


@pytest.mark.parametrize("sampler", [HypergradSampler(seed=0), RandomSampler(seed=0)], ids=lambda s: type(s).__name__)
def test_hyperparameters_give_their_value_again(sampler: BaseSampler) -> None:
    objective = Objective(PROBLEM, SPACE, reseed=True)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=14)
    for trial in study.trials:
        fixed = FixedTrial(hyperparameters_of(trial), number=trial.number)
        assert objective(fixed) == trial.value
        assert fixed.user_attrs[attributes.STATUS] == "ok"
        assert attributes.GRADIENT not in fixed.user_attrs


def test_an_array_may_be_fixed_whole_by_elements_or_by_its_level() -> None:
    objective = Objective(PROBLEM, SPACE)
    others = {"rate": 0.1, "width": 1, "kind": None}
    whole = objective(FixedTrial({**others, "penalty": [0.1, 0.1, 0.1]}))
    assert whole == objective(FixedTrial({**others, "penalty": 0.1}))
    assert whole == objective(FixedTrial({**others, **{f"penalty[{i}]": 0.1 for i in range(3)}}))
    assert whole != objective(FixedTrial({**others, "penalty": np.array([0.1, 0.1, 0.2])}))
    for wrong in ([0.1, 0.1], [0.1, 0.1, np.inf], np.nan):
        with pytest.raises(ValueError, match=r"'penalty' must be a number, or an array of shape \(3,\), got"):
            objective(FixedTrial({**others, "penalty": wrong}))
    with pytest.warns(UserWarning, match=r"'penalty' is out of range, from 0.1 to 7 where 0.001 to 1.0 is allowed"):
        objective(FixedTrial({**others, "penalty": [0.1, 0.1, 7.0]}))
    with pytest.raises(ValueError, match="FixedTrial has no 'penalty'; give an array of shape"):
        objective(FixedTrial(others))


def test_a_joint_method_s_trials_give_their_values_again() -> None:
    training = problem(optimizer=sgd(0.1, 0.5), valid_loss=lambda p, h: jnp.mean((X @ p - 1) ** 2), steps=40)
    space = {"penalty": SPACE["penalty"]}
    objective = Objective(training, space, method=Hypernet(network=Linear(), finetune=3))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=7)
    assert any(attributes.wanted(trial).parent for trial in study.trials)
    assert [objective(trial) for trial in study.trials] == [trial.value for trial in study.trials]


def test_arrays_in_artifacts_need_their_store(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    study = optuna.create_study(sampler=HypergradSampler(seed=0, artifact_store=store))
    study.optimize(Objective(PROBLEM, SPACE), n_trials=12)
    step = next(trial for trial in study.trials if attributes.wanted(trial).parent)
    with pytest.raises(
        ValueError, match=f"trial {step.number} has .* as an artifact; give Objective the artifact_store"
    ):
        Objective(PROBLEM, SPACE)(step)
    assert Objective(PROBLEM, SPACE, artifact_store=store)(step) == step.value
    assert Objective(PROBLEM, SPACE)(FixedTrial(hyperparameters_of(step, artifact_store=store))) == step.value


def test_objectives_of_the_user_s_own_take_them_too() -> None:
    def objective(trial: Any) -> float:
        array, number = suggest_array(trial, "array", (2, 2), -1, 1), trial.suggest_float("number", 0, 1)
        value = float(np.sum((array - 0.3) ** 2) + number)
        asked.append(wants_gradient(trial, value))
        report_gradient(trial, {"array": 2 * (array - 0.3), "number": 1.0}, cost=3)
        return value

    asked: list[bool] = []
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=12)
    assert any(asked)
    asked.clear()
    best = study.best_trial
    assert objective(best) == study.best_value
    assert best == study.best_trial
    fixed = FixedTrial(best_hyperparameters(study))
    assert objective(fixed) == study.best_value
    assert fixed.user_attrs[attributes.COST] == 3
    assert set(fixed.user_attrs[attributes.GRADIENT]) == {"array", "number"}
    assert asked == [False, False]
    with pytest.raises(ValueError, match="'other' is no parameter of this trial"):
        report_gradient(best, {"other": 1.0})
    with pytest.raises(ValueError, match=r"has no array 'array' of shape \(3,\)"):
        suggest_array(best, "array", 3, -1, 1)
