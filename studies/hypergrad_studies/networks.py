"""Fully connected networks that classify: their initial parameters, their outputs and their losses."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

#: the parameters of a network: each layer has a matrix `weights` of shape (inputs, outputs) and a vector `biases`
Layers = list[dict[str, jax.Array]]


class Split(NamedTuple):
    """A part of a data set: inputs of shape `(n, features)`, and the class of each, shape `(n,)`."""

    images: Any
    labels: Any


def in_turn(data: Split, step: jax.Array, size: int) -> Split:
    """Return the batch of a step, which takes `data` in turn, `size` examples at a time; `size` divides its length."""
    batch: Split = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * size % len(x), size), data)
    return batch


def network(key: jax.Array, sizes: tuple[int, ...], scales: Sequence[Any]) -> Layers:
    """Return layers with normal weights of standard deviation `scales[layer]`, and biases of 0.

    `sizes` holds the number of inputs, the width of each hidden layer and the number of outputs.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [
        {"weights": scale * jax.random.normal(k, shape), "biases": jnp.zeros(shape[1])}
        for k, shape, scale in zip(keys, shapes, scales, strict=True)
    ]


def normal_network(key: jax.Array, sizes: tuple[int, ...], scale: float) -> Layers:
    """Return layers with normal weights and normal biases, all of standard deviation `scale`."""
    weights_key, biases_key = jax.random.split(key)
    layers = network(weights_key, sizes, [scale] * (len(sizes) - 1))
    keys = jax.random.split(biases_key, len(layers))
    return [
        {**layer, "biases": scale * jax.random.normal(k, layer["biases"].shape)}
        for k, layer in zip(keys, layers, strict=True)
    ]


def logits(params: Layers, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jnp.tanh) -> jax.Array:
    """Return the outputs of a network, shape `(n, classes)`, for inputs of shape `(n, features)`."""
    *hidden, last = params
    for layer in hidden:
        x = activation(x @ layer["weights"] + layer["biases"][None])
    return x @ last["weights"] + last["biases"][None]


def cross_entropy(params: Layers, data: Split, activation: Callable[[jax.Array], jax.Array] = jnp.tanh) -> jax.Array:
    """Return the negative log-likelihood of each example's class, in nats, shape `(n,)`."""
    log_probabilities = jax.nn.log_softmax(logits(params, data.images, activation))
    return -jnp.take_along_axis(log_probabilities, data.labels[:, None], axis=1)[:, 0]
