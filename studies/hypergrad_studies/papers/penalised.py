"""What the hypernetwork studies share (Lorraine and Duvenaud 2018): data, penalised networks, searches on the clock.

The training loss is 50 times the squared error, averaged over images and the ten outputs, and a penalty l2 * w**2 for
each weight, where log l2 is the paper's lambda. The factor is that of the released code, whose loss is the negative
log-likelihood of a Gaussian of standard deviation 0.1; the squared penalty is that of the paper's text, where the code
has the norm. What is searched and shown is the squared error itself, a mean over images and outputs. Pixels are in
[0, 1] less their mean over the training images, targets are 1 for the digit and 0 for the others.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from hypergrad_optuna import Objective
from hypergrad_search import Float, Hypernet, Optimizer, Response, Space, TrainingProblem, Unrolled, evaluate
from hypergrad_search.space import dimension, floats, from_unit
from hypergrad_studies import data
from hypergrad_studies.papers.results import Row, line
from hypergrad_studies.problems import digits

DEVIATION = 0.1
PRECISION = 1 / (2 * DEVIATION**2)
OUTPUTS = 10

WARM_UP = 15  # evaluations before the clock starts: so many that searches with gradients have computed one

Params = list[dict[str, jax.Array]]


def squared_error(loss: float) -> float:
    """The mean squared error behind a negative log-likelihood, which most of the paper's figures show."""
    return (loss - math.log(DEVIATION * math.sqrt(2 * math.pi))) / PRECISION


class Data(NamedTuple):
    """Images of shape `(n, pixels)` less the training mean, and their labels."""

    train: digits.Split
    valid: digits.Split
    test: digits.Split


@functools.cache
def small(train: int = digits.TRAIN) -> Data:
    """Scikit-learn's digits: the first `train` of the training images, 400 to validate, 397 to test."""
    whole, valid, test = digits.splits()
    return Data(digits.Split(whole.images[:train], whole.labels[:train]), valid, test)


@functools.cache
def mnist(train: int, valid: int = 10_000) -> Data:
    """The first `train` images of MNIST's training set, the last `valid` of it, and the test set."""
    (images, labels), (test_images, test_labels) = data.mnist()
    mean = images[:train].mean(axis=0)
    return Data(
        digits.Split(images[:train] - mean, labels[:train]),
        digits.Split(images[-valid:] - mean, labels[-valid:]),
        digits.Split(test_images - mean, test_labels),
    )


def predict(params: Params, images: jax.Array) -> jax.Array:
    """The ten outputs of a network of ReLUs; a linear model where it has one layer."""
    *hidden, last = params
    for layer in hidden:
        images = jax.nn.relu(images @ layer["weights"] + layer["biases"])
    return images @ last["weights"] + last["biases"]


def error(params: Params, data: digits.Split) -> jax.Array:
    """The squared error, a mean over images and outputs."""
    return jnp.mean((predict(params, data.images) - jax.nn.one_hot(data.labels, OUTPUTS)) ** 2)


def penalty(params: Params, hyperparameters: Mapping[str, Any]) -> jax.Array:
    """The sum of l2 * w**2 over the layers' weights and biases for which `hyperparameters` has an l2."""
    terms = [
        jnp.sum(hyperparameters[name] * values**2)
        for i, layer in enumerate(params)
        for part, values in layer.items()
        if (name := f"l2_{part}_{i}") in hyperparameters
    ]
    return jnp.sum(jnp.stack(terms))


def penalties(sizes: Sequence[int], low: float, high: float) -> Space:
    """A penalty for each weight and bias of a network, in the order of these in its parameters."""
    return {
        f"l2_{part}_{i}": Float(low, high, log=True, shape=shape)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
        for part, shape in (("biases", (fan_out,)), ("weights", (fan_in, fan_out)))
    }


def alike(space: Space, l2: float) -> dict[str, Any]:
    """The same penalty everywhere."""
    return {name: np.full(parameter.shape, l2) for name, parameter in floats(space).items()}


