"""cancer-mlp: 7 hyperparameters of a 30-20-2 tanh network, 100 steps on scikit-learn's breast cancer data.

Penalties may be lifted to one for each weight; the package lifts rates and momentum by itself.
"""

import functools
from typing import Any

import jax
import numpy as np
from sklearn.datasets import load_breast_cancer

from hypergrad_search import Space, TrainingProblem
from hypergrad_studies.networks import Layers, Split, cross_entropy, in_turn
from hypergrad_studies.problems import tuned_mlp

TRAIN, VALID = 300, 136  # the other 133 are for the test
BATCH = 100
SIZES = (30, 20, 2)
STEPS = 100

SPACE = tuned_mlp.space(SIZES)


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sets, shuffled by a fixed seed.

    Each feature is scaled to the mean 0 and the standard deviation 1 on the training set.
    """
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    features, labels = features[order], labels[order].astype(np.int32)
    features = (features - features[:TRAIN].mean(axis=0)) / features[:TRAIN].std(axis=0)
    features = features.astype(np.float32)
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None)]
    train, valid, test = (Split(features[p], labels[p]) for p in parts)
    return train, valid, test


def batches(step: jax.Array) -> Split:
    return in_turn(splits()[0], step, BATCH)


def valid_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return cross_entropy(params, splits()[1])


def test_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return cross_entropy(params, splits()[2])


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=functools.partial(tuned_mlp.init, SIZES),
            train_loss=tuned_mlp.train_loss,
            valid_loss=valid_loss,
            test_loss=test_loss,
            batches=batches,
            optimizer=tuned_mlp.optimizer(SIZES),
            steps=STEPS,
        ),
        SPACE,
    )
