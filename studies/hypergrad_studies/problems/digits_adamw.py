"""digits-adamw: 7 hyperparameters of AdamW on a 64-50-10 tanh network, 100 steps on scikit-learn's digits.

The weight decay may be lifted to one for each layer; biases do not decay. The package lifts the learning rate and b1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, adamw
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

SIZES = (64, 50, 10)
LAYERS = range(1, len(SIZES))
STEPS = 100

SPACE: Space = {
    "learning_rate": Float(1e-4, 1e-1, log=True),
    "b1": Float(0.5, 0.99),
    "one_minus_b2": Float(1e-3, 1e-1, log=True),
    "eps": Float(1e-8, 1e-2, log=True),
    "weight_decay": Float(1e-4, 1.0, log=True, lift=(len(LAYERS),)),
    **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in LAYERS},
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    return network(key, SIZES, [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    return jnp.mean(cross_entropy(params, batch))


def b2(hyperparameters: dict[str, Any], step: jax.Array) -> Any:
    return 1 - hyperparameters["one_minus_b2"]


def weight_decay(hyperparameters: dict[str, Any], step: jax.Array) -> list[dict[str, Any]]:
    decays = jnp.broadcast_to(hyperparameters["weight_decay"], (len(LAYERS),))
    return [{"weights": decay, "biases": 0.0} for decay in decays]


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=adamw("learning_rate", "b1", b2, "eps", weight_decay=weight_decay),
            steps=STEPS,
        ),
        SPACE,
    )
