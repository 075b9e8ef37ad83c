"""schedules: a learning rate and a decay for each array at each step, and each array's initial scale, 1,608 in all.

Maclaurin, Duvenaud and Adams 2015, section 3.1: a tanh network 784-50-50-50-10 (on scikit-learn's digits 64-...), 100
steps on random batches of 200 of 10,000 images of MNIST. What is searched are logarithms of rates and scales, and
logits of decays; the outer loss is the training loss on all 10,000. Two outer loops:

- "paper": Adam as in the authors' code, with step 0.04 and an initialisation and batches of its own each iteration.
- "hypergrad": `HypergradSampler`, from the same start, on the mean loss of four networks, which the same schedules
  train from other initial weights on other batches, the same each iteration. With one network it would learn the
  batches by heart, and with new ones each iteration a step could not be judged.

So one iteration of "hypergrad" is four training runs. What counts in the end is the loss from initial weights and
batches that no search has seen.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, Optimizer, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_studies.papers import figures, mnist, outer
from hypergrad_studies.papers.outer import Descent, Reported, Runs, Sampled
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.problems import digits

STEPS, BATCH = 100, 200
ITERATIONS = 50
NETWORKS = 4  # that "hypergrad" trains at once
UNSEEN = 10  # initialisations and batches, for the loss that counts

START = {"log_learning_rate": -1.0, "logit_momentum": 0.0, "log_init_scale": -3.0}
RATES = {"paper": (3.3, 1.2, 1.8, 6.7), "small": (None,) * 4}  # the largest by layer


@dataclass(frozen=True)
class Setup:
    """What a scale means: the network, its data (training, test), and what the paper reports, if anything."""

    sizes: tuple[int, ...]
    data: Callable[[], tuple[digits.Split, digits.Split]]
    reported: Reported | None = None


def _mnist() -> tuple[digits.Split, digits.Split]:
    parts = mnist.parts()
    return parts.train, parts.test


def _digits() -> tuple[digits.Split, digits.Split]:
    train, _, test = digits.splits()
    return train, test


SETUPS: dict[Scale, Setup] = {
    "small": Setup((64, 50, 50, 50, 10), _digits),
    "paper": Setup((784, 50, 50, 50, 10), _mnist, Reported(0.531, 0.1235, 0.245, ITERATIONS)),
}


def structure(sizes: Sequence[int]) -> Any:
    """The arrays of a network of these layers: biases and weights of the first, of the second, ..."""
    return jax.tree.structure([{"weights": 0, "biases": 0}] * (len(sizes) - 1))


def space(sizes: Sequence[int]) -> dict[str, Float]:
    """The paper's hyperparameters, in a box around what it found."""
    arrays = structure(sizes).num_leaves
    return {
        "log_learning_rate": Float(-4.0, 3.0, shape=(arrays, STEPS)),
        "logit_momentum": Float(-4.0, 4.0, shape=(arrays, STEPS)),
        "log_init_scale": Float(-6.0, 0.0, shape=(arrays,)),
    }


def at(sizes: Sequence[int], transform: Callable[[jax.Array], jax.Array], name: str) -> Callable[..., Any]:
    """An optimizer's setting: `transform` of the schedule `name`, for each array at each step."""
    return lambda hyperparameters, step: jax.tree.unflatten(
        structure(sizes), list(transform(hyperparameters[name][:, step]))
    )


def momentum(sizes: Sequence[int]) -> Optimizer:
    """Momentum in the dampened form, with a schedule of rates and one of decays for each array."""
    return sgd(at(sizes, jnp.exp, "log_learning_rate"), at(sizes, jax.nn.sigmoid, "logit_momentum"), dampening=True)


def problem(
    setup: Setup, networks: int = 1, optimizer: Callable[[Sequence[int]], Optimizer] = momentum, steps: int = STEPS
) -> TrainingProblem:
    """Training of so many networks at once, each from its own initial weights on its own batches; losses are means."""
    train, test = jax.tree.map(jnp.asarray, setup.data())

    def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Any:
        scales = list(jnp.exp(hyperparameters["log_init_scale"]))
        shapes = jax.tree.leaves(
            [{"weights": pair, "biases": pair[1:]} for pair in itertools.pairwise(setup.sizes)],
            is_leaf=lambda x: isinstance(x, tuple),
        )
        keys = jax.random.split(key, len(shapes))
        drawn = [
            scale * jax.random.normal(k, (networks, *shape))
            for scale, k, shape in zip(scales, keys, shapes, strict=True)
        ]
        return jax.tree.unflatten(structure(setup.sizes), drawn)

    def train_loss(params: Any, hyperparameters: dict[str, Any], batch: None, key: jax.Array) -> jax.Array:
        def one(layers: Any, key: jax.Array) -> jax.Array:
            rows = jax.random.randint(key, (BATCH,), 0, len(train.labels))
            return digits.cross_entropy(layers, jax.tree.map(lambda x: x[rows], train))

        return jnp.sum(jax.vmap(one)(params, jax.random.split(key, networks)))

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda params: jnp.mean(jax.vmap(partial(digits.cross_entropy, data=train))(params)),
        test_loss=lambda params: jnp.mean(jax.vmap(partial(digits.cross_entropy, data=test))(params)),
        batches=lambda step: None,
        optimizer=optimizer(setup.sizes),
        steps=steps,
    )


class _AdamState(NamedTuple):
    steps: jax.Array
    mean: Any
    square: Any


