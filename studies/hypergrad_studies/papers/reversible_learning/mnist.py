"""MNIST as the authors of reversible learning used it: 10,000 images for each purpose, less the mean training image."""

import functools
from typing import NamedTuple

from hypergrad_studies import data
from hypergrad_studies.networks import Split

EACH = 10_000


class Parts(NamedTuple):
    """10,000 images each, of shape `(784,)`.

    `train` and `valid` are the first and the second 10,000 of MNIST's training set, and `test` is its test set. The
    authors tested on other images of the training set, 10,000 or 1,000 of them, with losses that are a little higher.
    """

    train: Split
    valid: Split
    test: Split


@functools.cache
def parts() -> Parts:
    """Load the three parts. Raises `MissingData` where MNIST is not there."""
    (images, labels), (test_images, test_labels) = data.mnist()
    mean = images.mean(axis=0)
    first, second = slice(EACH), slice(EACH, 2 * EACH)
    return Parts(
        Split(images[first] - mean, labels[first]),
        Split(images[second] - mean, labels[second]),
        Split(test_images - mean, test_labels),
    )
