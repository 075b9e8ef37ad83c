"""Print the validation loss of a trained Flax Linen model, with dropout and layer norms, and its hypergradient."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, evaluate, sgd

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.LayerNorm()(nn.Dense(32)(x))
        x = nn.Dropout(0.2)(nn.tanh(x), deterministic=not train)
        return nn.Dense(10)(x)


model = Network()


def losses(params: Any, rows: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Return the cross-entropy of each example."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    scores: Any = model.apply({"params": params}, images[rows], train=dropout_key is not None, rngs=rngs)
    return -jax.nn.log_softmax(scores)[jnp.arange(len(rows)), labels[rows]]


def train_loss(params: Any, hyperparameters: dict[str, jax.Array], rows: jax.Array, key: jax.Array) -> jax.Array:
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return losses(params, rows, dropout_key=key).mean() + hyperparameters["l2"] * penalty


problem = TrainingProblem(
    init=lambda key, hyperparameters: model.init(key, images[:1])["params"],
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
