"""Studies of problems whose batches the host loads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hypergrad_optuna import HypergradSampler, Objective
from hypergrad_search import Float, HostBatches, TrainingProblem, evaluate, sgd

DATA = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
SPACE = {"rate": Float(1e-3, 0.3, log=True, lift=False), "l2": Float(1e-5, 1.0, log=True)}


def load(step: int) -> Any:
    return DATA[np.random.default_rng((0, step)).integers(0, len(DATA), 10)]


def problem(batches: Any) -> TrainingProblem:
    def valid_loss(w: jax.Array, h: Any) -> jax.Array:
        return jnp.square(jnp.asarray(DATA) @ w - 1)

    return TrainingProblem(
        init=lambda key, h: jnp.zeros(3),
        train_loss=lambda w, h, batch, key: jnp.mean((batch @ w - 1) ** 2) + h["l2"] * jnp.sum(w**2),
        valid_loss=valid_loss,
        batches=batches,
        optimizer=sgd("rate", 0.9),
        steps=20,
    )


def test_two_threads_of_a_study_load_from_one_instance() -> None:
    made = problem(HostBatches(load))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(made, SPACE), n_trials=10, n_jobs=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 10
    other, key = problem(HostBatches(load)), jax.random.key(0)
    for trial in study.trials:
        assert trial.user_attrs["hypergrad:status"] == "ok"
        assert trial.value == evaluate(other, trial.params, key=key, gradient_below=-np.inf).value


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError])
def test_an_error_of_load_ends_the_study(error: type[Exception]) -> None:
    """Errors of values, such as the last two, are failed trials, and the study goes on; this one has another cause."""
    broken: list[int] = []

    def failing(step: int) -> Any:
        if step in broken:
            raise error("disk")
        return load(step)

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    objective = Objective(problem(HostBatches(failing, ahead=0)), SPACE)
    study.optimize(objective, n_trials=2)
    broken.append(7)
    with pytest.raises(error, match="disk") as caught:
        study.optimize(objective, n_trials=2)
    (note,) = caught.value.__notes__
    assert note == "HostBatches: this error is from load, at step 7; more: python -m hypergrad_search load"
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
