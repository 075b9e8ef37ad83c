"""l2-per-weight: an L2 penalty for each of the 7,850 weights and biases of a linear model, shown as images.

Maclaurin, Duvenaud and Adams 2015, section 3.2: 784-10, one pass of 50 steps over 10,000 images of MNIST, rate 1, decay
0.9, initial weights of scale e^-4; 10,000 images to validate. On scikit-learn's digits 650 penalties. What is searched
are log penalties, from log 0.01 + 1, and the outer loss has 0.01 times the sum of the penalties' squares in it, as in
the authors' code. Two outer loops: "paper", gradient descent with step 1000, and "hypergrad", `HypergradSampler`.

The outer loss depends on penalties as well as weights, where a `valid_loss` sees parameters alone: so `init` puts the
penalties among the parameters. Nothing in training depends on them there, so they stay as they are, to the bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, TrainingProblem, sgd
from hypergrad_studies.papers import figures, mnist, outer
from hypergrad_studies.papers.outer import Descent, Reported, Sampled
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.problems import digits

STEPS, BATCH = 50, 200
ITERATIONS = 50
INITIAL_SCALE = math.exp(-4)
PRIOR = 0.01
START = {"log_l2_biases": math.log(0.01) + 1, "log_l2_weights": math.log(0.01) + 1}
OUTPUTS = 10


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, the data (training, validation, test), and what the paper reports there."""

    pixels: int
    data: Callable[[], tuple[digits.Split, digits.Split, digits.Split]]
    reported: Reported | None = None


def _mnist() -> tuple[digits.Split, digits.Split, digits.Split]:
    parts = mnist.parts()
    return parts.train, parts.valid, parts.test


def _digits() -> tuple[digits.Split, digits.Split, digits.Split]:
    train, valid, test = digits.splits()
    return train, valid, test


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, _digits),
    "paper": Setup(784, _mnist, Reported(0.76, 0.425, 0.45, ITERATIONS)),
}


def space(setup: Setup, low: float, high: float) -> dict[str, Float]:
    """The log penalties of biases and weights."""
    return {
        "log_l2_biases": Float(low, high, shape=(OUTPUTS,)),
        "log_l2_weights": Float(low, high, shape=(setup.pixels, OUTPUTS)),
    }


def problem(setup: Setup) -> TrainingProblem:
    """Training of a linear model, and the outer loss."""
    train, valid, test = jax.tree.map(jnp.asarray, setup.data())

    def init(key: jax.Array, hyperparameters: dict[str, Any]) -> dict[str, Any]:
        (layer,) = digits.normal_network(key, (setup.pixels, OUTPUTS), INITIAL_SCALE)
        return {"layer": layer, "log_l2": penalties(hyperparameters)}

    def penalties(hyperparameters: dict[str, Any]) -> dict[str, Any]:
        return {part: hyperparameters[f"log_l2_{part}"] for part in ("weights", "biases")}

    def train_loss(params: Any, hyperparameters: dict[str, Any], batch: digits.Split, key: jax.Array) -> jax.Array:
        terms = jax.tree.map(lambda w, log: jnp.sum(jnp.exp(log) * w**2), params["layer"], penalties(hyperparameters))
        return digits.cross_entropy([params["layer"]], batch) + sum(jax.tree.leaves(terms))

    def valid_loss(params: Any) -> jax.Array:
        squares = jax.tree.map(lambda log: jnp.sum(jnp.exp(2 * log)), params["log_l2"])
        return digits.cross_entropy([params["layer"]], valid) + PRIOR * sum(jax.tree.leaves(squares))

    def batches(step: jax.Array) -> digits.Split:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * BATCH % len(x), BATCH), train)

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=valid_loss,
        test_loss=lambda params: digits.cross_entropy([params["layer"]], test),
        batches=batches,
        optimizer=sgd(1.0, 0.9, dampening=True),
        steps=STEPS,
    )


def searches(setup: Setup) -> dict[str, outer.Search]:
    """The paper's outer loop, and `HypergradSampler`."""
    training = problem(setup)
    return {
        "paper": Descent(training, space(setup, -40.0, 4.0), START, ITERATIONS, optimizer=optax.sgd(1000.0)),
        "hypergrad": Sampled(
            training, space(setup, -12.0, 2.0), START, ITERATIONS, sampler=lambda s: HypergradSampler(seed=s)
        ),
    }


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl`, `l2-per-weight.svg` and `penalties.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    loops = searches(setup)
    done = outer.run(loops, seeds, out, console)
    pictures = {name: loop.found(name, 0, out)["log_l2_weights"].T for name, loop in loops.items()}
    figures.images(out / "penalties.svg", {f"log penalty, {name}": x for name, x in pictures.items()}, symmetric=False)
    figure, (axes,) = figures.panels(1, 1)
    figures.outer_loop(axes, done, setup.reported, "validation loss and prior")
    figure.savefig(out / "l2-per-weight.svg")
    rows = outer.ends(loops, done, "validation loss and prior", setup.reported)
    return medians("l2-per-weight", rows, outer.seconds(done), scale)
