"""The time of evaluations of a convolutional network, beside that of a Python loop over a jitted step of optax.

The loop is what one would write without this package. It trains on scikit-learn's digits, and computes the validation
loss at the end; the evaluations do the same, with and without the gradient.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad_search import Method, Reversible, TrainingProblem, Unrolled, adamw, evaluate
from hypergrad_studies.networks import Split
from hypergrad_studies.problems import digits

STEPS = 100
RATE, WEIGHT_DECAY = 1e-3, 1e-2
CHANNELS = (16, 32)

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Timing:
    """The seconds of one way in each round, and their ratios to the loop's seconds in the same round."""

    way: str
    seconds: list[float]
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the ratios."""
        low, high = np.quantile(self.ratios, [0.25, 0.75]).tolist()
        return low, high


def problem() -> TrainingProblem:
    """Return the training run: two convolutions, each with a mean over windows of 2 x 2, and a linear layer."""

    def train_loss(params: Params, h: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
        return jnp.mean(_losses(params, batch))

    return TrainingProblem(
        init=lambda key, h: _initial(key),
        train_loss=train_loss,
        valid_loss=lambda params, h: _losses(params, digits.splits()[1]),
        batches=digits.batches,
        optimizer=adamw("rate", weight_decay="weight_decay"),
        steps=STEPS,
    )


def _initial(key: jax.Array) -> Params:
    shapes = {"first": (3, 3, 1, CHANNELS[0]), "second": (3, 3, *CHANNELS), "last": (2 * 2 * CHANNELS[1], 10)}
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: jax.random.normal(k, shape) * math.prod(shape[:-1]) ** -0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return {**weights, **{f"{name}_bias": jnp.zeros(shape[-1]) for name, shape in shapes.items()}}


def _losses(params: Params, data: Split) -> jax.Array:
    x = jnp.asarray(data.images).reshape(-1, 8, 8, 1)
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + params[f"{name}_bias"][None, None, None])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    scores = x.reshape(len(x), -1) @ params["last"] + params["last_bias"][None]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.asarray(data.labels)[:, None], axis=1)[:, 0]


def weights() -> int:
    """Return how many weights the network has."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(_initial, jax.random.key(0))))


def _loop(run: TrainingProblem) -> Callable[[], float]:
    """Return a function that trains by a Python loop over a jitted step of optax, and returns the validation loss."""
    optimizer = optax.adamw(RATE, weight_decay=WEIGHT_DECAY)
    train, _, _ = digits.splits()

    @jax.jit
    def step(params: Params, state: Any, batch: Split) -> tuple[Params, Any]:
        gradient = jax.grad(lambda params: jnp.mean(_losses(params, batch)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    valid_loss = jax.jit(lambda params: jnp.mean(run.valid_loss(params, {})))

    def trained() -> float:
        params = _initial(jax.random.split(jax.random.key(0))[0])  # as an evaluation does it
        state = optimizer.init(params)
        for i in range(run.steps):
            rows = slice(i * digits.BATCH % digits.TRAIN, i * digits.BATCH % digits.TRAIN + digits.BATCH)
            params, state = step(params, state, Split(train.images[rows], train.labels[rows]))
        return float(valid_loss(params))

    return trained


def ways() -> dict[str, Callable[[], float]]:
    """Return by name the functions whose times are compared, each of which returns the validation loss."""
    run = problem()

    def evaluated(method: Method, gradient_below: float) -> float:
        h = {"rate": RATE, "weight_decay": WEIGHT_DECAY}
        return evaluate(run, h, key=jax.random.key(0), method=method, gradient_below=gradient_below).value

    return {"loop": _loop(run)} | {
        f"{name}-{what}": functools.partial(evaluated, method, below)
        for name, method in {"unrolled": Unrolled(), "reversible": Reversible()}.items()
        for what, below in {"value": -math.inf, "gradient": math.inf}.items()
    }


def measure(rounds: int) -> list[Timing]:
    """Return the times of all ways, which take turns in each round; compiling is left out."""
    compared = ways()
    for run in compared.values():
        run()
    seconds: dict[str, list[float]] = {way: [] for way in compared}
    for _ in range(rounds):
        for way, run in compared.items():
            began = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - began)
    return [
        Timing(way, mine, [one / loop for one, loop in zip(mine, seconds["loop"], strict=True)])
        for way, mine in seconds.items()
    ]
