"""Print the validation loss of a trained Flax NNX model with dropout, and the hypergradient of this loss."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, adam, evaluate

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)  # it gets each step's key below, so that the module keeps no random state
        self.output = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        x = nnx.tanh(self.hidden(x))
        if dropout_key is not None:
            x = self.dropout(x, rngs=nnx.Rngs(dropout_key))
        return self.output(x)


graphdef, _ = nnx.split(Network(nnx.Rngs(0)), nnx.Param)


def losses(params: Any, rows: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Return the cross-entropy of each example."""
    model = nnx.merge(graphdef, params)
    scores = jax.nn.log_softmax(model(images[rows], dropout_key))
    return -scores[jnp.arange(len(rows)), labels[rows]]


def train_loss(params: Any, hyperparameters: dict[str, jax.Array], rows: jax.Array, key: jax.Array) -> jax.Array:
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return losses(params, rows, dropout_key=key).mean() + hyperparameters["l2"] * penalty


problem = TrainingProblem(
    init=lambda key, hyperparameters: nnx.state(Network(nnx.Rngs(key)), nnx.Param),
    train_loss=train_loss,
    valid_loss=lambda params, hyperparameters: losses(params, jnp.arange(1000, 1400)),
    batches=lambda step: (jnp.arange(100) + 100 * step) % 1000,
    optimizer=adam(learning_rate="rate", eps=1e-3),
    steps=100,
)
hyperparameters = {"rate": 0.01, "l2": 1e-4}

if __name__ == "__main__":
    result = evaluate(problem, hyperparameters, key=jax.random.key(0))
    print(f"validation loss {result.value:.4f} +- {result.standard_error:.4f}, gradient {result.gradient}")
