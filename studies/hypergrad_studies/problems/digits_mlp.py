"""digits-mlp: 10 hyperparameters of a 64-50-50-10 tanh network, 100 steps on scikit-learn's digits."""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.problems import digits

SIZES = (64, 50, 50, 10)
LAYERS = range(1, len(SIZES))

SPACE: Space = {
    **{f"learning_rate_{i}": Float(1e-2, 10.0, log=True) for i in LAYERS},
    **{f"l2_{i}": Float(1e-6, 1e-1, log=True) for i in LAYERS},
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
    "momentum": Float(0.5, 0.99),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> list[dict[str, jax.Array]]:
    return digits.network(key, SIZES, [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def train_loss(
    params: list[dict[str, jax.Array]], hyperparameters: dict[str, Any], batch: digits.Split, key: jax.Array
) -> jax.Array:
    penalties = [
        hyperparameters[f"l2_{i}"] * jnp.sum(layer["weights"] ** 2) for i, layer in zip(LAYERS, params, strict=True)
    ]
    return digits.cross_entropy(params, batch) + sum(penalties)


def problem() -> tuple[TrainingProblem, Space]:
    """The problem and its space."""
    optimizer = sgd([f"learning_rate_{i}" for i in LAYERS], "momentum", dampening=True)
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=optimizer,
            steps=100,
        ),
        SPACE,
    )
