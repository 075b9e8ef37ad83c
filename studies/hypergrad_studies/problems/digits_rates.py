"""digits-rates: a learning rate for each of 100 steps, of a 64-50-50-10 tanh network on scikit-learn's digits."""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

SIZES = (64, 50, 50, 10)
INIT_SCALE = 0.1
STEPS = 100

SPACE: Space = {"learning_rate": Float(1e-2, 10.0, log=True, shape=(STEPS,))}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    return network(key, SIZES, [INIT_SCALE] * (len(SIZES) - 1))


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    return jnp.mean(cross_entropy(params, batch))


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=sgd("learning_rate", 0.9, dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
