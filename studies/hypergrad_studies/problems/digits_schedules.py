"""digits-schedules: 1,608 hyperparameters of a 64-50-50-50-10 tanh network, 100 steps on scikit-learn's digits.

Each of its 8 arrays, the biases and weights of 4 layers, has its own initial scale, and its own learning rate and
momentum at each step, as in Maclaurin et al. (2015).
"""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Float, Space, TrainingProblem, sgd
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

SIZES = (64, 50, 50, 50, 10)
STEPS = 100
STRUCTURE = jax.tree.structure([{"weights": 0, "biases": 0}] * (len(SIZES) - 1))
LEAVES = 2 * (len(SIZES) - 1)

SPACE: Space = {
    "learning_rate": Float(1e-2, 10.0, log=True, shape=(LEAVES, STEPS)),
    "momentum": Float(0.5, 0.99, shape=(LEAVES, STEPS)),
    "init_scale": Float(1e-2, 1.0, log=True, shape=(LEAVES,)),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Layers:
    shapes = jax.tree.leaves(jax.eval_shape(lambda: network(key, SIZES, [1.0] * (len(SIZES) - 1))))
    scales, keys = hyperparameters["init_scale"], jax.random.split(key, LEAVES)
    leaves = [scales[i] * jax.random.normal(keys[i], leaf.shape) for i, leaf in enumerate(shapes)]
    return _layers(leaves)


def train_loss(params: Layers, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    return jnp.mean(cross_entropy(params, batch))


def learning_rate(hyperparameters: dict[str, Any], step: jax.Array) -> Layers:
    return _layers(list(hyperparameters["learning_rate"][:, step]))


def momentum(hyperparameters: dict[str, Any], step: jax.Array) -> Layers:
    return _layers(list(hyperparameters["momentum"][:, step]))


def _layers(leaves: list[jax.Array]) -> Layers:
    layers: Layers = jax.tree.unflatten(STRUCTURE, leaves)
    return layers


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=sgd(learning_rate, momentum, dampening=True),
            steps=STEPS,
        ),
        SPACE,
    )
