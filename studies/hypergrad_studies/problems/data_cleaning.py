"""data-cleaning: a weight for each of 6,000 training images of MNIST, of which half have a wrong label.

5,000 of the training images are those to clean. The other 1,000 are planted: they come from 5,000 images with right
labels, and half of their labels were made wrong on purpose, so it is known which ones a search should find. The
remaining 4,000 images with right labels validate. They are in two halves, and two models train: each on all training
images, weighted, and on one half of the validation images, while the other half judges it. So the models know much of
what right labels look like, and no image judges a model that has seen it.

The penalty is what keeps the search honest: it leaves each model a training loss to lower, so that a gradient by the
weights goes on telling right labels from wrong ones, after the validation loss has found its minimum.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Float, Space, TrainingProblem, adamw
from hypergrad_studies.data import MNIST_TRAIN, mnist
from hypergrad_studies.networks import Layers, Split, cross_entropy, logits, network

TO_CLEAN, PLANTED, VALID = 5_000, 1_000, 4_000
HALVES = 2
STEPS = 1_000
BATCH, VALID_BATCH = 120, 80  # both sets are gone through in 50 steps
RATE, L2 = 3e-3, 1e-2
SIZES = {"linear": (784, 10), "mlp": (784, 300, 10)}


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels of one seed.

    - `train`: the images to clean, and then those that were planted, with labels of which half are wrong; `wrong` says
      which ones, shape `(6000,)`. No search may look at it but for the planted ones.
    - `valid`, `test`: images with right labels. `planted_labels` are the right ones of the planted images.
    """

    train: Split
    wrong: np.ndarray[Any, Any]
    valid: Split
    test: Split
    planted_labels: np.ndarray[Any, Any]


@functools.cache
def data(seed: int) -> Data:
    """Return the images of a seed: other parts of MNIST's training set, and its whole test set.

    The mean of the training images is subtracted from all.
    """
    (images, labels), (test_images, test_labels) = mnist()
    generator = np.random.default_rng(seed)
    rows = generator.permutation(MNIST_TRAIN)[: TO_CLEAN + PLANTED + VALID]
    first, last = rows[: TO_CLEAN + PLANTED], rows[TO_CLEAN + PLANTED :]
    wrong = np.zeros(len(first), bool)
    for part in (slice(0, TO_CLEAN), slice(TO_CLEAN, None)):
        wrong[part] = generator.permutation(np.arange(len(wrong[part])) % 2 == 0)
    others = (labels[first] + generator.integers(1, 10, len(first))) % 10
    given = np.where(wrong, others, labels[first]).astype(np.int32)
    mean = images[first].mean(axis=0)
    return Data(
        train=Split(images[first] - mean, given),
        wrong=wrong,
        valid=Split(images[last] - mean, labels[last]),
        test=Split(test_images - mean, test_labels),
        planted_labels=labels[first][TO_CLEAN:],
    )


class Batch(NamedTuple):
    """The rows of a step in the training and in the validation set."""

    train: jax.Array
    valid: jax.Array


def batches(step: jax.Array) -> Batch:
    return Batch(_rows(step, BATCH, TO_CLEAN + PLANTED), _rows(step, VALID_BATCH, VALID))


def _rows(step: jax.Array, size: int, of: int) -> jax.Array:
    return (step * size + jnp.arange(size)) % of


def initial(model: str, key: jax.Array) -> Layers:
    """Return one model at its start: the linear one at 0, and the network by He et al. (2015)."""
    sizes = SIZES[model]
    return network(key, sizes, [0.0] if len(sizes) == 2 else [(2 / inputs) ** 0.5 for inputs in sizes[:-1]])


def init(model: str, key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    """Return the two models, with a leading axis; they start alike."""
    both: Layers = jax.tree.map(lambda x: jnp.stack([x] * HALVES), initial(model, key))
    return both


def at(split: Split, rows: jax.Array) -> Split:
    """Return some examples of a data set."""
    return Split(jnp.asarray(split.images)[rows], jnp.asarray(split.labels)[rows])


def train_loss(seed: int, l2: float, params: Layers, h: dict[str, Any], batch: Batch, key: jax.Array) -> jax.Array:
    """Return the sum of the models' losses; each is divided by the number of training images, not by their weights."""
    found = data(seed)

    def of_model(params: Layers, half: jax.Array) -> jax.Array:
        weighted = h["weight"][batch.train] * losses(params, at(found.train, batch.train))
        seen = batch.valid % HALVES != half
        right = jnp.where(seen, losses(params, at(found.valid, batch.valid)), 0.0)
        penalty = sum(jnp.sum(layer["weights"] ** 2) for layer in params)
        return (jnp.sum(weighted) + jnp.sum(right)) / BATCH + l2 * penalty

    return jnp.sum(jax.vmap(of_model)(params, jnp.arange(HALVES)))


def valid_loss(seed: int, params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    """Return the loss of each validation image under the model that has not seen it."""
    by_model = jax.vmap(lambda one: losses(one, data(seed).valid))(params)
    rows = jnp.arange(VALID)
    return by_model[rows % HALVES, rows]


def test_loss(seed: int, params: Layers, hyperparameters: dict[str, Any]) -> jax.Array:
    """Return the mean of the models' losses for each test image."""
    return jnp.mean(jax.vmap(lambda one: losses(one, data(seed).test))(params), axis=0)


def losses(params: Layers, split: Split) -> jax.Array:
    """Return the loss of each example under one model."""
    return cross_entropy(params, split, jax.nn.relu)


def accuracy(params: Layers, split: Split) -> float:
    """Return the share of examples that one model classifies right."""
    return float(jnp.mean(jnp.argmax(logits(params, split.images, jax.nn.relu), axis=1) == split.labels))


def falling(step: jax.Array) -> jax.Array:
    """Return the share of the learning rate at a step, which falls to 0: no image counts more for being last."""
    return 0.5 * (1 + jnp.cos(jnp.pi * step / STEPS))


def problem(model: str = "linear", seed: int = 0, l2: float = L2) -> tuple[TrainingProblem, Space]:
    """Return the problem and its space; the model is one of `SIZES`."""
    return (
        TrainingProblem(
            init=functools.partial(init, model),
            train_loss=functools.partial(train_loss, seed, l2),
            valid_loss=functools.partial(valid_loss, seed),
            test_loss=functools.partial(test_loss, seed),
            batches=batches,
            optimizer=adamw(lambda h, step: RATE * falling(step), 0.9, 0.99, eps=1e-4),
            steps=STEPS,
        ),
        {"weight": Float(0.0, 1.0, shape=(TO_CLEAN + PLANTED,))},
    )
