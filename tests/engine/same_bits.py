"""Print hashes of what exact training gives: final weights and hypergradients, for sgd, adam and adamw.

`test_same_bits.py` runs this in a process of its own, in which the instructions that XLA may use are pinned.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Optimizer, Reversible, TrainingProblem, adam, adamw, evaluate, sgd, train

STEPS = 40
DATA = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
TARGETS = (DATA @ np.arange(5) + np.sin(DATA[:, 0])).astype(np.float32)

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda rate: sgd(rate, "decay"),
    "adam": lambda rate: adam(rate, "decay", 0.95, 1e-4),
    "adamw": lambda rate: adamw(rate, "decay", 0.95, 1e-4, weight_decay="penalty"),
}


def init(key: jax.Array, h: dict[str, Any]) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 3)
    return {
        "into": h["scale"] * jax.random.normal(keys[0], (5, 7)),
        "out": h["scale"] * jax.random.normal(keys[1], (7,)),
        "bias": 0.1 * jax.random.normal(keys[2], ()),
    }


# These are sums of products, since the kernels of matrix products depend on the processor.
def linear(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.sum(x[:, :, None] * params["into"], axis=(1, 2)) + params["bias"] + jnp.sum(params["out"])


def network(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(jnp.sum(x[:, :, None] * params["into"], axis=1))
    return jnp.sum(hidden * params["out"], axis=1) + params["bias"]


def problems(optimizer: Any) -> dict[str, TrainingProblem]:
    """A linear model, a network with a penalty, and a network with noise of its own at each step."""

    def error(predict: Any, params: Any, rows: Any, targets: Any) -> jax.Array:
        return jnp.mean((predict(params, rows) - targets) ** 2)

    def batches(step: jax.Array) -> Any:
        rows = (step * 10 + jnp.arange(10)) % 40
        return jnp.asarray(DATA)[rows], jnp.asarray(TARGETS)[rows]

    def problem(predict: Any, extra: Any) -> TrainingProblem:
        return TrainingProblem(
            init=init,
            train_loss=lambda params, h, batch, key: error(predict, params, *batch) + extra(params, h, key),
            valid_loss=lambda params, h: error(predict, params, DATA[40:], TARGETS[40:]),
            batches=batches,
            optimizer=optimizer,
            steps=STEPS,
        )

    return {
        "linear": problem(linear, lambda params, h, key: 0.0 * h["penalty"]),
        "penalised": problem(network, lambda params, h, key: h["penalty"] * jnp.sum(params["into"] ** 2)),
        "noisy": problem(network, lambda params, h, key: jnp.sum(params["out"] * jax.random.normal(key, (7,))) * 0.1),
    }


def digest(tree: Any) -> str:
    """A hash of all bits of a pytree of arrays."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()[:16]


def hashes() -> dict[str, str]:
    """Return hashes of the final weights and the hypergradient, for each optimizer and problem.

    For one problem there is also that of the gradient by `jax.grad` through `train`, which takes long to compile.
    """
    found = {}
    key = jax.random.key(0)
    for name, make in OPTIMIZERS.items():
        for kind, problem in problems(make("rate")).items():
            h = {"rate": 0.02, "decay": 0.8, "scale": 0.3, "penalty": 0.01}
            h = {n: jnp.float32(x) for n, x in h.items()}
            found[f"{name}, {kind}: final weights"] = digest(train(problem, h, key))
            evaluation = evaluate(problem, h, key=key, method=Reversible())
            found[f"{name}, {kind}: hypergradient"] = digest(evaluation.gradient)
            if kind == "penalised":
                through = jax.grad(lambda h, p=problem: jnp.sum(train(p, h, key)["into"] ** 2))(h)
                found[f"{name}, {kind}: gradient through train"] = digest(through)
    return found


if __name__ == "__main__":
    print(json.dumps(hashes()))
