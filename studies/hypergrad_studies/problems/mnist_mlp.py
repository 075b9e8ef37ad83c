"""mnist-mlp: 7 hyperparameters of a 784-50-10 tanh network, 100 steps on a sixth of MNIST, with as much to validate.

Rates and momentum may be lifted to schedules, penalties to one for each weight.
"""

import functools

import jax

from hypergrad_search import Space, TrainingProblem
from hypergrad_studies.data import mnist
from hypergrad_studies.problems import digits, tuned_mlp
from hypergrad_studies.problems.digits import Split

BATCH = 200
TRAIN, VALID = 10_000, 10_000  # of the training set; the test set is for the test
FITTED = 7500  # of the validation images, for gradients; these never see the others
SIZES = (784, 50, 10)
STEPS = 100

SPACE = tuned_mlp.space(SIZES, STEPS)


@functools.cache
def splits() -> dict[str, Split]:
    """By name: "train", "valid", its parts "fitted" and "held_back", and "test"; images less the training mean."""
    (images, labels), (test_images, test_labels) = mnist()
    mean = images[:TRAIN].mean(axis=0)
    ends = {"train": (0, TRAIN), "valid": (TRAIN, TRAIN + VALID)}
    ends |= {"fitted": (TRAIN, TRAIN + FITTED), "held_back": (TRAIN + FITTED, TRAIN + VALID)}
    parts = {name: Split(images[first:last] - mean, labels[first:last]) for name, (first, last) in ends.items()}
    return {**parts, "test": Split(test_images - mean, test_labels)}


def batches(step: jax.Array) -> Split:
    """The training set in turn, `BATCH` images a step."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * BATCH % TRAIN, BATCH), splits()["train"])


def loss_on(part: str, params: list[dict[str, jax.Array]]) -> jax.Array:
    """Cross-entropy on a part of the data."""
    return digits.cross_entropy(params, splits()[part])


def problem() -> tuple[TrainingProblem, Space]:
    """The problem and its space."""
    return (
        TrainingProblem(
            init=functools.partial(tuned_mlp.init, SIZES),
            train_loss=tuned_mlp.train_loss,
            valid_loss=functools.partial(loss_on, "valid"),
            fitted_loss=functools.partial(loss_on, "fitted"),
            held_back_loss=functools.partial(loss_on, "held_back"),
            test_loss=functools.partial(loss_on, "test"),
            batches=batches,
            optimizer=tuned_mlp.optimizer(SIZES),
            steps=STEPS,
        ),
        SPACE,
    )
