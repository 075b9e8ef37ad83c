"""Learned initial weights: MAML by exact hypergradients on few-shot tasks of Omniglot, beside its rivals.

A task is to tell five characters apart, from one drawing of each: its support set. Its query set, five other drawings
of each, is the validation set, so that the hypergradient by the initial weights is MAML's (Finn, Abbeel and Levine
2017). Other rivals than training from random weights see the same tasks, and spend as many gradient evaluations:

- "MAML", and "MAML, rates too", which learns a rate for each leaf in the same gradient (Meta-SGD, Li et al. 2017);
- "Reptile": the initial weights move towards the mean of the trained ones (Nichol, Achiam and Schulman 2018);
- "pretraining": a network learns to name all characters of the training alphabets, and gets a new last layer;
- "rates of 0": MAML with all rates at zero, which is elementary learning on the query sets; see `reduction`.

Alphabets for training, validation and test differ. Choices are made on validation tasks: of the settings of each outer
loop with the first seed, and of the factor on the rates with which new tasks are learned with each.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hypergrad_search import TrainingProblem, evaluate, sgd, train
from hypergrad_search.cost import TRAINING_STEP, VALUE_AND_GRADIENT
from hypergrad_studies import json_lines
from hypergrad_studies.budgets import interval
from hypergrad_studies.data import Drawings
from hypergrad_studies.networks import Layers, Split, cross_entropy, logits, network

WAYS, SHOTS, QUERIES = 5, 1, 5  # characters of a task, and drawings of each that it learns from and is judged by
HIDDEN = (64, 64)
STEPS, MOMENTUM, RATE = 5, 0.5, 0.3  # of the training on a task
TASKS = 8  # of an outer step
VALID_ALPHABETS, TEST_ALPHABETS = 8, 12
JUDGED = 200  # tasks that a choice and a result rest on
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # on the rates with which new tasks are learned
SAME = 20  # steps of the two outer loops that `reduction` compares

KEY = jax.random.key(0)  # no task draws random numbers

Learned = dict[str, Any]
"""What an outer loop learns: "initial", the layers of a network, and "rates", an array of shape `(leaves, 1)`."""


@dataclass(frozen=True, eq=False)
class Characters:
    """Drawings of shape `(n, pixels)`, and by part the indices of those of each character, `(characters, drawers)`."""

    images: np.ndarray[Any, Any]
    parts: Mapping[str, np.ndarray[Any, Any]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs of the network, layer by layer."""
        return self.images.shape[1], *HIDDEN, WAYS


class Tasks(NamedTuple):
    """Several tasks: indices of drawings, `(tasks, WAYS, SHOTS)` and `(tasks, WAYS, QUERIES)`, as hyperparameters."""

    support: Any
    query: Any

    @property
    def whole(self) -> Any:
        """All drawings of each character, shape `(tasks, WAYS, SHOTS + QUERIES)`."""
        return jnp.concatenate([self.support, self.query], axis=2)


def characters(drawings: Drawings, valid: int = VALID_ALPHABETS, test: int = TEST_ALPHABETS) -> Characters:
    """Return the drawings at 14 x 14, their mean subtracted; `valid` and `test` are numbers of alphabets."""
    small = drawings.images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    alphabets = np.random.default_rng(0).permutation(len(drawings.names))
    ends = {"valid": alphabets[:valid], "test": alphabets[valid : valid + test], "train": alphabets[valid + test :]}
    order = np.lexsort((drawings.drawer, drawings.character, drawings.alphabet))
    drawers = len(np.unique(drawings.drawer))
    of_alphabet = drawings.alphabet[order].reshape(-1, drawers)[:, 0]
    by_character = order.reshape(-1, drawers)
    parts = {name: by_character[np.isin(of_alphabet, mine)] for name, mine in ends.items()}
    return Characters((small - small.mean(axis=0)).astype(np.float32), parts)


def draw(part: np.ndarray[Any, Any], tasks: int, random: np.random.Generator) -> Tasks:
    """Return tasks of characters in `part`; no character and no drawing comes twice in a task."""
    several = np.broadcast_to(np.arange(len(part)), (tasks, len(part)))
    chosen = part[random.permuted(several, axis=1)[:, :WAYS]]
    drawings = random.permuted(chosen, axis=2).astype(np.float32)
    return Tasks(drawings[:, :, :SHOTS], drawings[:, :, SHOTS : SHOTS + QUERIES])


