"""The images of the hypernetwork studies: pixels in [0, 1] less their mean over the training images."""

import functools
from typing import NamedTuple

from hypergrad_studies import data
from hypergrad_studies.networks import Split
from hypergrad_studies.papers.results import Scale
from hypergrad_studies.problems import digits


class Splits(NamedTuple):
    """Images of shape `(n, pixels)` and their labels, to train, to validate and to test."""

    train: Split
    valid: Split
    test: Split


def load(scale: Scale, train: int) -> Splits:
    """Return scikit-learn's digits at the small scale, or MNIST at the paper's, with up to `train` training images."""
    return small(min(train, digits.TRAIN)) if scale == "small" else mnist(train)


@functools.cache
def small(train: int = digits.TRAIN) -> Splits:
    """Return scikit-learn's digits: the first `train` training images, 400 images to validate and 397 to test."""
    whole, valid, test = digits.splits()
    return Splits(Split(whole.images[:train], whole.labels[:train]), valid, test)


@functools.cache
def mnist(train: int, valid: int = 10_000) -> Splits:
    """Return MNIST: the first `train` images of its training set, the last `valid` of it, and its test set."""
    (images, labels), (test_images, test_labels) = data.mnist()
    mean = images[:train].mean(axis=0)
    return Splits(
        Split(images[:train] - mean, labels[:train]),
        Split(images[-valid:] - mean, labels[-valid:]),
        Split(test_images - mean, test_labels),
    )
