"""mnist-mlp: 7 hyperparameters of a 784-50-10 tanh network, 100 steps on a sixth of MNIST; another sixth validates.

Penalties may be lifted to one for each weight; the package lifts rates and momentum by itself.
"""

import functools
from typing import Any

import jax

from hypergrad_search import Space, TrainingProblem
from hypergrad_studies.data import mnist
from hypergrad_studies.networks import Layers, Split, cross_entropy, in_turn
from hypergrad_studies.problems import tuned_mlp

BATCH = 200
TRAIN, VALID = 10_000, 10_000  # these are parts of MNIST's training set; its test set is for the test
SIZES = (784, 50, 10)
STEPS = 100

SPACE = tuned_mlp.space(SIZES)


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sets, with the training mean subtracted from the images."""
    (images, labels), (test_images, test_labels) = mnist()
    mean = images[:TRAIN].mean(axis=0)
    train, valid = (Split(images[p] - mean, labels[p]) for p in (slice(0, TRAIN), slice(TRAIN, TRAIN + VALID)))
    return train, valid, Split(test_images - mean, test_labels)


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
