"""A Flax Linen model with layer normalisation and dropout: its validation loss, and the hypergradient of that."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from sklearn.datasets import load_digits

from hypergrad_search import TrainingProblem, evaluate, sgd

digits = load_digits()
images, labels = jnp.asarray(digits.images.reshape(-1, 64) / 16), jnp.asarray(digits.target)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.LayerNorm()(nn.Dense(32)(x))
        x = nn.Dropout(0.2)(nn.tanh(x), deterministic=not train)
        return nn.Dense(10)(x)


model = Network()


def mean_loss(scores, rows):
    return -jax.nn.log_softmax(scores)[jnp.arange(len(rows)), labels[rows]].mean()


def train_loss(params, hyperparameters, rows, key):
    scores = model.apply({"params": params}, images[rows], train=True, rngs={"dropout": key})
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return mean_loss(scores, rows) + hyperparameters["l2"] * penalty


def valid_loss(params):
    rows = jnp.arange(1000, 1400)
    return mean_loss(model.apply({"params": params}, images[rows]), rows)


problem = TrainingProblem(
    init=lambda key, hyperparameters: model.init(key, images[:1])["params"],
    train_loss=train_loss,
    valid_loss=valid_loss,
    batches=lambda step: (jnp.arange(100) + 100 * step) % 1000,
    optimizer=sgd(learning_rate="rate", momentum=0.9),
    steps=100,
)
hyperparameters = {"rate": 0.1, "l2": 1e-4}

if __name__ == "__main__":
    result = evaluate(problem, hyperparameters, key=jax.random.key(0))
    print(f"validation loss {result.value:.4f}, gradient {result.gradient}")
