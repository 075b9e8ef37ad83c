"""Studies of training runs with statistics, whole numbers of steps, and optimizers of optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters, best_model, best_trial
from hypergrad_search import Float, Int, Reversible, Space, TrainingProblem, Unrolled, sgd

DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(1.0, 2.0, (60, 4)), jnp.float32)
Y = jnp.sin(X @ jnp.array([1.0, -0.5, 0.3, 0.1]))


def normalised(params: Any, mean: jax.Array, x: jax.Array) -> jax.Array:
    out: jax.Array = jnp.tanh(x @ params["w"] - mean) @ params["v"]
    return out


def train_loss(params: Any, mean: jax.Array, h: Any, rows: jax.Array, key: jax.Array) -> Any:
    of_batch = (X[rows] @ params["w"]).mean(0)
    loss = jnp.mean((normalised(params, of_batch, X[rows]) - Y[rows]) ** 2)
    return loss, 0.9 * mean + 0.1 * of_batch


def problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: ({"w": jax.random.normal(key, (4, 8)) / 4, "v": jnp.ones(8) / 8}, jnp.zeros(8)),
        "train_loss": train_loss,
        "valid_loss": lambda params, mean, h: (normalised(params, mean, X[48:]) - Y[48:]) ** 2,
        "batches": lambda step: (jnp.arange(12) + 12 * step) % 48,
        "optimizer": sgd("rate", 0.8, transform=lambda h: optax.clip_by_global_norm(h["clip"])),
        "steps": "steps",
    }
    return TrainingProblem(**{**parts, **changes})


SPACE: Space = {
    "rate": Float(1e-3, 0.3, log=True, lift=False),
    "clip": Float(0.1, 10.0, log=True),
    "steps": Int(40, 41),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["exact", "optax"])
def test_a_study_of_statistics_and_steps(optimizer: str) -> None:
    changes: dict[str, Any] = {}
    if optimizer == "optax":
        changes["optimizer"] = lambda h: optax.chain(optax.clip_by_global_norm(h["clip"]), optax.lion(h["rate"]))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    objective = Objective(problem(**changes), SPACE, method=Unrolled() if optimizer == "optax" else Reversible())
    study.optimize(objective, n_trials=8)
    trials = study.trials
    assert all(t.user_attrs["hypergrad:status"] == "ok" for t in trials)
    assert all(t.user_attrs["hypergrad:cost"] % t.params["steps"] == 0 for t in trials)
    assert any("hypergrad:gradient" in t.user_attrs for t in trials)
    values = [t.value for t in trials if t.value is not None]
    assert study.best_value < values[0]
    found = best_hyperparameters(study)
    params, mean = best_model(study, objective)
    losses = problem().valid_loss(params, mean, found)
    assert float(losses.mean()) == pytest.approx(study.best_value, rel=1e-4)
    assert objective(study.best_trial) == study.best_value


def test_steps_must_be_an_int_of_the_space() -> None:
    for wrong in ({"steps": Float(5, 60)}, {"steps": Int(0, 60)}):
        with pytest.raises(ValueError, match="steps names 'steps', which must be an Int from 1 in space"):
            Objective(problem(), {**SPACE, **wrong})
    with pytest.raises(ValueError, match="steps names the hyperparameter 'steps', which is not among"):
        Objective(problem(), {name: SPACE[name] for name in ("rate", "clip")})


def test_a_chain_of_optax_whose_gradient_is_nan_is_said_with_what_to_do() -> None:
    """One weight never gets a gradient, where the root in Adam of optax has no slope."""

    def of(eps_root: float) -> TrainingProblem:
        return TrainingProblem(
            init=lambda key, h: jnp.zeros(2),
            train_loss=lambda w, h, batch, key: (jnp.array([1.0, 0.0]) @ w - 1.0) ** 2,
            valid_loss=lambda w, h: jnp.sum((w - 0.5) ** 2),
            batches=lambda step: None,
            optimizer=lambda h: optax.adam(h["rate"], eps_root=eps_root),
            steps=5,
        )

    space: Space = {"rate": Float(1e-3, 0.3, log=True)}
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    with pytest.warns(UserWarning, match=r"first 5 gradients are useless.*not finite; .*eps_root=1e-8 keeps it off"):
        study.optimize(Objective(of(0.0), space, method=Unrolled()), n_trials=6)
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(of(1e-8), space, method=Unrolled()), n_trials=6)
    assert {trial.user_attrs["hypergrad:status"] for trial in study.trials} == {"ok"}


def test_a_study_without_a_finite_value_has_found_nothing() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    failing = problem(valid_loss=lambda params, mean, h: params["v"] * jnp.nan)
    study.optimize(Objective(failing, SPACE), n_trials=2)
    for find in (best_trial, best_hyperparameters):
        with pytest.raises(ValueError, match=r"no trial of this study has a finite value; trial 0: a gradient or loss"):
            find(study)


def test_the_best_trial_is_a_finite_one() -> None:
    """Trials whose constraints are violated, or which overfitted, do not make an infinite value the best."""
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.add_trial(optuna.create_trial(value=math.inf))
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"hypergrad:status": "overfitted"}))
    assert best_trial(study).value == 1.0
    study.add_trial(optuna.create_trial(value=2.0))
    assert best_trial(study).value == 2.0
