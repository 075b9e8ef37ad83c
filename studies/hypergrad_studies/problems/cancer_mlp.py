"""cancer-mlp: 7 hyperparameters of a 30-20-2 tanh network, 100 steps on scikit-learn's breast cancer data.

Rates and momentum may be lifted to schedules, penalties to one for each weight.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.problems import digits
from hypergrad_studies.problems.digits import Split

TRAIN, VALID = 300, 136  # the other 133 are for the test
FITTED = 102  # of the validation rows, for gradients; these never see the others
BATCH = 100
SIZES = (30, 20, 2)
LAYERS = range(1, len(SIZES))
STEPS = 100

SPACE: Space = {
    **{f"learning_rate_{i}": Float(1e-2, 10.0, log=True, lift=(STEPS,)) for i in LAYERS},
    **{f"l2_{i}": Float(1e-6, 1e-1, log=True, lift=shape) for i, shape in enumerate(itertools.pairwise(SIZES), 1)},
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
    "momentum": Float(0.5, 0.99, lift=(STEPS,)),
}


@functools.cache
def splits() -> tuple[Split, ...]:
    """Training, validation and test sets, shuffled by a fixed seed, and the second's parts: fitted and held back.

    Features have the mean 0 and the standard deviation 1 in training.
    """
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    features, labels = features[order], labels[order].astype(np.int32)
    features = (features - features[:TRAIN].mean(axis=0)) / features[:TRAIN].std(axis=0)
    features = features.astype(np.float32)
    valid = TRAIN + VALID
    parts = [slice(0, TRAIN), slice(TRAIN, valid), slice(valid, None)]
    parts += [slice(TRAIN, TRAIN + FITTED), slice(TRAIN + FITTED, valid)]
    return tuple(Split(features[p], labels[p]) for p in parts)


def batches(step: jax.Array) -> Split:
    """The training set in turn, `BATCH` rows a step."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * BATCH % TRAIN, BATCH), splits()[0])


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> list[dict[str, jax.Array]]:
    return digits.network(key, SIZES, [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def train_loss(
    params: list[dict[str, jax.Array]], hyperparameters: dict[str, Any], batch: Split, key: jax.Array
) -> jax.Array:
    penalties = [
        jnp.sum(hyperparameters[f"l2_{i}"] * layer["weights"] ** 2) for i, layer in zip(LAYERS, params, strict=True)
    ]
    return digits.cross_entropy(params, batch) + sum(penalties)


def valid_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    return digits.cross_entropy(params, splits()[1])


def test_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    return digits.cross_entropy(params, splits()[2])


def fitted_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    return digits.cross_entropy(params, splits()[3])


def held_back_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    return digits.cross_entropy(params, splits()[4])


def problem() -> tuple[TrainingProblem, Space]:
    """The problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=valid_loss,
            fitted_loss=fitted_loss,
            held_back_loss=held_back_loss,
            test_loss=test_loss,
            batches=batches,
            optimizer=sgd([f"learning_rate_{i}" for i in LAYERS], "momentum", dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
