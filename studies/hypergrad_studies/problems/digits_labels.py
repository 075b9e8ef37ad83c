"""digits-labels: 1,003 hyperparameters of a 64-50-10 tanh network, 100 steps on digits with 30 % of the labels wrong.

Each training image has a weight in the training loss. Beside the weights there are a learning rate, a momentum and a
penalty. Validation and test labels are right.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

WRONG = 300  # of the 1,000 training labels
SIZES = (64, 50, 10)
INIT_SCALE = 0.1
STEPS = 100

SPACE: Space = {
    "weight": Float(0.0, 1.0, shape=(digits.TRAIN,)),
    "learning_rate": Float(1e-2, 10.0, log=True),
    "momentum": Float(0.5, 0.99),
    "l2": Float(1e-6, 1e-1, log=True),
}


class Batch(NamedTuple):
    """Images with their labels, and their rows in the training set."""

    data: Split
    rows: jax.Array


@functools.cache
def labels() -> np.ndarray[Any, Any]:
    """Return the training labels, shape `(1000,)`, of which `WRONG` have been replaced by others by a fixed seed."""
    generator = np.random.default_rng(0)
    rows = generator.choice(digits.TRAIN, WRONG, replace=False)
    found: np.ndarray[Any, Any] = digits.splits()[0].labels.copy()
    found[rows] = (found[rows] + generator.integers(1, 10, WRONG)) % 10
    return found


def batches(step: jax.Array) -> Batch:
    rows = (step * digits.BATCH + jnp.arange(digits.BATCH)) % digits.TRAIN
    return Batch(Split(jnp.asarray(digits.splits()[0].images)[rows], jnp.asarray(labels())[rows]), rows)


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    return network(key, SIZES, [INIT_SCALE] * (len(SIZES) - 1))


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Batch, key: jax.Array) -> jax.Array:
    """Return the sum of the weighted losses, over the number of images, plus the penalty.

    It is not divided by the sum of the weights, so that their level counts: it sets the loss against the penalty.
    """
    weights, l2 = hyperparameters["weight"][batch.rows], hyperparameters["l2"]
    penalties = [jnp.sum(l2 * layer["weights"] ** 2) for layer in params]
    return jnp.mean(weights * cross_entropy(params, batch.data)) + sum(penalties)


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=batches,
            optimizer=sgd("learning_rate", "momentum", dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