def draws(part: np.ndarray[Any, Any], tasks: int, steps: int, seed: int) -> Iterator[Tasks]:
    """Yield the tasks of each step of an outer loop."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        yield draw(part, tasks, random)


def problem(images: np.ndarray[Any, Any]) -> TrainingProblem:
    """Return the training of one network for each task, all from the same initial weights, which are a hyperparameter.

    The other hyperparameters are `rates`, a row for each leaf, and the tasks, `support` and `query`. The value is the
    mean loss on the query sets, and the test loss the share of their drawings that are named wrongly.
    """
    pixels = jnp.asarray(images)

    def of_tasks(indices: jax.Array) -> Split:
        tasks, ways, drawings = indices.shape
        labels = jnp.broadcast_to(jnp.repeat(jnp.arange(ways), drawings), (tasks, ways * drawings))
        return Split(pixels[indices.astype(jnp.int32).reshape(tasks, -1)], labels)

    def init(key: jax.Array, h: dict[str, Any]) -> Layers:
        tasks = len(h["support"])
        copies: Layers = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks, *leaf.shape)), h["initial"])
        return copies

    def train_loss(params: Layers, h: dict[str, Any], batch: None, key: jax.Array) -> jax.Array:
        return jnp.sum(jnp.mean(jax.vmap(cross_entropy)(params, of_tasks(h["support"])), axis=1))

    def valid_loss(params: Layers, h: dict[str, Any]) -> jax.Array:
        found: jax.Array = jax.vmap(cross_entropy)(params, of_tasks(h["query"])).ravel()
        return found

    def errors(params: Layers, h: dict[str, Any]) -> jax.Array:
        data = of_tasks(h["query"])
        named = jnp.argmax(jax.vmap(logits)(params, data.images), axis=2)
        wrong: jax.Array = (named != data.labels).astype(jnp.float32).ravel()
        return wrong

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=valid_loss,
        test_loss=errors,
        batches=lambda step: None,
        optimizer=sgd("rates", MOMENTUM),
        steps=STEPS,
    )


def random_weights(sizes: Sequence[int], seed: int) -> Layers:
    """Return layers whose weights have the variance of one through the number of inputs."""
    return network(jax.random.key(seed), tuple(sizes), [1 / math.sqrt(inputs) for inputs in sizes[:-1]])


Slope = Callable[[Learned, Tasks], Learned | None]
"""A gradient, or what takes its place, by what is learned; None where training failed."""


def maml(training: TrainingProblem, names: Sequence[str]) -> Slope:
    """Return the hypergradient by the hyperparameters of these names."""

    def slope(here: Learned, tasks: Tasks) -> Learned | None:
        found = evaluate(training, {**here, **tasks._asdict()}, key=KEY).usable_gradient
        return None if found is None else {name: found[name] for name in names}

    return slope


def reptile(training: TrainingProblem) -> Slope:
    """Return the way from the mean of the trained weights to the initial ones; tasks are trained on all drawings."""

    @jax.jit
    def way(here: Learned, tasks: Tasks) -> Layers:
        trained = train(training, {**here, "support": tasks.whole, "query": tasks.query}, KEY)
        found: Layers = jax.tree.map(lambda start, end: start - end.mean(axis=0), here["initial"], trained)
        return found

    def slope(here: Learned, tasks: Tasks) -> Learned | None:
        found = way(here, tasks)
        return {"initial": found} if all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)) else None

    return slope


def on_queries(images: np.ndarray[Any, Any]) -> Slope:
    """Return the gradient of the loss on the query sets, by the weights of one network: elementary learning."""
    pixels = jnp.asarray(images)

    @jax.jit
    def gradient(weights: Layers, query: jax.Array) -> Layers:
        labels = jnp.tile(jnp.repeat(jnp.arange(WAYS), query.shape[2]), len(query))
        data = Split(pixels[query.astype(jnp.int32).ravel()], labels)
        found: Layers = jax.grad(lambda weights: jnp.mean(cross_entropy(weights, data)))(weights)
        return found

    return lambda here, tasks: {"initial": gradient(here["initial"], tasks.query)}


def by_character(data: Characters) -> Slope:
    """Return the gradient of the loss of naming all characters for training; the network has an output for each."""
    pixels = jnp.asarray(data.images)
    names = np.zeros(len(data.images), np.int32)
    names[data.parts["train"]] = np.arange(len(data.parts["train"]))[:, None]

    @jax.jit
    def gradient(weights: Layers, drawings: jax.Array) -> Layers:
        indices = drawings.astype(jnp.int32).ravel()
        batch = Split(pixels[indices], jnp.asarray(names)[indices])
        found: Layers = jax.grad(lambda weights: jnp.mean(cross_entropy(weights, batch)))(weights)
        return found

    return lambda here, tasks: {"initial": gradient(here["initial"], tasks.whole)}


def descend(
    slope: Slope, start: Learned, optimizer: optax.GradientTransformation, tasks: Iterator[Tasks]
) -> Iterator[Learned]:
    """Yield what is learned after each step of an outer loop; a step whose training failed leaves it as it was."""
    here, state = start, None
    update = jax.jit(optimizer.update)
    for each in tasks:
        gradient = slope(here, each)
        if gradient is not None:
            learned = {name: here[name] for name in gradient}
            state = optimizer.init(learned) if state is None else state
            updates, state = update(gradient, state, learned)
            here = {**here, **optax.apply_updates(learned, updates)}
        yield here


class Setting(NamedTuple):
    """What is chosen for an outer loop: its rate, and the rate of the training on a task, at which it starts."""

    outer: float
    inner: float = RATE


@dataclass(frozen=True)
class Way:
    """A way to initial weights: what a task costs in an outer step, in gradient evaluations, and the settings to try.

    `slope` makes the slope, and `optimizer` the outer optimizer of a rate and a number of steps. `outputs` is how many
    the network has that learns; where that is not `WAYS`, tasks get a new last layer.
    """

    slope: Callable[[Characters, TrainingProblem], Slope]
    cost: int
    settings: tuple[Setting, ...] = (Setting(3e-3), Setting(1e-2))
    optimizer: Callable[[float, int], optax.GradientTransformation] = lambda rate, steps: optax.adam(rate)
    outputs: Callable[[Characters], int] = lambda data: WAYS


WAYS_TO_LEARN: dict[str, Way] = {
    "MAML": Way(lambda data, training: maml(training, ["initial"]), STEPS * VALUE_AND_GRADIENT),
    "MAML, rates too": Way(lambda data, training: maml(training, ["initial", "rates"]), STEPS * VALUE_AND_GRADIENT),
    "Reptile": Way(
        lambda data, training: reptile(training),
        STEPS * TRAINING_STEP,
        (Setting(1.0), Setting(1.0, 1.0)),
        lambda rate, steps: optax.sgd(optax.linear_schedule(rate, 0.0, steps)),
    ),
    "pretraining": Way(
        lambda data, training: by_character(data),
        TRAINING_STEP,
        (Setting(1e-3), Setting(3e-3)),
        outputs=lambda data: len(data.parts["train"]),
    ),
    "rates of 0": Way(lambda data, training: on_queries(data.images), TRAINING_STEP, (Setting(1e-3), Setting(3e-3))),
}
FROM_SCRATCH = "random weights"


@dataclass(frozen=True)
class Record:
    """What a way has found with a seed, and how well new tasks are learned from there.

    The rates, and the `factor` on the rates, were chosen by `valid_loss`, the mean query loss of validation tasks.
    `outer_rate` is None where there is no outer loop. `test_loss` and `test_error`, the share of drawings that are
    named wrongly, are those of test tasks. `gradient_evaluations` and `seconds` are those of this one outer loop.
    """

    way: str
    seed: int
    outer_rate: float | None
    inner_rate: float
    factor: float
    valid_loss: float
    test_loss: float
    test_error: float
    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True)
class Reduction:
    """The largest difference of two outer loops of `steps` steps that must be one, and their largest weight."""

    seed: int
    steps: int
    difference: float
    weights: float


def measure(data: Characters, steps: int, seeds: int, console: Console) -> tuple[list[Record], list[Reduction]]:
    """Return a record of each way and seed, at the budget of `steps` outer steps of MAML, and reductions."""
    training = problem(data.images)
    budget = steps * TASKS * STEPS * VALUE_AND_GRADIENT
    records = [from_scratch(data, training, seed) for seed in range(seeds)]
    for name, way in track(WAYS_TO_LEARN.items(), "ways", console=console):
        first = min(
            ((_learned(data, training, name, setting, 0, budget), setting) for setting in way.settings),
            key=lambda each: each[0].valid_loss,
        )
        others = [_learned(data, training, name, first[1], seed, budget) for seed in range(1, seeds)]
        records += [first[0], *others]
    return records, [reduction(data, training, seed, TASKS) for seed in range(seeds)]


def from_scratch(data: Characters, training: TrainingProblem, seed: int) -> Record:
    """Return the record of random initial weights."""
    return _record(data, training, FROM_SCRATCH, seed, None, RATE, _start(data.sizes, seed, RATE), 0.0, 0.0)


def _learned(
    data: Characters, training: TrainingProblem, name: str, setting: Setting, seed: int, budget: int
) -> Record:
    started = time.perf_counter()
    learned, spent = learn(data, training, WAYS_TO_LEARN[name], setting, seed, budget)
    seconds = time.perf_counter() - started
    return _record(data, training, name, seed, setting.outer, setting.inner, learned, spent, seconds)


def _record(
    data: Characters,
    training: TrainingProblem,
    way: str,
    seed: int,
    outer: float | None,
    inner: float,
    learned: Learned,
    spent: float,
    seconds: float,
) -> Record:
    valid = {factor: _judged(data, training, learned, "valid", factor)[0] for factor in FACTORS}
    factor = min(FACTORS, key=lambda factor: valid[factor])
    loss, error = _judged(data, training, learned, "test", factor)
    return Record(way, seed, outer, inner, factor, valid[factor], loss, error, spent, seconds)


def _start(sizes: Sequence[int], seed: int, rate: float) -> Learned:
    weights = random_weights(sizes, seed)
    return {"initial": weights, "rates": jnp.full((len(jax.tree.leaves(weights)), 1), rate)}


def learn(
    data: Characters, training: TrainingProblem, way: Way, setting: Setting, seed: int, budget: int
) -> tuple[Learned, float]:
    """Return what a way learns within a budget, and the gradient evaluations that it took."""
    steps = budget // (way.cost * TASKS)
    tasks = draws(data.parts["train"], TASKS, steps, seed)
    start = _start((*data.sizes[:-1], way.outputs(data)), seed, setting.inner)
    *_, learned = descend(way.slope(data, training), start, way.optimizer(setting.outer, steps), tasks)
    if way.outputs(data) != WAYS:
        last = {"weights": jnp.zeros((HIDDEN[-1], WAYS)), "biases": jnp.zeros(WAYS)}
        learned = {**learned, "initial": [*learned["initial"][:-1], last]}
    return learned, float(steps * way.cost * TASKS)


def _judged(
    data: Characters, training: TrainingProblem, learned: Learned, part: str, factor: float
) -> tuple[float, float]:
    """Return the mean loss and error on the query sets of tasks that are the same for all ways and seeds."""
    tasks = draw(data.parts[part], JUDGED, np.random.default_rng(0))
    h = {"initial": learned["initial"], "rates": factor * learned["rates"], **tasks._asdict()}
    found = evaluate(training, h, key=KEY, gradient_below=-math.inf)
    return found.value, math.inf if found.test_loss is None else found.test_loss


def reduction(data: Characters, training: TrainingProblem, seed: int, tasks: int) -> Reduction:
    """Compare MAML with all rates at zero, step by step, with elementary learning on the query sets.

    Training then leaves the weights as they are, so that the hypergradient is the gradient of the query loss at the
    initial weights themselves. With one task the bits are the same; with several, float32 rounds the sum over tasks in
    another order.
    """
    start = _start(data.sizes, seed, 0.0)
    loops = [
        descend(slope, start, optax.sgd(0.1), draws(data.parts["train"], tasks, SAME, seed))
        for slope in (maml(training, ["initial"]), on_queries(data.images))
    ]
    apart, size = 0.0, 0.0
    for one, other in zip(*loops, strict=True):
        pairs = list(zip(*(jax.tree.leaves(each["initial"]) for each in (one, other)), strict=True))
        apart = max([apart, *(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)])
        size = max([size, *(float(jnp.max(jnp.abs(a))) for a, _ in pairs)])
    return Reduction(seed, SAME, apart, size)


def tables(records: Sequence[Record], reductions: Sequence[Reduction]) -> list[Table]:
    """Return what each way has found, and how far MAML with rates of 0 is from elementary learning."""
    by_way: dict[str, dict[int, Record]] = {}
    for record in records:
        by_way.setdefault(record.way, {})[record.seed] = record
    ours = by_way["MAML"]
    found = Table(
        "initial weights",
        "test error (95 % interval)",
        "test loss (95 % interval)",
        "MAML lower",
        "gradient evaluations",
        "n",
        title=f"{WAYS} ways, {SHOTS} shot: medians over seeds of {JUDGED} test tasks",
    )
    for way, mine in sorted(by_way.items(), key=lambda each: _median(each[1], "test_error")):
        wins = sum(ours[seed].test_error < mine[seed].test_error for seed in mine)
        found.add_row(
            way,
            _interval(mine, "test_error"),
            _interval(mine, "test_loss"),
            "" if way == "MAML" else f"{wins} of {len(mine)}",
            f"{_median(mine, 'gradient_evaluations'):,.0f}",
            str(len(mine)),
        )
    same = Table("seed", "outer steps", "largest difference", "largest weight", title="Rates of 0 are plain learning")
    for each in reductions:
        same.add_row(str(each.seed), str(each.steps), f"{each.difference:.1e}", f"{each.weights:.2f}")
    return [found, same]


def _median(mine: Mapping[int, Record], field: str) -> float:
    return float(np.median([getattr(record, field) for record in mine.values()]))


def _interval(mine: Mapping[int, Record], field: str) -> str:
    found = interval([getattr(record, field) for record in mine.values()])
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def write(records: Sequence[Record], reductions: Sequence[Reduction], folder: Path) -> None:
    """Write `records.jsonl` and `reductions.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "records.jsonl", records)
    json_lines.replace(folder / "reductions.jsonl", reductions)
