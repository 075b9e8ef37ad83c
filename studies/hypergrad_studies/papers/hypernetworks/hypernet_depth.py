"""hypernet-depth: a penalty for each weight of ever deeper networks, beside one penalty tuned by hand.

Lorraine and Duvenaud 2018, section 4 (comparison of depths): 784-10, 784-100-10 and 784-100-100-10 with ReLUs on MNIST,
50,000 images to train, 10,000 to validate, batches of 100; hidden layers of 20 on scikit-learn's digits at the small
scale. Joint optimisation is this package's, centred, and starts from log penalties of -6, a value of the grid:
"rank 10" has the paper's bottleneck of 10 units, "diagonal" one number for each weight (`Diagonal`). "hand-tuned" is
the best of a grid of single penalties for all weights; each of its runs has as many steps, with Adam at the same rate.
A hypernetwork's final penalties are also shown with a model that is trained from scratch.
"""

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from hypergrad_search import Hypernet, TrainingProblem, adam, evaluate
from hypergrad_search.hypergradient import Diagonal, LowRank
from hypergrad_studies import json_lines
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.hypernetworks import penalised, searches, splits
from hypergrad_studies.papers.results import Result, Row, Scale, medians

LOW, HIGH = -12.0, 2.0  # the range of log penalties
START = -6.0
GRID = tuple(np.arange(-10.0, 1.0, 2.0).tolist())  # the single log penalties that are tried by hand
RATE = 1e-3
NETWORKS = {"rank 10": LowRank(10), "diagonal": Diagonal()}


@dataclass(frozen=True)
class Setup:
    """What a scale means: the networks, and the steps of each training run and of each hypernetwork."""

    sizes: tuple[tuple[int, ...], ...]
    steps: int


SETUPS: dict[Scale, Setup] = {
    "small": Setup(((64, 10), (64, 20, 10), (64, 20, 20, 10)), 3000),
    "paper": Setup(((784, 10), (784, 100, 10), (784, 100, 100, 10)), 20_000),
}

#: about what the paper has for each number of layers: the validation losses of the hypernetwork and of hand-tuning
PAPER = {1: (0.039, 0.037), 2: (0.013, 0.0137), 3: (0.0105, 0.0129)}


@dataclass(frozen=True)
class Trained:
    """One training of a network: with a single penalty, by a hypernetwork, or with a hypernetwork's penalties."""

    seed: int
    network: str
    method: str
    log_l2: float | None
    value: float
    test: float
    status: str


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-depth.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    started = time.perf_counter()
    points: list[Trained] = []
    for sizes in setup.sizes:
        problem = penalised.problem(
            splits.load(scale, 50_000),
            sizes,
            optimizer=adam(RATE),
            steps=setup.steps,
            batch=100,
        )
        network = "-".join(map(str, sizes))
        for seed in track(range(seeds), f"hypernet-depth, {network}", console=console):
            points += train_all(problem, sizes, network, seed)
    json_lines.replace(out / "records.jsonl", points)
    draw(points, out / "hypernet-depth.svg")
    rows = [row for sizes in setup.sizes for row in _rows(points, "-".join(map(str, sizes)), len(sizes) - 1, seeds)]
    return medians("hypernet-depth", rows, time.perf_counter() - started, scale)


def train_all(problem: TrainingProblem, sizes: tuple[int, ...], network: str, seed: int) -> list[Trained]:
    """Train with each single penalty of the grid, by each hypernetwork, and with the penalties that these find."""
    space = penalised.penalties(sizes, math.exp(LOW), math.exp(HIGH))
    points = []
    for log_l2 in GRID:
        found = searches.train(problem, penalised.alike(space, math.exp(log_l2)), seed)
        points.append(Trained(seed, network, "hand-tuned", log_l2, found.value, found.test, found.status))
    for name, response in NETWORKS.items():
        method = Hypernet(network=response, optimizer=optax.adam(RATE), steps=problem.steps)
        start = penalised.alike(space, math.exp(START))
        done = evaluate(problem, start, method=method, key=jax.random.key(seed), space=space)
        own = searches.attempt(start, done)
        points.append(Trained(seed, network, name, None, own.value, own.test, own.status))
        if done.refined is not None:
            found = searches.train(problem, done.refined, seed)
            again = f"{name}, trained from scratch"
            points.append(Trained(seed, network, again, None, found.value, found.test, found.status))
    return points


def chosen(points: Iterable[Trained], network: str, method: str, seed: int) -> Trained | None:
    """Return the training with a method that has the lowest validation loss; None where there is none."""
    mine = [point for point in points if (point.network, point.method, point.seed) == (network, method, seed)]
    return min(mine, key=lambda point: point.value, default=None)


def _rows(points: list[Trained], network: str, layers: int, seeds: int) -> list[Row]:
    hypernet, by_hand = PAPER[layers]
    papers = {**dict.fromkeys(NETWORKS, hypernet), "hand-tuned": by_hand}
    rows = []
    for method, part in itertools.product(dict.fromkeys(point.method for point in points), ("value", "test")):
        ends = [chosen(points, network, method, seed) for seed in range(seeds)]
        ours = [math.inf if end is None else getattr(end, part) for end in ends]
        paper = papers.get(method) if part == "value" else None
        rows.append(Row(f"{network}, {method}: {'validation' if part == 'value' else 'test'}", paper, ours))
    return rows


def draw(points: list[Trained], path: Path) -> None:
    """Draw the validation losses by depth, a marker for each seed."""
    figure, (axes,) = figures.panels(1, 1, width=7.5, height=4.4)
    networks, methods = (
        list(dict.fromkeys(getattr(point, name) for point in points)) for name in ("network", "method")
    )
    for i, method in enumerate(methods):
        for x, network in enumerate(networks):
            ends = [chosen(points, network, method, seed) for seed in {point.seed for point in points}]
            losses = [end.value for end in ends if end is not None and math.isfinite(end.value)]
            at = [x + (i - len(methods) / 2) / 20] * len(losses)
            axes.plot(at, losses, "o", color=f"C{i}", label=method if x == 0 else None)
    axes.set_xticks(range(len(networks)), networks)
    axes.set_yscale("log")
    axes.set_ylabel("squared error, validation")
    axes.legend(frameon=False)
    figure.savefig(path)
