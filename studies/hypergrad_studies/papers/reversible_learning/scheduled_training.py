"""Training whose learning rate and decay follow a schedule for each array of a network, for the studies of schedules.

The network of Maclaurin, Duvenaud and Adams 2015, section 3.1, is 784-50-50-50-10 with tanh (64-... on scikit-learn's
digits), trained for 100 steps on random batches of 200. Its outer loss is the training loss on all images.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Optimizer, TrainingProblem, sgd
from hypergrad_search.space import Hyperparameters
from hypergrad_studies.networks import Split, cross_entropy
from hypergrad_studies.papers.results import Scale
from hypergrad_studies.papers.reversible_learning import mnist
from hypergrad_studies.papers.reversible_learning.comparison import Reported
from hypergrad_studies.problems import digits

STEPS, BATCH = 100, 200


@dataclass(frozen=True)
class Setup:
    """What a scale means: the network, its data (training, test), what the paper reports, and the steps of training."""

    sizes: tuple[int, ...]
    data: Callable[[], tuple[Split, Split]]
    reported: Reported | None = None
    steps: int = STEPS


def _mnist() -> tuple[Split, Split]:
    parts = mnist.parts()
    return parts.train, parts.test


def _digits() -> tuple[Split, Split]:
    train, _, test = digits.splits()
    return train, test


SETUPS: dict[Scale, Setup] = {
    "small": Setup((64, 50, 50, 50, 10), _digits),
    "paper": Setup((784, 50, 50, 50, 10), _mnist, Reported(0.531, 0.1235, 0.245, 50)),
}


def structure(sizes: Sequence[int]) -> Any:
    """Return the structure of a network's parameters; its leaves are each layer's biases and weights, in this order."""
    return jax.tree.structure([{"weights": 0, "biases": 0}] * (len(sizes) - 1))


def space(sizes: Sequence[int]) -> dict[str, Float]:
    """Return the paper's hyperparameters, in a box around what it found.

    They are logarithms of rates, logits of decays and logarithms of initial scales.
    """
    arrays = structure(sizes).num_leaves
    return {
        "log_learning_rate": Float(-4.0, 3.0, shape=(arrays, STEPS)),
        "logit_momentum": Float(-4.0, 4.0, shape=(arrays, STEPS)),
        "log_init_scale": Float(-6.0, 0.0, shape=(arrays,)),
    }


def at(setup: Setup, transform: Callable[[jax.Array], jax.Array], name: str) -> Callable[[Hyperparameters, Any], Any]:
    """Return an optimizer's setting: `transform` of the schedule `name`, for each array at each step.

    A single number stands for a schedule that is the same everywhere. A schedule of `STEPS` entries is stretched where
    training is longer.
    """

    def setting(hyperparameters: Hyperparameters, step: jax.Array) -> Any:
        tree = structure(setup.sizes)
        schedule = jnp.broadcast_to(hyperparameters[name], (tree.num_leaves, STEPS))
        return jax.tree.unflatten(tree, list(transform(schedule[:, step * STEPS // setup.steps])))

    return setting


def momentum(setup: Setup) -> Optimizer:
    """Return momentum in the dampened form, with a schedule of rates and one of decays for each array."""
    return sgd(at(setup, jnp.exp, "log_learning_rate"), at(setup, jax.nn.sigmoid, "logit_momentum"), dampening=True)


def problem(setup: Setup, networks: int = 1, optimizer: Callable[[Setup], Optimizer] = momentum) -> TrainingProblem:
    """Return the training of several networks at once, each from its own initial weights on its own batches.

    The outer loss and the test loss are the mean of the networks' losses. Each parameter has the networks as its first
    axis.
    """
    images, test = jax.tree.map(jnp.asarray, setup.data())
    tree = structure(setup.sizes)

    def init(key: jax.Array, hyperparameters: Hyperparameters) -> Any:
        shapes = [shape for pair in itertools.pairwise(setup.sizes) for shape in (pair[1:], pair)]
        scales = list(jnp.exp(jnp.broadcast_to(hyperparameters["log_init_scale"], (tree.num_leaves,))))
        keys = jax.random.split(key, tree.num_leaves)
        drawn = [jax.random.normal(k, (networks, *shape)) for k, shape in zip(keys, shapes, strict=True)]
        return jax.tree.unflatten(tree, [scale * x for scale, x in zip(scales, drawn, strict=True)])

    def train_loss(params: Any, hyperparameters: Hyperparameters, batch: None, key: jax.Array) -> jax.Array:
        def one(layers: Any, key: jax.Array) -> jax.Array:
            rows = jax.random.randint(key, (BATCH,), 0, len(images.labels))
            return jnp.mean(cross_entropy(layers, jax.tree.map(lambda x: x[rows], images)))

        return jnp.sum(jax.vmap(one)(params, jax.random.split(key, networks)))

    def mean_loss(params: Any, data: Split) -> jax.Array:
        return jnp.mean(jax.vmap(lambda layers: jnp.mean(cross_entropy(layers, data)))(params))

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda params, hyperparameters: mean_loss(params, images),
        test_loss=lambda params, hyperparameters: mean_loss(params, test),
        batches=lambda step: None,
        optimizer=optimizer(setup),
        steps=setup.steps,
    )
