"""training-data: ten training images, one for each class, learned from nothing.

Maclaurin, Duvenaud and Adams 2015, section 3.3: a linear model 784-10 is trained for 20 steps on ten images alone, rate
1, decay 0.9. The hyperparameters are the pixels of the ten images and the log of one penalty, and the outer loss is the
model's loss on 10,000 images of MNIST. The ten images begin as noise of standard deviation 0.01. On scikit-learn's
digits they have 64 pixels. There are two outer loops: "paper", gradient descent with step 1, and "hypergrad",
`HypergradSampler`.

What the loops search is added to the noise, which is the same for all seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, TrainingProblem, sgd
from hypergrad_search.space import Hyperparameters
from hypergrad_studies.networks import Layers, Split, cross_entropy, normal_network
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, mnist, outer
from hypergrad_studies.papers.reversible_learning.comparison import Reported
from hypergrad_studies.papers.reversible_learning.descent import Descent
from hypergrad_studies.papers.reversible_learning.outer import OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled
from hypergrad_studies.problems import digits

STEPS = 20
ITERATIONS = 40
CLASSES = 10
NOISE, INITIAL_SCALE = 0.01, math.exp(-4)
START = {"pixels": 0.0, "log_l2": math.log(0.01)}


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, the data (validation, test), and what the paper reports, if anything."""

    pixels: int
    data: Callable[[], tuple[Split, Split]]
    reported: Reported | None = None


def _mnist() -> tuple[Split, Split]:
    parts = mnist.parts()
    return parts.train, parts.test


def _digits() -> tuple[Split, Split]:
    _, valid, test = digits.splits()
    return valid, test


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, _digits),
    "paper": Setup(784, _mnist, Reported(2.33, 0.43, 0.50, ITERATIONS)),
}


def space(setup: Setup, reach: float) -> dict[str, Float]:
    """Return the space of the pixels, from `-reach` to `reach`, and of the log penalty."""
    return {"pixels": Float(-reach, reach, shape=(CLASSES, setup.pixels)), "log_l2": Float(-12.0, 0.0)}


def noise(setup: Setup) -> np.ndarray:
    """Return the images at the start, shape `(classes, pixels)`."""
    return NOISE * np.random.default_rng(0).standard_normal((CLASSES, setup.pixels)).astype(np.float32)


def problem(setup: Setup) -> TrainingProblem:
    """Return the training of a linear model on ten images."""
    valid, test = jax.tree.map(jnp.asarray, setup.data())
    start, labels = jnp.asarray(noise(setup)), jnp.arange(CLASSES)

    def train_loss(params: Layers, hyperparameters: Hyperparameters, batch: None, key: jax.Array) -> jax.Array:
        images = Split(start + hyperparameters["pixels"], labels)
        squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
        return jnp.mean(cross_entropy(params, images)) + jnp.exp(hyperparameters["log_l2"]) * squares

    return TrainingProblem(
        init=lambda key, hyperparameters: normal_network(key, (setup.pixels, CLASSES), INITIAL_SCALE),
        train_loss=train_loss,
        valid_loss=lambda params, hyperparameters: jnp.mean(cross_entropy(params, valid)),
        test_loss=lambda params, hyperparameters: jnp.mean(cross_entropy(params, test)),
        batches=lambda step: None,
        optimizer=sgd(1.0, 0.9, dampening=True),
        steps=STEPS,
    )


def outer_loops(setup: Setup) -> dict[str, OuterLoop]:
    """Return the paper's outer loop, and `HypergradSampler`."""
    training = problem(setup)
    return {
        "paper": Descent(training, space(setup, 100.0), START, ITERATIONS, optimizer=optax.sgd(1.0)),
        "hypergrad": Sampled(
            training, space(setup, 2.0), START, ITERATIONS, sampler=lambda s: HypergradSampler(seed=s)
        ),
    }


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl`, `training-data.svg` and `images.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    loops = outer_loops(setup)
    done = outer.record(loops, seeds, out, console)
    pictures = {name: noise(setup) + loop.found(name, 0, out)["pixels"] for name, loop in loops.items()}
    figures.images(out / "images.svg", pictures, symmetric=True)
    figure, (axes,) = figures.panels(1, 1)
    comparison.draw(axes, done, setup.reported, "validation loss")
    figure.savefig(out / "training-data.svg")
    rows = comparison.rows(loops, done, "validation loss", setup.reported)
    return medians("training-data", rows, comparison.seconds(done), scale)
