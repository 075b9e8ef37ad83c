"""Scikit-learn's handwritten digits: the data, split once and for all, and networks to fit it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

BATCH = 200
TRAIN, VALID = 1000, 400  # the other 397 are for the test
FITTED = 300  # of the validation images, for gradients; these never see the others


class Split(NamedTuple):
    """Images of shape `(n, 64)` in [0, 1] less the training mean, and their labels; kept in numpy."""

    images: Any
    labels: Any


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Training, validation and test sets, shuffled by a fixed seed."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] / 16).astype(np.float32)
    images -= images[:TRAIN].mean(axis=0)
    labels = labels[order].astype(np.int32)
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None)]
    train, valid, test = (Split(images[p], labels[p]) for p in parts)
    return train, valid, test


def batches(step: jax.Array) -> Split:
    """The training set in turn, `BATCH` images a step."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * BATCH % TRAIN, BATCH), splits()[0])


def network(key: jax.Array, sizes: tuple[int, ...], scales: Any) -> list[dict[str, jax.Array]]:
    """Layers of normal weights of standard deviation `scales[layer]`, and biases of 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [
        {"weights": scale * jax.random.normal(k, shape), "biases": jnp.zeros(shape[1])}
        for k, shape, scale in zip(keys, shapes, scales, strict=True)
    ]


def normal_network(key: jax.Array, sizes: tuple[int, ...], scale: float) -> list[dict[str, jax.Array]]:
    """Layers of normal weights and biases, all of standard deviation `scale`."""
    weights_key, biases_key = jax.random.split(key)
    layers = network(weights_key, sizes, [scale] * (len(sizes) - 1))
    keys = jax.random.split(biases_key, len(layers))
    return [
        {**layer, "biases": scale * jax.random.normal(k, layer["biases"].shape)}
        for k, layer in zip(keys, layers, strict=True)
    ]


def logits(
    params: list[dict[str, jax.Array]], x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jnp.tanh
) -> jax.Array:
    """The outputs of a network for images of shape `(n, pixels)`."""
    *hidden, last = params
    for layer in hidden:
        x = activation(x @ layer["weights"] + layer["biases"])
    return x @ last["weights"] + last["biases"]


def cross_entropy(
    params: list[dict[str, jax.Array]],
    data: Split,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> jax.Array:
    """Mean negative log-likelihood, in nats, of a network."""
    log_probabilities = jax.nn.log_softmax(logits(params, data.images, activation))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, data.labels[:, None], axis=1))


@functools.cache
def parts() -> tuple[Split, Split]:
    """The part of the validation set that gradients see, and the part that is held back."""
    images, labels = splits()[1]
    return Split(images[:FITTED], labels[:FITTED]), Split(images[FITTED:], labels[FITTED:])


def valid_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on the validation set."""
    return cross_entropy(params, splits()[1])


def fitted_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on the part of the validation set that gradients see."""
    return cross_entropy(params, parts()[0])


def held_back_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on the part of the validation set that no gradient sees."""
    return cross_entropy(params, parts()[1])


def test_loss(params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on the test set."""
    return cross_entropy(params, splits()[2])
