"""mnist-mlp: 7 hyperparameters of a 784-50-10 tanh network, 100 steps on a sixth of MNIST, with as much to validate.

Rates and momentum may be lifted to schedules, penalties to one for each weight.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.data import mnist
from hypergrad_studies.problems import digits
from hypergrad_studies.problems.digits import Split

BATCH = 200
TRAIN, VALID = 10_000, 10_000  # of the training set; the test set is for the test
FITTED = 7500  # of the validation images, for gradients; these never see the others
SIZES = (784, 50, 10)
LAYERS = range(1, len(SIZES))
STEPS = 100

SPACE: Space = {
    **{f"learning_rate_{i}": Float(1e-2, 10.0, log=True, lift=(STEPS,)) for i in LAYERS},
    **{f"l2_{i}": Float(1e-6, 1e-1, log=True, lift=shape) for i, shape in enumerate(itertools.pairwise(SIZES), 1)},
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
    "momentum": Float(0.5, 0.99, lift=(STEPS,)),
}


@functools.cache
def splits() -> dict[str, Split]:
    """By name: "train", "valid", its parts "fitted" and "held_back", and "test"; images less the training mean."""
    (images, labels), (test_images, test_labels) = mnist()
    mean = images[:TRAIN].mean(axis=0)
    ends = {"train": (0, TRAIN), "valid": (TRAIN, TRAIN + VALID)}
    ends |= {"fitted": (TRAIN, TRAIN + FITTED), "held_back": (TRAIN + FITTED, TRAIN + VALID)}
    parts = {name: Split(images[first:last] - mean, labels[first:last]) for name, (first, last) in ends.items()}
    return {**parts, "test": Split(test_images - mean, test_labels)}


def batches(step: jax.Array) -> Split:
    """The training set in turn, `BATCH` images a step."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * BATCH % TRAIN, BATCH), splits()["train"])


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> list[dict[str, jax.Array]]:
    return digits.network(key, SIZES, [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def train_loss(
    params: list[dict[str, jax.Array]], hyperparameters: dict[str, Any], batch: Split, key: jax.Array
) -> jax.Array:
    penalties = [
        jnp.sum(hyperparameters[f"l2_{i}"] * layer["weights"] ** 2) for i, layer in zip(LAYERS, params, strict=True)
    ]
    return digits.cross_entropy(params, batch) + sum(penalties)


def loss_on(part: str, params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on a part of the data."""
    return digits.cross_entropy(params, splits()[part])


def problem() -> tuple[TrainingProblem, Space]:
    """The problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=functools.partial(loss_on, "valid"),
            fitted_loss=functools.partial(loss_on, "fitted"),
            held_back_loss=functools.partial(loss_on, "held_back"),
            test_loss=functools.partial(loss_on, "test"),
            batches=batches,
            optimizer=sgd([f"learning_rate_{i}" for i in LAYERS], "momentum", dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
