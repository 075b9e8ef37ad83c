"""Data sets that do not come with scikit-learn: from a folder of npz files, else from OpenML."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import fetch_openml

MNIST_TRAIN = 60_000

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class MissingData(RuntimeError):
    """A data set is neither here nor to be had. The message is one line and says both ways to get it."""


@functools.cache
def mnist() -> tuple[Arrays, Arrays]:
    """Training and test sets: float32 images of shape `(n, 784)` in [0, 1], and int32 labels.

    From `mnist.npz` (`x_train`, `y_train`, `x_test`, `y_test`) in the folder that `HYPERGRAD_DATA` names, else from
    OpenML, which scikit-learn keeps for the next time. Raises `MissingData`.
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


def _arrays(images: Any, labels: Any) -> Arrays:
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int32)
