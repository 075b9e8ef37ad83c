"""schedules: a learning rate and a decay for each array at each step, and each array's initial scale, 1,608 in all.

Maclaurin, Duvenaud and Adams 2015, section 3.1: a tanh network 784-50-50-50-10 (on scikit-learn's digits 64-...), 100
steps on random batches of 200 of 10,000 images of MNIST. What is searched are logarithms of rates and scales, and
logits of decays; the outer loss is the training loss on all 10,000. Two outer loops:

- "paper": Adam as in the authors' code, with step 0.04 and an initialisation and batches of its own each iteration.
- "hypergrad": `HypergradSampler`, from the same start, on the mean loss of four networks, which the same schedules
  train from other initial weights on other batches, the same each iteration. With one network it would learn the
  batches by heart, and with new ones each iteration a step could not be judged.

So one iteration of "hypergrad" costs four training runs. What counts in the end is the loss from initial weights and
batches that no search has seen.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, Method, Optimizer, Reversible, TrainingProblem, Unrolled, evaluate, sgd, train
from hypergrad_studies.papers import figures, mnist, outer
from hypergrad_studies.papers.outer import Descent, Reported, Runs, Sampled
from hypergrad_studies.papers.results import Result, Row, Scale, claim, medians
from hypergrad_studies.problems import digits

STEPS, BATCH = 100, 200
ITERATIONS = 50
NETWORKS = 4  # that "hypergrad" trains at once
UNSEEN = 10  # initialisations and batches, for the loss that counts

START = {"log_learning_rate": -1.0, "logit_momentum": 0.0, "log_init_scale": -3.0}
RATES = {"paper": (3.3, 1.2, 1.8, 6.7), "small": (None,) * 4}  # the largest by layer


@dataclass(frozen=True)
class Setup:
    """What a scale means: the network, its data (training, test), what the paper reports, and the steps of training."""

    sizes: tuple[int, ...]
    data: Callable[[], tuple[digits.Split, digits.Split]]
    reported: Reported | None = None
    steps: int = STEPS


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


def at(setup: Setup, transform: Callable[[jax.Array], jax.Array], name: str) -> Callable[..., Any]:
    """An optimizer's setting: `transform` of the schedule `name`, for each array at each step.

    A number stands for a schedule that is the same everywhere, and one of `STEPS` is stretched to longer training.
    """

    def setting(hyperparameters: Mapping[str, Any], step: jax.Array) -> Any:
        tree = structure(setup.sizes)
        schedule = jnp.broadcast_to(hyperparameters[name], (tree.num_leaves, STEPS))
        return jax.tree.unflatten(tree, list(transform(schedule[:, step * STEPS // setup.steps])))

    return setting


def momentum(setup: Setup) -> Optimizer:
    """Momentum in the dampened form, with a schedule of rates and one of decays for each array."""
    return sgd(at(setup, jnp.exp, "log_learning_rate"), at(setup, jax.nn.sigmoid, "logit_momentum"), dampening=True)


def problem(setup: Setup, networks: int = 1, optimizer: Callable[[Setup], Optimizer] = momentum) -> TrainingProblem:
    """Training of so many networks at once, each from its own initial weights on its own batches; losses are means."""
    images, test = jax.tree.map(jnp.asarray, setup.data())
    tree = structure(setup.sizes)

    def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Any:
        shapes = [shape for pair in itertools.pairwise(setup.sizes) for shape in (pair[1:], pair)]
        scales = list(jnp.exp(jnp.broadcast_to(hyperparameters["log_init_scale"], (tree.num_leaves,))))
        keys = jax.random.split(key, tree.num_leaves)
        drawn = [jax.random.normal(k, (networks, *shape)) for k, shape in zip(keys, shapes, strict=True)]
        return jax.tree.unflatten(tree, [scale * x for scale, x in zip(scales, drawn, strict=True)])

    def train_loss(params: Any, hyperparameters: dict[str, Any], batch: None, key: jax.Array) -> jax.Array:
        def one(layers: Any, key: jax.Array) -> jax.Array:
            rows = jax.random.randint(key, (BATCH,), 0, len(images.labels))
            return digits.cross_entropy(layers, jax.tree.map(lambda x: x[rows], images))

        return jnp.sum(jax.vmap(one)(params, jax.random.split(key, networks)))

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda params: jnp.mean(jax.vmap(partial(digits.cross_entropy, data=images))(params)),
        test_loss=lambda params: jnp.mean(jax.vmap(partial(digits.cross_entropy, data=test))(params)),
        batches=lambda step: None,
        optimizer=optimizer(setup),
        steps=setup.steps,
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


def paper(setup: Setup, method: Method = Reversible(fallback=Unrolled())) -> Descent:  # noqa: B008 (frozen)
    """The paper's outer loop."""
    return Descent(
        problem(setup),
        space(setup.sizes),
        START,
        ITERATIONS,
        reseed=True,
        optimizer=adam_as_released(0.04),
        method=method,
    )


