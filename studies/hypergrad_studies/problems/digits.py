"""Scikit-learn's handwritten digits, split once and for all, and what every problem on them shares."""

import functools
from typing import Any

import jax
import numpy as np
from sklearn.datasets import load_digits

from hypergrad_studies.networks import Layers, Split, cross_entropy, in_turn

BATCH = 200
TRAIN, VALID = 1000, 400  # the other 397 images are for the test


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sets as numpy arrays, shuffled by a fixed seed.

    Images have shape `(n, 64)`. Their pixels lie in [0, 1] before the training mean is subtracted.
    """
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] / 16).astype(np.float32)
    images -= images[:TRAIN].mean(axis=0)
    labels = labels[order].astype(np.int32)
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None)]
    train, valid, test = (Split(images[p], labels[p]) for p in parts)
    return train, valid, test


def batches(step: jax.Array) -> Split:
    """Return the images of a step, which takes the training set in turn, `BATCH` images at a time."""
    return in_turn(splits()[0], step, BATCH)


def valid_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    """Return the cross-entropy of each validation image, shape `(400,)`."""
    return cross_entropy(params, splits()[1])


def test_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    """The cross-entropy of each test image, shape `(397,)`."""
    return cross_entropy(params, splits()[2])
