"""Data sets that do not come with scikit-learn, read from a folder of npz files; MNIST may come from OpenML instead."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import fetch_openml

MNIST_TRAIN = 60_000

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class MissingData(RuntimeError):
    """A data set is not here and cannot be fetched. The message is one line and says how to get it."""


@functools.cache
def mnist() -> tuple[Arrays, Arrays]:
    """Return training and test sets of float32 images of shape `(n, 784)` in [0, 1], and int32 labels.

    They are read from `mnist.npz` (`x_train`, `y_train`, `x_test`, `y_test`) in the folder that `HYPERGRAD_DATA` names.
    Where it is not there, they are fetched from OpenML, and scikit-learn keeps them for the next time. Raises
    `MissingData`.
    """
    path = Path(os.environ.get("HYPERGRAD_DATA", "")) / "mnist.npz"
    if "HYPERGRAD_DATA" in os.environ and path.exists():
        with np.load(path) as file:
            return _arrays(file["x_train"], file["y_train"]), _arrays(file["x_test"], file["y_test"])
    try:
        images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    except (OSError, ValueError) as error:
        raise MissingData(
            "MNIST is missing: set HYPERGRAD_DATA to a folder that holds mnist.npz (x_train, y_train, x_test, y_test), "
            f"or connect to a network, from which scikit-learn can fetch it ({type(error).__name__}: {error})"
        ) from error
    first, last = slice(MNIST_TRAIN), slice(MNIST_TRAIN, None)
    return _arrays(images[first], labels[first]), _arrays(images[last], labels[last])


class Drawings(NamedTuple):
    """Omniglot: images of shape `(n, 28, 28)`, ink 1 and paper 0, and what each of them shows.

    `alphabet` indexes `names`, `character` counts from 0 within its alphabet, `drawer` from 1 to 20; shapes `(n,)`.
    """

    images: np.ndarray[Any, Any]
    alphabet: np.ndarray[Any, Any]
    character: np.ndarray[Any, Any]
    drawer: np.ndarray[Any, Any]
    names: list[str]


@functools.cache
def omniglot() -> Drawings:
    """Return all 32,460 drawings of Omniglot, at 28 x 28.

    They are read from `omniglot_28.npz` in the folder that `HYPERGRAD_DATA` names. It holds `images` of shape
    `(n, 98)`, eight pixels a byte, `alphabet`, `character` and `drawer` of shape `(n,)`, and the names of `alphabets`.
    Raises `MissingData`.
    """
    path = Path(os.environ.get("HYPERGRAD_DATA", "")) / "omniglot_28.npz"
    if "HYPERGRAD_DATA" not in os.environ or not path.exists():
        raise MissingData(
            "Omniglot is missing: set HYPERGRAD_DATA to a folder that holds omniglot_28.npz (images: 28 x 28 pixels "
            "packed into 98 bytes by numpy.packbits, ink 1; alphabet, character, drawer; alphabets: their names); "
            "OpenML, where MNIST comes from, does not have it"
        )
    with np.load(path) as file:
        images = np.unpackbits(file["images"], axis=1).reshape(-1, 28, 28).astype(np.float32)
        names = [str(name) for name in file["alphabets"]]
        return Drawings(images, file["alphabet"], file["character"], file["drawer"], names)


def _arrays(images: Any, labels: Any) -> Arrays:
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int32)