def hypergrad(setup: Setup) -> Sampled:
    """`HypergradSampler`, on several networks at once."""
    return Sampled(
        problem(setup, NETWORKS),
        space(setup.sizes),
        START,
        ITERATIONS,
        networks=NETWORKS,
        sampler=lambda seed: HypergradSampler(seed=seed),
    )


def searches(setup: Setup) -> dict[str, outer.Search]:
    """Both, by name."""
    return {"paper": paper(setup), "hypergrad": hypergrad(setup)}


def beside(out: Path, scale: Scale) -> Path:
    """Where the runs of this study are that another one, writing to `out`, builds on: beside it, else inside."""
    sibling = out.parent / "schedules"
    folder = sibling if (sibling / "records.jsonl").exists() else out / "schedules"
    claim(folder, "schedules", scale)
    return folder


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    loops = searches(setup)
    done = outer.run(loops, seeds, out, console)
    found = {name: [loop.found(name, seed, out) for seed in range(seeds)] for name, loop in loops.items()}
    draw(setup, loops, done, found, out / "schedules.svg")
    rows = outer.ends(loops, done, "training loss", setup.reported)
    losses = judge(setup)
    # the paper's numbers are of seeds that no iteration before had
    reported = (setup.reported.end, setup.reported.test, None) if setup.reported else (None, None, None)
    for name in loops:
        rows += unseen(name, losses, found[name], reported)
    peaks = np.array([np.exp(mine["log_learning_rate"]).max(axis=1)[1::2] for mine in found["paper"]])
    rows += [
        Row(f"paper: largest learning rate, layer {i}", paper, peak.tolist())
        for i, (paper, peak) in enumerate(zip(RATES[scale], peaks.T, strict=True), 1)
    ]
    return medians("schedules", rows, outer.seconds(done), scale)


class Losses(NamedTuple):
    """Of training runs from initial weights and on batches that no search has seen: means; NaN where one failed."""

    training: Any
    test: Any
    error: Any


def unseen_key(draw: int) -> jax.Array:
    """The key of such a run."""
    return jax.random.fold_in(jax.random.key(1), 1000 + draw)


def judge(
    setup: Setup, optimizer: Callable[[Setup], Optimizer] = momentum, runs: int = UNSEEN
) -> Callable[[Mapping[str, Any]], Losses]:
    """What hyperparameters are worth; `error` is the part of the test set that is taken for another class."""
    _, test = jax.tree.map(jnp.asarray, setup.data())

    def wrong(layers: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(digits.logits(layers, test.images), axis=1) != test.labels)

    training = problem(setup, 1, optimizer)

    @jax.jit
    def losses_of(params: Any) -> Losses:
        test_loss = training.test_loss(params) if training.test_loss else jnp.nan
        return Losses(training.valid_loss(params), test_loss, jnp.mean(jax.vmap(wrong)(params)))

    def losses(hyperparameters: Mapping[str, Any]) -> Losses:
        done = [losses_of(train(training, hyperparameters, unseen_key(i))) for i in range(runs)]
        return Losses(*(float(np.mean(x)) for x in zip(*done, strict=True)))

    return losses


def unseen(
    name: str,
    judge: Callable[[Mapping[str, Any]], Losses],
    found: Iterable[Mapping[str, Any]],
    reported: tuple[float | None, float | None, float | None] = (None, None, None),
) -> list[Row]:
    """What a search has found for each seed is worth, from initial weights and on batches that it has not seen."""
    losses = [judge(hyperparameters) for hyperparameters in found]
    names = ("training loss", "test loss", "test error")
    return [
        Row(f"{name}: {quantity}, unseen seeds", paper, list(mine))
        for quantity, paper, mine in zip(names, reported, zip(*losses, strict=True), strict=True)
    ]


def curve(problem: TrainingProblem, hyperparameters: Mapping[str, Any], every: int = 1) -> list[float]:
    """The elementary learning curve: the loss on the whole training set every so many steps."""
    losses: list[float] = []
    last = evaluate(
        problem,
        hyperparameters,
        key=unseen_key(0),
        gradient_below=-math.inf,
        report=lambda step, loss: losses.append(loss),
        report_every=every,
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
    start = loops["paper"].beginning()
    for label, hyperparameters in {"at the start": start, **{name: mine[0] for name, mine in found.items()}}.items():
        curves.plot(curve(one, hyperparameters), label=label)
    curves.set(xlabel="step", ylabel="training loss")
    curves.legend(frameon=False)
    figures.outer_loop(loop, done, setup.reported, "training loss")
    figure.savefig(path)
