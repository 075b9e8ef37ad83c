"""A network of plain functions, with dropout: its validation loss after training, and the hypergradient of that."""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, evaluate, sgd

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


def init(key, hyperparameters):
    first, second = jax.random.split(key)
    return {
        "hidden": 0.1 * jax.random.normal(first, (64, 32)),
        "output": 0.1 * jax.random.normal(second, (32, 10)),
    }


def loss(params, rows, dropout_key=None):
    hidden = jnp.tanh(images[rows] @ params["hidden"])
    if dropout_key is not None:
        hidden *= 2 * jax.random.bernoulli(dropout_key, 0.5, hidden.shape)
    scores = jax.nn.log_softmax(hidden @ params["output"])
    return -scores[jnp.arange(len(rows)), labels[rows]].mean()


def train_loss(params, hyperparameters, rows, key):
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return loss(params, rows, dropout_key=key) + hyperparameters["l2"] * penalty


problem = TrainingProblem(
    init=init,
    train_loss=train_loss,
    valid_loss=lambda params: loss(params, jnp.arange(1000, 1400)),
    batches=lambda step: (jnp.arange(100) + 100 * step) % 1000,
    optimizer=sgd(learning_rate="rate", momentum=0.9),
    steps=100,
)
hyperparameters = {"rate": 0.1, "l2": 1e-4}

if __name__ == "__main__":
    result = evaluate(problem, hyperparameters, key=jax.random.key(0))
    print(f"validation loss {result.value:.4f}, gradient {result.gradient}")
