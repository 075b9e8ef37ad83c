"""Print the validation loss of a trained network of plain functions with dropout, and its hypergradient."""

from typing import Any

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, evaluate, sgd

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


def init(key: jax.Array, hyperparameters: Any) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {
        "hidden": 0.1 * jax.random.normal(first, (64, 32)),
        "output": 0.1 * jax.random.normal(second, (32, 10)),
    }


def losses(params: Any, rows: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Return the cross-entropy of each example."""
    hidden = jnp.tanh(images[rows] @ params["hidden"])
    if dropout_key is not None:
        hidden *= 2 * jax.random.bernoulli(dropout_key, 0.5, hidden.shape)
    scores = jax.nn.log_softmax(hidden @ params["output"])
    return -scores[jnp.arange(len(rows)), labels[rows]]


def train_loss(params: Any, hyperparameters: dict[str, jax.Array], rows: jax.Array, key: jax.Array) -> jax.Array:
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return losses(params, rows, dropout_key=key).mean() + hyperparameters["l2"] * penalty


problem = TrainingProblem(
    init=init,
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
