"""mnist-cnn: 8 hyperparameters of a small convolutional network, 200 steps on 5,000 images of MNIST at 14 x 14.

It is trained as is usual: AdamW with clipped gradients, a linear warm-up and half a cosine, and smoothed labels.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad_search import Float, Space, TrainingProblem, adamw, warmup_cosine
from hypergrad_studies.data import mnist
from hypergrad_studies.networks import Layers, Split, in_turn

BATCH = 100
TRAIN, VALID = 5_000, 2_000  # these are parts of MNIST's training set
TEST_EVERY = 4  # each fourth image of MNIST's test set is for the test, since one half of it is harder
SHAPES = ((3, 3, 1, 16), (3, 3, 16, 32), (4 * 4 * 32, 10))  # two convolutions and a linear layer
STEPS = 200

SPACE: Space = {
    "peak_rate": Float(1e-4, 1e-1, log=True),
    "warmup": Float(1.0, 100.0),
    "final_share": Float(1e-3, 1.0, log=True),
    "b1": Float(0.5, 0.99),
    "one_minus_b2": Float(1e-3, 1e-1, log=True),
    "weight_decay": Float(1e-4, 1.0, log=True),
    "clip": Float(1e-1, 10.0, log=True),
    "label_smoothing": Float(0.0, 0.3),
}


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sets of images of shape `(n, 14, 14, 1)`.

    Over all pixels of the training set they have the mean 0 and the standard deviation 1.
    """
    (images, labels), (test_images, test_labels) = mnist()
    known = _pooled(images[: TRAIN + VALID])
    mean, deviation = known[:TRAIN].mean(), known[:TRAIN].std()
    known, unknown = ((x - mean) / deviation for x in (known, _pooled(test_images[::TEST_EVERY])))
    train, valid = (Split(known[p], labels[p]) for p in (slice(0, TRAIN), slice(TRAIN, TRAIN + VALID)))
    return train, valid, Split(unknown, test_labels[::TEST_EVERY])


def _pooled(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the means of 2 x 2 pixels, shape `(n, 14, 14, 1)`."""
    means: np.ndarray[Any, Any] = images.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4))
    return means


def batches(step: jax.Array) -> Split:
    return in_turn(splits()[0], step, BATCH)


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    keys = jax.random.split(key, len(SHAPES))
    return [
        {"weights": math.sqrt(2 / math.prod(shape[:-1])) * jax.random.normal(k, shape), "biases": jnp.zeros(shape[-1])}
        for k, shape in zip(keys, SHAPES, strict=True)
    ]


def losses(params: Layers, data: Split, smoothing: Any) -> jax.Array:
    """Return the cross-entropy of each image, with the part `smoothing` of its label spread over all classes."""
    *convolutions, last = params
    x = jnp.asarray(data.images)
    for layer in convolutions:
        x = jax.lax.conv_general_dilated(
            x, layer["weights"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.gelu(x + layer["biases"][None, None, None])
    scores = x.reshape(len(x), -1) @ last["weights"] + last["biases"][None]
    targets = optax.smooth_labels(jax.nn.one_hot(data.labels, 10), smoothing)
    found: jax.Array = optax.softmax_cross_entropy(scores, targets)
    return found


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    return jnp.mean(losses(params, batch, hyperparameters["label_smoothing"]))


def valid_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, splits()[1], 0.0)


def test_loss(params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, splits()[2], 0.0)


def learning_rate(hyperparameters: dict[str, Any], step: jax.Array) -> jax.Array:
    peak, share = hyperparameters["peak_rate"], hyperparameters["final_share"]
    return warmup_cosine(peak, hyperparameters["warmup"], share * peak, steps=STEPS)(step)


def b2(hyperparameters: dict[str, Any], step: jax.Array) -> Any:
    return 1 - hyperparameters["one_minus_b2"]


def clipping(hyperparameters: dict[str, Any]) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(hyperparameters["clip"])


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    weight_decay = [{"weights": "weight_decay", "biases": 0.0}] * len(SHAPES)
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=valid_loss,
            test_loss=test_loss,
            batches=batches,
            optimizer=adamw(learning_rate, "b1", b2, weight_decay=weight_decay, transform=clipping),
            steps=STEPS,
        ),
        SPACE,
    )
