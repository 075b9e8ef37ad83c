"""Tune an everyday training run in Flax Linen by exact gradients: on MNIST if called with `mnist`, else on digits.

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
from flax import linen as nn
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


class Network(nn.Module):
    @nn.compact
    def __call__(self, batch: Any, smoothing: Any = 0.0, training: bool = False) -> Any:
        """Return the cross-entropy of each example."""
        x = nn.Conv(16, (3, 3), strides=2, use_bias=False, dtype=COMPUTE)(batch[0][..., None] / SCALE)
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9, dtype=COMPUTE)(x)
        x = nn.Dropout(0.2, deterministic=not training)(nn.silu(x).reshape(len(x), -1))
        scores = nn.Dense(10, dtype=COMPUTE)(x).astype(jnp.float32)
        return optax.softmax_cross_entropy(scores, optax.smooth_labels(jax.nn.one_hot(batch[1], 10), smoothing))


def init(key: jax.Array, h: Any) -> tuple[Any, Any]:
    variables = Network().init(key, VALID)
    return variables["params"], variables["batch_stats"]


def train_loss(params: Any, statistics: Any, h: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    variables, rngs = {"params": params, "batch_stats": statistics}, {"dropout": key}
    losses, new = Network().apply(variables, batch, h["smoothing"], training=True, rngs=rngs, mutable=["batch_stats"])
    return losses.mean(), new["batch_stats"]


def valid_loss(params: Any, statistics: Any, h: Any) -> Any:
    return Network().apply({"params": params, "batch_stats": statistics}, VALID)


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
