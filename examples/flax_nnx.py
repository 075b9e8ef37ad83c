"""Tune an everyday training run in Flax NNX by exact gradients: on MNIST if called with `mnist`, else on digits.

A CNN with batch normalisation and dropout, in bfloat16, is trained on batches that the host loads, with clipping,
AdamW, a warm-up and a cosine. Eight of its settings are tuned.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from flax import nnx
from sklearn.datasets import load_digits

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters
from hypergrad_search import Float, HostBatches, TrainingProblem, adamw, warmup_cosine
from hypergrad_studies.data import mnist

images, labels = mnist()[0] if "mnist" in sys.argv else load_digits(return_X_y=True)
SIZE, SCALE, TRAINED, STEPS, BATCH = int(images.shape[1] ** 0.5), images.max(), len(images) * 2 // 3, 100, 100
COMPUTE = jnp.bfloat16  # the type in which layers compute; the weights are float32
VALID = images[TRAINED : TRAINED + 500].reshape(-1, SIZE, SIZE), labels[TRAINED : TRAINED + 500]


def load(step: int) -> tuple[Any, Any]:
    rows = np.random.default_rng((0, step)).integers(0, TRAINED, BATCH)
    return images[rows].reshape(BATCH, SIZE, SIZE), labels[rows]


def rate(h: Any, step: Any) -> jax.Array:
    return warmup_cosine(h["peak"], h["warmup"], h["final"], steps=STEPS)(step)


OPTIMIZER = adamw(rate, "b1", "b2", weight_decay="decay", transform=lambda h: optax.clip_by_global_norm(h["clip"]))


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, use_bias=False, dtype=COMPUTE, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, dtype=COMPUTE, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)  # it gets the key of each step, so that the model keeps no random state
        self.output = nnx.Linear(16 * (SIZE // 2) ** 2, 10, dtype=COMPUTE, rngs=rngs)

    def losses(self, batch: Any, smoothing: Any = 0.0, key: jax.Array | None = None) -> Any:
        x, y = batch
        x = nnx.silu(self.norm(self.conv(x[..., None] / SCALE), use_running_average=key is None)).reshape(len(x), -1)
        x = x if key is None else self.dropout(x, rngs=nnx.Rngs(key))
        targets = optax.smooth_labels(jax.nn.one_hot(y, 10), smoothing)
        return optax.softmax_cross_entropy(self.output(x).astype(jnp.float32), targets)


def init(key: jax.Array, h: Any) -> tuple[Any, Any]:
    model = Network(nnx.Rngs(key))
    return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)


def train_loss(params: Any, statistics: Any, h: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    model = nnx.merge(graph, params, statistics)
    return model.losses(batch, h["smoothing"], key).mean(), nnx.state(model, nnx.BatchStat)


def valid_loss(params: Any, statistics: Any, h: Any) -> Any:
    return nnx.merge(graph, params, statistics).losses(VALID)


graph = nnx.graphdef(Network(nnx.Rngs(0)))
problem = TrainingProblem(init, train_loss, valid_loss, HostBatches(load), OPTIMIZER, STEPS)

space = {"warmup": Float(1, 50), "b1": Float(0.7, 0.97), "b2": Float(0.9, 0.999), "smoothing": Float(0.0, 0.2)}
space |= {"peak": Float(1e-4, 3e-2, log=True), "final": Float(1e-6, 1e-3, log=True)}
space |= {"decay": Float(1e-4, 1.0, log=True), "clip": Float(0.1, 10.0, log=True)}


def make() -> tuple[TrainingProblem, dict[str, Float]]:
    """Return the problem and its space, for `hypergrad compare` and `hypergrad sweep`."""
    return problem, space


if __name__ == "__main__":
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(problem, space), n_trials=10)
    print(f"validation loss {study.best_value:.4f} at {best_hyperparameters(study)}")
