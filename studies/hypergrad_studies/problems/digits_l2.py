"""digits-l2: a penalty for each of the 650 weights of a linear model, 50 steps on scikit-learn's digits."""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

SPACE: Space = {
    "l2_weights": Float(1e-5, 1.0, log=True, shape=(64, 10)),
    "l2_biases": Float(1e-5, 1.0, log=True, shape=(10,)),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    return network(key, (64, 10), [jnp.exp(-4.0)])


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    (layer,) = params
    penalty = sum(jnp.sum(hyperparameters[f"l2_{name}"] * layer[name] ** 2) for name in ("weights", "biases"))
    return jnp.mean(cross_entropy(params, batch)) + penalty


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=sgd(1.0, 0.9, dampening=True),
            steps=50,
        ),
        SPACE,
    )
