"""The networks of the hypernetwork studies (Lorraine and Duvenaud 2018), and their penalties.

The training loss is 50 times the squared error, averaged over images and the ten outputs, and a penalty l2 * w**2 for
each weight, where log l2 is the paper's lambda. The factor comes from the released code, whose loss is the negative
log-likelihood of a Gaussian of standard deviation 0.1. The squared penalty comes from the paper's text; the code has
the norm instead. The outer loss, and the loss that is shown, is the squared error itself, averaged over images and
outputs. Targets are 1 for the digit and 0 for the others.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Float, Optimizer, Space, TrainingProblem
from hypergrad_search.space import floats
from hypergrad_studies.networks import Layers, Split, in_turn, logits, network
from hypergrad_studies.papers.hypernetworks.splits import Splits

DEVIATION = 0.1
PRECISION = 1 / (2 * DEVIATION**2)
OUTPUTS = 10


def squared_error(loss: float) -> float:
    """Return the mean squared error behind a negative log-likelihood, which most of the paper's figures show."""
    return (loss - math.log(DEVIATION * math.sqrt(2 * math.pi))) / PRECISION


def error(params: Layers, data: Split) -> jax.Array:
    """Return the squared error of a network of ReLUs, a mean over images and outputs; one layer is a linear model."""
    outputs = logits(params, data.images, jax.nn.relu)
    return jnp.mean((outputs - jax.nn.one_hot(data.labels, OUTPUTS)) ** 2)


def penalty(params: Layers, hyperparameters: Mapping[str, Any]) -> jax.Array:
    """Return the sum of l2 * w**2 over those weights and biases for whose layer `hyperparameters` contains an l2.

    An l2 is one number, an array with a number for each weight, or an array of shape `(outputs,)` with a number for the
    weights of each output.
    """
    terms = [
        jnp.sum(jnp.broadcast_to(hyperparameters[name], values.shape) * values**2)
        for i, layer in enumerate(params)
        for part, values in layer.items()
        if (name := f"l2_{part}_{i}") in hyperparameters
    ]
    return jnp.sum(jnp.stack(terms))


def penalties(sizes: Sequence[int], low: float, high: float) -> Space:
    """Return the space of a penalty for each weight and bias of a network, in the order of the network's parameters."""
    return {
        f"l2_{part}_{i}": Float(low, high, log=True, shape=shape)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
        for part, shape in (("biases", (fan_out,)), ("weights", (fan_in, fan_out)))
    }


def alike(space: Space, l2: float) -> dict[str, Any]:
    """Return hyperparameters with the same penalty everywhere."""
    return {name: np.full(parameter.shape, l2) for name, parameter in floats(space).items()}


def problem(data: Splits, sizes: Sequence[int], *, optimizer: Optimizer, steps: int, batch: int) -> TrainingProblem:
    """Return the training of a network, in which the losses of a step take batches of `batch` images in turn."""
    train, valid, test = jax.tree.map(jnp.asarray, data)
    scales = [*(math.sqrt(2 / fan_in) for fan_in in sizes[:-2]), math.exp(-4)]

    return TrainingProblem(
        init=lambda key, hyperparameters: network(key, tuple(sizes), scales),
        train_loss=lambda params, hyperparameters, batch, key: (
            PRECISION * error(params, batch) + penalty(params, hyperparameters)
        ),
        valid_loss=lambda params, hyperparameters: error(params, valid),
        valid_batch_loss=lambda params, hyperparameters, step: error(params, in_turn(valid, step, batch)),
        test_loss=lambda params, hyperparameters: error(params, test),
        batches=lambda step: in_turn(train, step, batch),
        optimizer=optimizer,
        steps=steps,
    )
