"""l2-per-weight: an L2 penalty for each of the 7,850 weights and biases of a linear model, shown as images.

Maclaurin, Duvenaud and Adams 2015, section 3.2: 784-10, one pass of 50 steps over 10,000 images of MNIST, rate 1, decay
0.9, initial weights of scale e^-4; 10,000 images to validate. On scikit-learn's digits there are 650 penalties. The
hyperparameters are log penalties, from log 0.01 + 1, and the outer loss contains 0.01 times the sum of the penalties'
squares, as in the authors' code. There are two outer loops: "paper", gradient descent with step 1000, and "hypergrad",
`HypergradSampler`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, TrainingProblem, sgd
from hypergrad_search.space import Hyperparameters
from hypergrad_studies.networks import Layers, Split, cross_entropy, in_turn, normal_network
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, mnist, outer
from hypergrad_studies.papers.reversible_learning.comparison import Reported
from hypergrad_studies.papers.reversible_learning.descent import Descent
from hypergrad_studies.papers.reversible_learning.outer import OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled
from hypergrad_studies.problems import digits

STEPS, BATCH = 50, 200
ITERATIONS = 50
INITIAL_SCALE = math.exp(-4)
PRIOR = 0.01
START = {"log_l2_biases": math.log(0.01) + 1, "log_l2_weights": math.log(0.01) + 1}
OUTPUTS = 10
PARTS = ("biases", "weights")


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, the data (training, validation, test), and what the paper reports there."""

    pixels: int
    data: Callable[[], tuple[Split, Split, Split]]
    reported: Reported | None = None


def _mnist() -> tuple[Split, Split, Split]:
    parts = mnist.parts()
    return parts.train, parts.valid, parts.test


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, digits.splits),
    "paper": Setup(784, _mnist, Reported(0.76, 0.425, 0.45, ITERATIONS)),
}


def space(setup: Setup, low: float, high: float) -> dict[str, Float]:
    """Return the space of the log penalties of biases and weights."""
    return {
        "log_l2_biases": Float(low, high, shape=(OUTPUTS,)),
        "log_l2_weights": Float(low, high, shape=(setup.pixels, OUTPUTS)),
    }


def problem(setup: Setup) -> TrainingProblem:
    """Return the training of a linear model, with the outer loss."""
    train, valid, test = jax.tree.map(jnp.asarray, setup.data())

    def train_loss(params: Layers, hyperparameters: Hyperparameters, batch: Split, key: jax.Array) -> jax.Array:
        (layer,) = params
        terms = [jnp.sum(jnp.exp(hyperparameters[f"log_l2_{part}"]) * layer[part] ** 2) for part in PARTS]
        return jnp.mean(cross_entropy(params, batch)) + sum(terms)

    def valid_loss(params: Layers, hyperparameters: Hyperparameters) -> jax.Array:
        squares = [jnp.sum(jnp.exp(2 * hyperparameters[f"log_l2_{part}"])) for part in PARTS]
        return jnp.mean(cross_entropy(params, valid)) + PRIOR * sum(squares)

    return TrainingProblem(
        init=lambda key, hyperparameters: normal_network(key, (setup.pixels, OUTPUTS), INITIAL_SCALE),
        train_loss=train_loss,
        valid_loss=valid_loss,
        test_loss=lambda params, hyperparameters: jnp.mean(cross_entropy(params, test)),
        batches=lambda step: in_turn(train, step, BATCH),
        optimizer=sgd(1.0, 0.9, dampening=True),
        steps=STEPS,
    )


def outer_loops(setup: Setup) -> dict[str, OuterLoop]:
    """Return the paper's outer loop, and `HypergradSampler`."""
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
    loops = outer_loops(setup)
    done = outer.record(loops, seeds, out, console)
    pictures = {name: loop.found(name, 0, out)["log_l2_weights"].T for name, loop in loops.items()}
    figures.images(out / "penalties.svg", {f"log penalty, {name}": x for name, x in pictures.items()}, symmetric=False)
    figure, (axes,) = figures.panels(1, 1)
    comparison.draw(axes, done, setup.reported, "validation loss and prior")
    figure.savefig(out / "l2-per-weight.svg")
    rows = comparison.rows(loops, done, "validation loss and prior", setup.reported)
    return medians("l2-per-weight", rows, comparison.seconds(done), scale)
