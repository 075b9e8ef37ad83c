"""Search the settings of an everyday training loop: Python, NumPy batches, and a jitted step of optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from sklearn.datasets import load_digits

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters
from hypergrad_search import Float, from_function

STEPS = 60
images, labels = load_digits(return_X_y=True)
images = np.float32(images / 16)


def losses(weights: dict[str, jax.Array], x: Any, y: Any) -> jax.Array:
    """Return the cross-entropy of each example."""
    scores = jax.nn.log_softmax(jnp.tanh(x @ weights["hidden"]) @ weights["output"])
    return -jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]


def optimizer(h: dict[str, jax.Array]) -> optax.GradientTransformation:
    # Adam's square root has no derivative at 0, where weights of empty pixels are; eps_root keeps it off.
    adamw = optax.adamw(optax.cosine_decay_schedule(h["rate"], STEPS), weight_decay=h["decay"], eps_root=1e-8)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


@jax.jit
def step(weights: Any, state: Any, x: Any, y: Any, h: dict[str, jax.Array]) -> tuple[Any, Any]:
    gradient = jax.grad(lambda weights: losses(weights, x, y).mean())(weights)
    updates, state = optimizer(h).update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state


def train(h: dict[str, jax.Array]) -> jax.Array:
    """Return the loss of each validation example after training."""
    random = np.random.default_rng(0)  # the same at each call
    drawn = {"hidden": random.normal(size=(64, 32)), "output": random.normal(size=(32, 10))}
    weights = {name: h["scale"] * np.float32(x) for name, x in drawn.items()}
    state = optimizer(h).init(weights)
    for _ in range(STEPS):
        rows = random.integers(1000, size=100)
        weights, state = step(weights, state, images[rows], labels[rows], h)
    return losses(weights, images[1000:1400], labels[1000:1400])


problem = from_function(train)
space = {"rate": Float(1e-4, 0.1, log=True), "decay": Float(1e-4, 10.0, log=True), "scale": Float(0.01, 1.0, log=True)}

if __name__ == "__main__":
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(problem, space), n_trials=20)
    print(f"validation loss {study.best_value:.4f} with {best_hyperparameters(study)}")
