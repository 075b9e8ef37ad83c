"""digits-mlp: 10 hyperparameters of a 64-50-50-10 tanh network, 100 steps on scikit-learn's digits.

Rates and momentum may be lifted to schedules, penalties to one for each weight. digits-noisy is the same problem with
a new seed each trial.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.problems import digits

SIZES = (64, 50, 50, 10)
LAYERS = range(1, len(SIZES))
STEPS = 100

SPACE: Space = {
    **{f"learning_rate_{i}": Float(1e-2, 10.0, log=True, lift=(STEPS,)) for i in LAYERS},
    **{f"l2_{i}": Float(1e-6, 1e-1, log=True, lift=shape) for i, shape in enumerate(itertools.pairwise(SIZES), 1)},
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
    "momentum": Float(0.5, 0.99, lift=(STEPS,)),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> list[dict[str, jax.Array]]:
    return digits.network(key, SIZES, [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def train_loss(
    params: list[dict[str, jax.Array]], hyperparameters: dict[str, Any], batch: digits.Split, key: jax.Array
) -> jax.Array:
    penalties = [
        jnp.sum(hyperparameters[f"l2_{i}"] * layer["weights"] ** 2) for i, layer in zip(LAYERS, params, strict=True)
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
            fitted_loss=digits.fitted_loss,
            held_back_loss=digits.held_back_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=optimizer,
            steps=STEPS,
        ),
        SPACE,
    )