def adam_as_released(step: float, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-4) -> optax.GradientTransformation:
    """Adam as in the authors' code: after the first step b1 is next to 0, but the bias is corrected as if it were not.

    So it has no momentum, and its early steps are up to five times as long.
    """
    forgetting = 1e-4

    def init(params: Any) -> _AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AdamState(jnp.zeros(()), zeros, zeros)

    def update(gradient: Any, state: _AdamState, params: Any = None) -> tuple[Any, _AdamState]:
        decay = b1 * forgetting**state.steps
        mean = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.mean, gradient)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g**2, state.square, gradient)
        count = state.steps + 1
        updates = jax.tree.map(
            lambda m, s: -step * (m / (1 - b1**count)) / (jnp.sqrt(s / (1 - b2**count)) + eps), mean, square
        )
        return updates, _AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def paper(setup: Setup) -> Descent:
    """The paper's outer loop."""
    return Descent(problem(setup), space(setup.sizes), START, ITERATIONS, reseed=True, optimizer=adam_as_released(0.04))


def hypergrad(setup: Setup) -> Sampled:
    """`HypergradSampler`, on several networks at once."""
    return Sampled(
        problem(setup, NETWORKS), space(setup.sizes), START, ITERATIONS, sampler=lambda s: HypergradSampler(seed=s)
    )


def searches(setup: Setup) -> dict[str, outer.Search]:
    """Both, by name."""
    return {"paper": paper(setup), "hypergrad": hypergrad(setup)}


def beside(out: Path) -> Path:
    """Where the runs of this study are that another one, writing to `out`, builds on: beside it, else inside."""
    sibling = out.parent / "schedules"
    folder = sibling if (sibling / "records.jsonl").exists() else out / "schedules"
    folder.mkdir(exist_ok=True)
    return folder


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    loops = searches(setup)
    done = outer.run(loops, seeds, out, console)
    found = {name: [loop.found(name, seed, out) for seed in range(seeds)] for name, loop in loops.items()}
    draw(setup, loops, done, found, out / "schedules.svg")
    rows = outer.ends(loops, done, "training loss", setup.reported)
    for name in loops:
        rows += unseen(name, setup, found[name])
    peaks = np.array([np.exp(mine["log_learning_rate"]).max(axis=1)[1::2] for mine in found["paper"]])
    rows += [
        Row(f"paper's loop: largest learning rate of the weights of layer {i}", paper, peak.tolist())
        for i, (paper, peak) in enumerate(zip(RATES[scale], peaks.T, strict=True), 1)
    ]
    return medians("schedules", rows, outer.seconds(done), scale)


def unseen(name: str, setup: Setup, found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The losses at what a search has found for each seed, from initial weights and on batches that it has not seen."""
    training, misses = problem(setup), replace(problem(setup), test_loss=None, valid_loss=partial(error_rate, setup))
    values: dict[str, list[float]] = {"training loss": [], "test loss": [], "test error": []}
    for hyperparameters in found:
        losses = [look(training, hyperparameters, i) for i in range(UNSEEN)]
        values["training loss"].append(float(np.mean([value for value, _ in losses])))
        values["test loss"].append(float(np.mean([test for _, test in losses])))
        values["test error"].append(float(np.mean([look(misses, hyperparameters, i)[0] for i in range(UNSEEN)])))
    return [Row(f"{name}: {what}, unseen seeds", None, mine) for what, mine in values.items()]


def look(problem: TrainingProblem, hyperparameters: Mapping[str, Any], draw: int) -> tuple[float, float]:
    """The value and the test loss of one training run, from a key of which no search has made its own."""
    key = jax.random.fold_in(jax.random.key(1), 1000 + draw)
    done = evaluate(problem, hyperparameters, method=Unrolled(), key=key, gradient_below=-math.inf)
    return done.value, done.diagnostics["test_loss"] or math.nan


def error_rate(setup: Setup, params: Any) -> jax.Array:
    """The part of the test set that is taken for another class."""
    _, test = setup.data()

    def one(layers: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(digits.logits(layers, test.images), axis=1) != test.labels)

    return jnp.mean(jax.vmap(one)(params))


def curve(problem: TrainingProblem, hyperparameters: Mapping[str, Any]) -> list[float]:
    """The elementary learning curve: the loss on the whole training set after 1, 2, ... steps."""
    losses: list[float] = []
    key = jax.random.key(0)
    last = evaluate(
        problem, hyperparameters, key=key, gradient_below=-math.inf, report=lambda step, loss: losses.append(loss)
    )
    return [*losses, last.value]


def draw(setup: Setup, loops: Mapping[str, outer.Search], done: Runs, found: Any, path: Path) -> None:
    """The learned schedules by layer, the elementary learning curves before and after, and the outer loops."""
    figure, axes = figures.panels(3, len(loops))
    ways: list[tuple[str, Callable[[Any], Any], str]] = [
        ("log_learning_rate", np.exp, "learning rate"),
        ("logit_momentum", jax.nn.sigmoid, "decay"),
    ]
    for row, (name, transform, label) in enumerate(ways):
        for column, search in enumerate(loops):
            panel = axes[row * len(loops) + column]
            for i, schedule in enumerate(transform(np.median([mine[name] for mine in found[search]], axis=0))[1::2], 1):
                panel.plot(schedule, linewidth=1.2, label=f"layer {i}")
            panel.set(xlabel="step", ylabel=label, title=search)
    axes[0].legend(frameon=False)
    curves, loop, *_ = axes[-len(loops) :]
    one = problem(setup)
    start = {name: np.full(p.shape, START[name], np.float32) for name, p in space(setup.sizes).items()}
    for label, hyperparameters in {"at the start": start, **{name: mine[0] for name, mine in found.items()}}.items():
        curves.plot(curve(one, hyperparameters), label=label)
    curves.set(xlabel="step", ylabel="training loss")
    curves.legend(frameon=False)
    figures.outer_loop(loop, done, setup.reported, "training loss")
    figure.savefig(path)
