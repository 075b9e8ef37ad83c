"""Spaces of Optuna's own distributions, and nested ones, in real studies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    best_hyperparameters,
    best_model,
    check_gradient,
    hyperparameters_of,
    optimize_batched,
)
from hypergrad_search import Categorical, Float, Int, TrainingProblem, evaluate, sgd
from hypergrad_search.space import NestedSpace

NESTED = {
    "opt": {"rate": FloatDistribution(1e-3, 0.3, log=True), "steps": IntDistribution(5, 8)},
    "model": {"kind": CategoricalDistribution(["plain", None]), "target": Float(-1.0, 1.0, shape=(2,))},
    "l2": Float(0.0, 1.0),
}


def problem() -> TrainingProblem:
    def train_loss(params: Any, h: Any, batch: Any, key: Any) -> Any:
        scale = 2.0 if h["model"]["kind"] is None else 1.0
        return scale * jnp.sum((params - h["model"]["target"]) ** 2) + h["l2"] * jnp.sum(params**2)

    return TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.sum((p - 0.25) ** 2),
        batches=lambda step: None,
        optimizer=sgd("opt/rate", 0.5),
        steps="opt/steps",
    )


def study_of(objective: Objective, n_trials: int, sampler: Any = None) -> optuna.Study:
    study = optuna.create_study(sampler=sampler or HypergradSampler(seed=0))
    study.optimize(objective, n_trials=n_trials)
    return study


def test_optunas_distributions_are_taken_for_ours() -> None:
    distributions = {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "decay": FloatDistribution(0.0, 0.5),
        "layers": IntDistribution(1, 3),
        "width": IntDistribution(1, 64, log=True),
        "act": CategoricalDistribution(["relu", "tanh"]),
    }
    ours = {
        "rate": Float(1e-3, 1.0, log=True),
        "decay": Float(0.0, 0.5),
        "layers": Int(1, 3),
        "width": Int(1, 64, log=True),
        "act": Categorical(["relu", "tanh"]),
    }
    plain = TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["decay"]) ** 2) * h["layers"] / h["width"],
        valid_loss=lambda p, h: jnp.sum((p - (0.2 if h["act"] == "relu" else 0.1)) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=5,
    )
    found, expected = (study_of(Objective(plain, space), 6) for space in (distributions, ours))
    assert [t.params for t in found.trials] == [t.params for t in expected.trials]
    assert found.trials[0].distributions == distributions
    assert found.trials[0].user_attrs["hypergrad:gradient"].keys() == {"rate", "decay"}


def test_nested_hyperparameters_are_searched_by_their_paths() -> None:
    objective = Objective(problem(), NESTED)
    study = study_of(objective, 12)
    trial = study.best_trial
    assert trial.params.keys() == {"opt/rate", "opt/steps", "model/kind", "model/target", "l2"}
    assert trial.value is not None
    assert trial.value < study.trials[0].value  # type: ignore[operator]  # the first trial is complete
    gradients = [t.user_attrs.get("hypergrad:gradient") for t in study.trials]
    assert any(g is not None and g.keys() == {"opt/rate", "model/target", "l2"} for g in gradients)

    best = best_hyperparameters(study)
    assert best.keys() == trial.params.keys()
    assert best["model/target"].shape == (2,)
    assert isinstance(best["opt/steps"], int)
    assert objective(trial) == trial.value
    assert objective(FixedTrial(best)) == trial.value
    assert best_model(study, objective).shape == (2,)


def test_the_best_hyperparameters_are_ready_for_evaluate() -> None:
    posed = problem()
    study = study_of(Objective(posed, NESTED), 3)
    space: NestedSpace = {
        "opt": {"rate": Float(1e-3, 0.3, log=True), "steps": Int(5, 8)},
        "model": {"kind": Categorical(["plain", None]), "target": Float(-1.0, 1.0, shape=(2,))},
        "l2": Float(0.0, 1.0),
    }
    best = best_hyperparameters(study)
    found = evaluate(posed, best, space=space, key=jax.random.key(0))
    assert found.value == study.best_value
    study.enqueue_trial(best)
    study.optimize(Objective(posed, NESTED), n_trials=1)
    assert study.trials[-1].value == study.best_value


def test_names_of_a_users_own_may_look_like_paths() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("clf", ["svm"])
        return trial.suggest_float("clf/C", 0.0, 1.0)

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    best = best_hyperparameters(study)
    assert best == study.best_params
    study.enqueue_trial(best)
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].value == study.best_value


def test_other_samplers_see_each_coordinate_by_its_path() -> None:
    study = study_of(Objective(problem(), NESTED), 2, RandomSampler(seed=0))
    assert {"model/target[0]", "model/target[1]", "opt/rate"} <= study.trials[0].params.keys()
    found = hyperparameters_of(study.trials[0])
    np.testing.assert_array_equal(
        found["model/target"], [study.trials[0].params[f"model/target[{i}]"] for i in range(2)]
    )


def test_nested_hyperparameters_can_be_enqueued() -> None:
    point = {
        "opt": {"rate": 0.1, "steps": 6},
        "model": {"kind": "plain", "target": [0.5, -0.5]},
        "l2": 0.25,
    }
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.enqueue_trial(point)
    study.optimize(Objective(problem(), NESTED), n_trials=1)
    found = hyperparameters_of(study.trials[0])
    np.testing.assert_array_equal(found.pop("model/target"), [0.5, -0.5])
    assert found == {"opt/rate": 0.1, "opt/steps": 6, "model/kind": "plain", "l2": 0.25}


def test_nested_numbers_are_lifted() -> None:
    lifting = TrainingProblem(
        init=lambda key, h: jnp.zeros(8),
        train_loss=lambda p, h, batch, key: jnp.sum((p - 0.5) ** 2),
        valid_loss=lambda p, h: (p - 0.25) ** 2,
        batches=lambda step: None,
        optimizer=sgd("opt/rate", 0.5),
        steps=5,
    )
    study = study_of(Objective(lifting, {"opt": {"rate": FloatDistribution(1e-3, 0.3, log=True)}}), 8)
    assert any(np.shape(hyperparameters_of(t)["opt/rate"]) == (1, 5) for t in study.trials)


def test_nested_trials_can_be_trained_in_batches() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    optimize_batched(study, Objective(problem(), NESTED), batch_size=2, n_trials=4)
    assert [t.user_attrs["hypergrad:status"] for t in study.trials] == ["ok"] * 4


def test_the_gradient_of_a_nested_objective_can_be_checked() -> None:
    point = {"opt": {"rate": 0.1, "steps": 6}, "model": {"kind": "plain", "target": [0.5, -0.5]}, "l2": 0.25}
    check = check_gradient(Objective(problem(), NESTED), point)
    assert check.agrees, str(check)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"opt": {"rate": FloatDistribution(0.0, 1.0, step=0.1)}}, r"'opt/rate'\] cannot be FloatDistribution.*step"),
        ({"n": IntDistribution(0, 10, step=5)}, r"'n'\] cannot be IntDistribution.*multiply in the problem"),
        (
            {"opt": {"rate": 0.1}},
            r"'opt/rate'\] must be a Float, Int or Categorical.*a constant belongs in the problem",
        ),
        ({"a/b": Float(0, 1), "a": {"b": Float(0, 1)}}, "'a/b' stands for two things"),
        ({"w": {"x[0]": Float(0, 1)}}, r"'w/x\[0\]' in space is the name of an element"),
    ],
)
def test_a_space_that_cannot_be_translated_is_refused(space: Any, message: str) -> None:
    plain = TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda p, h, batch, key: jnp.sum(p**2),
        valid_loss=lambda p, h: jnp.sum(p**2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.5),
        steps=5,
    )
    with pytest.raises(ValueError, match=message):
        Objective(plain, space)
