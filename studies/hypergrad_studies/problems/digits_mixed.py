"""digits-mixed: digits-mlp, and the network's activation and width: 12 hyperparameters, 10 of which have a gradient.

The package lifts rates and momentum by itself; penalties stay numbers, as the number of weights varies.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Categorical, Float, Int, Space, TrainingProblem
from hypergrad_search.space import floats
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits, digits_mlp, tuned_mlp
from hypergrad_studies.problems.digits_mlp import SIZES, STEPS

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}
LAYERS = range(1, len(SIZES))
UNITS = 16  # a hidden layer has `width` times as many units; each width is a program to compile


def _without_lift(parameter: Float) -> Float:
    return Float(parameter.low, parameter.high, log=parameter.log)


SPACE: Space = {
    **{name: _without_lift(p) if name.startswith("l2") else p for name, p in floats(digits_mlp.SPACE).items()},
    "activation": Categorical(list(ACTIVATIONS)),
    "width": Int(1, 3),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    width = UNITS * hyperparameters["width"]
    return network(key, (64, width, width, 10), [hyperparameters[f"init_scale_{i}"] for i in LAYERS])


def losses(params: Layers, hyperparameters: dict[str, Any], data: Split) -> jax.Array:
    """Return the cross-entropy of each example, with the activation that the hyperparameters name."""
    return cross_entropy(params, data, ACTIVATIONS[hyperparameters["activation"]])


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    penalties = tuned_mlp.penalty(params, hyperparameters)
    return jnp.mean(losses(params, hyperparameters, batch)) + penalties


def valid_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, hyperparameters, digits.splits()[1])


def test_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, hyperparameters, digits.splits()[2])


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=valid_loss,
            test_loss=test_loss,
            batches=digits.batches,
            optimizer=tuned_mlp.optimizer(SIZES),
            steps=STEPS,
        ),
        SPACE,
    )
