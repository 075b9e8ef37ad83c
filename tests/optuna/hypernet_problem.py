"""A problem for the hypernetwork mode, and a worker on it: python hypernet_problem.py STORAGE STUDY FOLDER N_TRIALS."""

import sys
from datetime import timedelta

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore

from hypergrad_optuna import HypergradSampler, Objective, claims
from hypergrad_search import Float, Hypernet, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import Linear

SIZE = 6
SPACE = {"penalty": Float(1e-3, 10.0, log=True, shape=(SIZE,))}
METHOD = Hypernet(network=Linear(), steps=150)


def problem() -> TrainingProblem:
    """Return ridge regression with a penalty for each feature."""
    rng = np.random.default_rng(0)
    weights = np.arange(SIZE) % 2
    x, x_valid = (rng.normal(size=(n, SIZE)).astype(np.float32) for n in (20, 100))
    y, y_valid = (np.float32(data @ weights + rng.normal(size=len(data))) for data in (x, x_valid))
    return TrainingProblem(
        init=lambda key, h: jnp.zeros(SIZE),
        train_loss=lambda p, h, batch, key: jnp.mean((x @ p - y) ** 2) + jnp.sum(h["penalty"] * p**2),
        valid_loss=lambda p, h: jnp.mean((x_valid @ p - y_valid) ** 2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.9),
        steps=100,
    )


if __name__ == "__main__":
    storage, name, folder, trials = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    training = problem()
    # This compiles before the first trial, so that no trial takes long, and a dead one is noticed soon.
    middle = {"penalty": np.full(SIZE, 0.1)}
    evaluate(training, middle, method=METHOD, key=jax.random.key(0), space=SPACE)
    sys.stdin.readline()  # a test may have it ready before it is to start
    claims.PATIENCE = timedelta(seconds=0.5)
    sampler = HypergradSampler(seed=0, artifact_store=FileSystemArtifactStore(folder))
    study = optuna.create_study(study_name=name, storage=storage, sampler=sampler, load_if_exists=True)
    study.optimize(Objective(training, SPACE, method=METHOD), n_trials=int(trials))
