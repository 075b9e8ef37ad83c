"""MNIST as the authors of reversible learning took it: in order, in thirds, less the mean of all training images."""

import functools
from typing import NamedTuple

from hypergrad_studies import data
from hypergrad_studies.problems.digits import Split

EACH = 10_000


class Parts(NamedTuple):
    """10,000 images each of shape `(784,)`: the first and the next of the training set, and the test set.

    The authors tested on more of the training set, 10,000 images or 1,000, with losses a little higher.
    """

    train: Split
    valid: Split
    test: Split


@functools.cache
def parts() -> Parts:
    """Raises `MissingData`."""
    (images, labels), (test_images, test_labels) = data.mnist()
    mean = images.mean(axis=0)
    first, second = slice(EACH), slice(EACH, 2 * EACH)
    return Parts(
        Split(images[first] - mean, labels[first]),
        Split(images[second] - mean, labels[second]),
        Split(test_images - mean, test_labels),
    )
