"""Print the validation loss of a trained Equinox module with dropout, and the hypergradient of this loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, evaluate, sgd

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


def network(key: jax.Array) -> eqx.nn.Sequential:
    first, second = jax.random.split(key)
    hidden, output = eqx.nn.Linear(64, 32, key=first), eqx.nn.Linear(32, 10, key=second)
    return eqx.nn.Sequential([hidden, eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.2), output])


_, static = eqx.partition(network(jax.random.key(0)), eqx.is_inexact_array)


def losses(params: Any, rows: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Return the cross-entropy of each example."""
    model = eqx.nn.inference_mode(eqx.combine(params, static), dropout_key is None)
    if dropout_key is None:
        scores = jax.vmap(model)(images[rows])
    else:
        scores = jax.vmap(lambda x, key: model(x, key=key))(images[rows], jax.random.split(dropout_key, len(rows)))
    return -jax.nn.log_softmax(scores)[jnp.arange(len(rows)), labels[rows]]


def train_loss(params: Any, hyperparameters: dict[str, jax.Array], rows: jax.Array, key: jax.Array) -> jax.Array:
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return losses(params, rows, dropout_key=key).mean() + hyperparameters["l2"] * penalty


problem = TrainingProblem(
    init=lambda key, hyperparameters: eqx.partition(network(key), eqx.is_inexact_array)[0],
    train_loss=train_loss,
    valid_loss=lambda params, hyperparameters: losses(params, jnp.arange(1000, 1400)),
    batches=lambda step: (jnp.arange(100) + 100 * step) % 1000,
    optimizer=sgd(learning_rate="rate", momentum=0.9),
    steps=100,
)
hyperparameters = {"rate": 0.1, "l2": 1e-4}

if __name__ == "__main__":
    result = evaluate(problem, hyperparameters, key=jax.random.key(0))
    print(f"validation loss {result.value:.4f} +- {result.standard_error:.4f}, gradient {result.gradient}")
