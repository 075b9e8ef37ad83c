"""What the networks with tuned rates, penalties, initial scales and momentum have in common.

Penalties may be lifted to one for each weight; the package lifts rates and momentum by itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Optimizer, Space, sgd
from hypergrad_studies.networks import Layers, Split, cross_entropy, network


def space(sizes: Sequence[int]) -> Space:
    """Return the space of a learning rate, a penalty and an initial scale for each layer, and of one momentum."""
    layers = range(1, len(sizes))
    return {
        **{f"learning_rate_{i}": Float(1e-2, 10.0, log=True) for i in layers},
        **{f"l2_{i}": Float(1e-6, 1e-1, log=True, lift=shape) for i, shape in enumerate(itertools.pairwise(sizes), 1)},
        **{f"init_scale_{i}": Float(1e-2, 1.0, log=True) for i in layers},
        "momentum": Float(0.5, 0.99),
    }


def optimizer(sizes: Sequence[int]) -> Optimizer:
    """Return momentum in the dampened form, with a rate for each layer."""
    return sgd([f"learning_rate_{i}" for i in range(1, len(sizes))], "momentum", dampening=True)


def init(sizes: tuple[int, ...], key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    """Return layers of `sizes`, drawn at the initial scales."""
    return network(key, sizes, [hyperparameters[f"init_scale_{i}"] for i in range(1, len(sizes))])


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the batch plus the penalties."""
    penalties = penalty(params, hyperparameters)
    return jnp.mean(cross_entropy(params, batch)) + penalties


def penalty(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array | int:
    """Return the sum of all squared weights, each times its penalty; biases have none."""
    terms = [jnp.sum(hyperparameters[f"l2_{i}"] * layer["weights"] ** 2) for i, layer in enumerate(params, 1)]
    return sum(terms)
