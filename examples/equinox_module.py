"""Tune an everyday training run in Equinox by exact gradients: on MNIST if called with `mnist`, else on digits.

A CNN with batch normalisation and dropout, in bfloat16, is trained on batches that the host loads, with clipping,
AdamW, a warm-up and a cosine. Eight of its settings are tuned.
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
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


def network(key: jax.Array) -> eqx.nn.Sequential:
    one, two = jax.random.split(key)
    conv = eqx.nn.Conv2d(1, 16, 3, 2, 1, use_bias=False, key=one)
    norm = eqx.nn.BatchNorm(16, "batch", momentum=0.9, mode="batch")
    activation, output = eqx.nn.Lambda(jax.nn.silu), eqx.nn.Linear(16 * (SIZE // 2) ** 2, 10, key=two)
    return eqx.nn.Sequential([conv, norm, activation, eqx.nn.Lambda(jnp.ravel), eqx.nn.Dropout(0.2), output])


def init(key: jax.Array, h: Any) -> tuple[Any, Any]:
    model, statistics = eqx.nn.make_with_state(network)(key)
    return eqx.filter(model, eqx.is_inexact_array), statistics


def losses(params: Any, statistics: Any, batch: Any, smoothing: Any = 0.0, key: Any = None) -> tuple[Any, Any]:
    """Return the cross-entropy of each example, and the new statistics."""
    model = eqx.combine(jax.tree.map(lambda x: x.astype(COMPUTE), params), static)
    x, keys = jnp.asarray(batch[0][:, None] / SCALE, COMPUTE), key if key is None else jax.random.split(key, BATCH)
    ready = eqx.nn.inference_mode(model, key is None)  # dropout is on in training alone
    run: Any = jax.vmap(lambda x, s, k: ready(x, s, key=k), (0, None, 0), (0, None), axis_name="batch")
    scores, statistics = run(x, statistics, keys)
    scores, targets = scores.astype(jnp.float32), optax.smooth_labels(jax.nn.one_hot(batch[1], 10), smoothing)
    return optax.softmax_cross_entropy(scores, targets), statistics


def train_loss(params: Any, statistics: Any, h: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    found, statistics = losses(params, statistics, batch, h["smoothing"], key)
    return found.mean(), statistics


_, static = eqx.partition(eqx.nn.make_with_state(network)(jax.random.key(0))[0], eqx.is_inexact_array)
problem = TrainingProblem(init, train_loss, lambda p, s, h: losses(p, s, VALID)[0], HostBatches(load), OPTIMIZER, STEPS)

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
