"""digits-mixed: digits-mlp, and the network's activation and width: 12 hyperparameters, 10 of which have a gradient.

Rates and momentum may be lifted to schedules; not the penalties, as the number of weights varies. The parameters are
`{activation: layers}`: losses, which get the parameters alone, know the activation by it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Categorical, Float, Int, Space, TrainingProblem, sgd
from hypergrad_search.space import floats
from hypergrad_studies.problems import digits, digits_mlp
from hypergrad_studies.problems.digits_mlp import SIZES, STEPS

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}
LAYERS = range(1, len(SIZES))
UNITS = 16  # of which a layer has 1, 2 or 3 times as many: each width is a program to compile

Params = dict[str, list[dict[str, jax.Array]]]


def _without_lift(parameter: Float) -> Float:
    return Float(parameter.low, parameter.high, log=parameter.log)


SPACE: Space = {
    **{name: _without_lift(p) if name.startswith("l2") else p for name, p in floats(digits_mlp.SPACE).items()},
    "activation": Categorical(list(ACTIVATIONS)),
    "width": Int(1, 3),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Params:
    width = UNITS * hyperparameters["width"]
    scales = [hyperparameters[f"init_scale_{i}"] for i in LAYERS]
    return {hyperparameters["activation"]: digits.network(key, (64, width, width, 10), scales)}


def cross_entropy(params: Params, data: digits.Split) -> jax.Array:
    """As `digits.cross_entropy`, with the activation that the parameters name."""
    ((activation, layers),) = params.items()
    return digits.cross_entropy(layers, data, ACTIVATIONS[activation])


def train_loss(params: Params, hyperparameters: dict[str, Any], batch: digits.Split, key: jax.Array) -> jax.Array:
    (layers,) = params.values()
    penalties = [
        jnp.sum(hyperparameters[f"l2_{i}"] * layer["weights"] ** 2) for i, layer in zip(LAYERS, layers, strict=True)
    ]
    return cross_entropy(params, batch) + sum(penalties)


def valid_loss(params: Params) -> jax.Array:
    return cross_entropy(params, digits.splits()[1])


def fitted_loss(params: Params) -> jax.Array:
    return cross_entropy(params, digits.parts()[0])


def held_back_loss(params: Params) -> jax.Array:
    return cross_entropy(params, digits.parts()[1])


def test_loss(params: Params) -> jax.Array:
    return cross_entropy(params, digits.splits()[2])


def learning_rate(hyperparameters: Any, step: jax.Array) -> dict[str, list[jax.Array]]:
    rates = [jnp.broadcast_to(hyperparameters[f"learning_rate_{i}"], (STEPS,))[step] for i in LAYERS]
    return {hyperparameters["activation"]: rates}


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
            batches=digits.batches,
            optimizer=sgd(learning_rate, "momentum", dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
