"""diabetes-mlp: 6 hyperparameters of a 10-50-1 tanh network, 300 steps on scikit-learn's diabetes data, a regression.

Penalties may be lifted to one for each weight; the package lifts the learning rate and momentum by itself.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.networks import Layers, logits
from hypergrad_studies.problems import tuned_mlp

TRAIN, VALID = 220, 110  # the other 112 are for the test
SIZES = (10, 50, 1)
LAYERS = range(1, len(SIZES))
STEPS = 300


class Patients(NamedTuple):
    """A part of the data: features of shape `(n, 10)`, and how far the disease went on in a year, shape `(n,)`."""

    features: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]


SPACE: Space = {
    "learning_rate": Float(1e-3, 1.0, log=True),
    "momentum": Float(0.5, 0.99),
    **{f"l2_{i}": Float(1e-5, 1.0, log=True, lift=shape) for i, shape in enumerate(itertools.pairwise(SIZES), 1)},
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
}


@functools.cache
def splits() -> tuple[Patients, Patients, Patients]:
    """Return training, validation and test sets, shuffled by a fixed seed.

    Each feature, and the target, is scaled to the mean 0 and the standard deviation 1 on the training set.
    """
    features, targets = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(targets))
    features, targets = (
        ((x - x[:TRAIN].mean(axis=0)) / x[:TRAIN].std(axis=0)).astype(np.float32)
        for x in (features[order], targets[order])
    )
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None)]
    train, valid, test = (Patients(features[p], targets[p]) for p in parts)
    return train, valid, test


def batches(step: jax.Array) -> Patients:
    return splits()[0]


def squared_errors(params: Layers, data: Patients) -> jax.Array:
    """Return the squared error of each patient, in units of the target's variance on the training set."""
    return (logits(params, jnp.asarray(data.features))[:, 0] - data.targets) ** 2


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Patients, key: jax.Array) -> jax.Array:
    penalties = tuned_mlp.penalty(params, hyperparameters)
    return jnp.mean(squared_errors(params, batch)) + penalties


def valid_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return squared_errors(params, splits()[1])


def test_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return squared_errors(params, splits()[2])


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=functools.partial(tuned_mlp.init, SIZES),
            train_loss=train_loss,
            valid_loss=valid_loss,
            test_loss=test_loss,
            batches=batches,
            optimizer=sgd("learning_rate", "momentum", dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