def problem(data: Data, sizes: Sequence[int], *, optimizer: Optimizer, steps: int, batch: int) -> TrainingProblem:
    """Training of a network on batches of `batch` images, taken in turn; `valid_batch_loss` takes as many."""
    train, valid, test = jax.tree.map(jnp.asarray, data)
    scales = [*(math.sqrt(2 / fan_in) for fan_in in sizes[:-2]), math.exp(-4)]

    def part(split: digits.Split, step: jax.Array) -> digits.Split:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, step * batch % len(x), batch), split)

    return TrainingProblem(
        init=lambda key, hyperparameters: digits.network(key, tuple(sizes), scales),
        train_loss=lambda params, hyperparameters, batch, key: (
            PRECISION * error(params, batch) + penalty(params, hyperparameters)
        ),
        valid_loss=lambda params: error(params, valid),
        valid_batch_loss=lambda params, step: error(params, part(valid, step)),
        test_loss=lambda params: error(params, test),
        batches=lambda step: part(train, step),
        optimizer=optimizer,
        steps=steps,
    )


@dataclass(frozen=True)
class Diagonal(Response):
    """One number for each weight, where each has a penalty: how much it changes with this one.

    For `penalties`, whose order is that of the weights. What a penalty does to the other weights is left out.
    """

    def init(self, key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        """See `Response`."""
        return {"slopes": jnp.zeros(outputs)}

    def __call__(self, weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """See `Response`."""
        return weights["slopes"] * x


@dataclass(frozen=True)
class Found:
    """One evaluation of a search: what it tried, the losses there, and how it ended."""

    hyperparameters: dict[str, Any]
    value: float
    test: float
    status: str


Search = Iterator[Found]


def train(problem: TrainingProblem, hyperparameters: dict[str, Any], seed: int) -> Found:
    """Train from scratch, in floats."""
    done = evaluate(problem, hyperparameters, method=Unrolled(), key=jax.random.key(seed), gradient_below=-math.inf)
    return Found(hyperparameters, done.value, done.diagnostics["test_loss"], done.status)


def hypernet(problem: TrainingProblem, space: Space, method: Hypernet, seed: int) -> Search:
    """Stretch after stretch of joint optimisation, from log penalties of 0; it ends where one fails."""
    hyperparameters, checkpoint = alike(space, 1.0), None
    while True:
        done = evaluate(
            problem, hyperparameters, method=method, key=jax.random.key(seed), space=space, checkpoint=checkpoint
        )
        if done.refined is None:
            yield Found(hyperparameters, done.value, math.nan, done.status)
            return
        hyperparameters, checkpoint = done.refined, done.checkpoint
        yield Found(hyperparameters, done.value, done.diagnostics["test_loss"], done.status)


def random(problem: TrainingProblem, space: Space, seed: int) -> Search:
    """Training runs at points drawn uniformly from the box."""
    draw = np.random.default_rng(seed)
    while True:
        yield train(problem, from_unit(space, draw.uniform(size=dimension(space))), seed)


def sampled(objective: Objective, sampler: optuna.samplers.BaseSampler) -> Search:
    """Trials of an Optuna study."""
    study = optuna.create_study(sampler=sampler)
    while True:
        trial = study.ask()
        hyperparameters = objective.suggest(trial)
        value = objective.evaluate(trial, hyperparameters)
        attributes = study.tell(trial, value).user_attrs
        yield Found(
            hyperparameters,
            value,
            attributes.get("hypergrad:test_loss", math.nan),
            attributes.get("hypergrad:status", "ok"),
        )


def predicted(
    problem: TrainingProblem, space: Space, method: Hypernet, checkpoint: bytes, key: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The validation loss that a hypernetwork predicts, of log penalties; these of shape `(n, *shape)`, all at once.

    For a `space` of one name.
    """
    (name,) = space

    def loss(log_l2: jax.Array) -> jax.Array:
        l2 = {name: jnp.exp(log_l2)}
        return problem.valid_loss(method.params(problem, l2, space=space, key=key, checkpoint=checkpoint))

    return jax.jit(lambda points: jax.lax.map(loss, points))


@dataclass(frozen=True)
class Point:
    """One evaluation of a search on the clock, done `seconds` after the search began; losses are squared errors."""

    seed: int
    method: str
    seconds: float
    value: float
    test: float
    status: str


def race(
    searches: Mapping[str, Callable[[int], Search]], seeds: int, seconds: float, path: Path, console: Console
) -> list[tuple[Point, Found]]:
    """Each search with each seed for as many seconds, one after another; a line for each evaluation goes to `path`.

    Compilation is left out for all alike: each search runs a few evaluations before, which are thrown away. An
    evaluation that ends after the time is up does not count, unless it is the search's first.
    """
    turns = [(seed, method) for seed in range(seeds) for method in searches]
    done = []
    with path.open("w") as file:
        for seed, method in track(turns, path.parent.name, console=console):
            for _ in itertools.islice(searches[method](seed), WARM_UP):
                pass
            started = time.perf_counter()
            for i, found in enumerate(searches[method](seed)):
                passed = time.perf_counter() - started
                if passed > seconds and i:
                    break
                point = Point(seed, method, passed, found.value, found.test, found.status)
                file.write(line(point))
                done.append((point, found))
            file.flush()
    return done


def best(points: Iterable[Point], method: str, seed: int) -> list[Point]:
    """Those of one search that are better than all before them; its last one where none has a finite loss."""
    mine = [point for point in points if (point.method, point.seed) == (method, seed)]
    found: list[Point] = []
    for point in mine:
        if point.value < (found[-1].value if found else math.inf):
            found.append(point)
    return found or mine[-1:]


def retrain(
    problem: TrainingProblem, raced: Sequence[tuple[Point, Found]], methods: Iterable[str], seeds: int
) -> list[Point]:
    """The best hyperparameters of each search, with a model that is trained from scratch."""
    points = [point for point, _ in raced]
    again = []
    for method, seed in itertools.product(methods, range(seeds)):
        end = best(points, method, seed)[-1]
        tried = next(found.hyperparameters for point, found in raced if point is end)
        found = train(problem, tried, seed)
        again.append(replace(end, value=found.value, test=found.test, status=found.status))
    return again


def ends(
    raced: Sequence[tuple[Point, Found]],
    retrained: Sequence[Point],
    paper: Mapping[str, tuple[float, float]],
    seeds: int,
) -> list[Row]:
    """The losses where each search ended, on the validation set and on the test set, and those of `retrain`."""
    points = [point for point, _ in raced]
    rows = []
    for method, (valid, test) in paper.items():
        last = [best(points, method, seed)[-1] for seed in range(seeds)]
        rows.append(Row(f"{method}: validation", valid, [point.value for point in last]))
        rows.append(Row(f"{method}: test", test, [point.test for point in last]))
        if again := [point for point in retrained if point.method == method]:
            rows.append(Row(f"{method}: validation, trained from scratch", None, [point.value for point in again]))
            rows.append(Row(f"{method}: test, trained from scratch", None, [point.test for point in again]))
    return rows


def draw(points: Sequence[Point], path: Path) -> None:
    """The best loss so far against seconds, a line for each seed: on the validation set, and there on the test set."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(point.method for point in points))
    for (i, method), seed in itertools.product(enumerate(methods), sorted({point.seed for point in points})):
        curve = best(points, method, seed)
        seconds = [point.seconds for point in curve] + [max(point.seconds for point in points)]
        for axes, part in zip(panels, ("value", "test"), strict=True):
            losses = [getattr(point, part) for point in curve]
            label = method if seed == 0 else None
            axes.step(seconds, losses + losses[-1:], where="post", color=f"C{i}", linewidth=1, label=label)
    for axes, label in zip(panels, ("validation", "test"), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xscale="log", xlabel="seconds", ylabel=f"squared error, {label}")
    panels[0].set_yscale("log")
    panels[1].legend(frameon=False)
    figure.savefig(path)
