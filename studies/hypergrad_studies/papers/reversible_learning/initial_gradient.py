"""initial-gradient: the hypergradient of every rate and decay at the start of `schedules`, averaged over seeds.

Maclaurin, Duvenaud and Adams 2015, section 3.1. The paper's figure has no numbers. The study shows whether the average
means anything, by how well the averages of two halves of the draws agree.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from hypergrad_search import Reversible, Unrolled, evaluate
from hypergrad_studies import json_lines
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.papers.reversible_learning import scheduled_loops, scheduled_training

DRAWS = 20  # each seed draws initial weights and batches so many times
NAMES = {"log_learning_rate": "log learning rate", "logit_momentum": "logit of the decay"}


@dataclass(frozen=True)
class Draw:
    """One hypergradient: its norm for each name."""

    seed: int
    draw: int
    value: float
    norms: dict[str, float]
    seconds: float


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `initial-gradient.svg` into the folder `out`, and return the numbers."""
    setup = scheduled_training.SETUPS[scale]
    problem = scheduled_training.problem(setup)
    start = scheduled_loops.paper(setup).start_arrays()
    draws, gradients = [], []
    pairs = [(seed, draw) for seed in range(seeds) for draw in range(DRAWS)]
    for seed, draw in track(pairs, "initial-gradient", console=console):
        started = time.perf_counter()
        done = evaluate(
            problem,
            start,
            method=Reversible(fallback=Unrolled()),
            key=jax.random.fold_in(jax.random.key(seed), draw),
        )
        if done.gradient is None:
            raise ArithmeticError(f"initial-gradient: there is no gradient at the start: {done.message}")
        norms = {name: float(np.linalg.norm(done.gradient[name])) for name in NAMES}
        draws.append(Draw(seed, draw, done.value, norms, time.perf_counter() - started))
        gradients.append(done.gradient)
    json_lines.replace(out / "records.jsonl", draws)
    means = [
        {name: np.mean([g[name] for g in gradients[seed * DRAWS : (seed + 1) * DRAWS]], axis=0) for name in NAMES}
        for seed in range(seeds)
    ]
    draw_means({name: np.mean([mean[name] for mean in means], axis=0) for name in NAMES}, out / "initial-gradient.svg")
    starts = [float(np.mean([d.value for d in draws if d.seed == seed])) for seed in range(seeds)]
    rows = [Row("training loss at the start, mean of the draws", 0.531, starts)]
    for name, title in NAMES.items():
        halves = [agreement([g[name] for g in gradients[seed * DRAWS : (seed + 1) * DRAWS]]) for seed in range(seeds)]
        falling = [float(np.mean(mean[name][1::2] < 0)) for mean in means]
        rows += [
            Row(f"{title}: norm of the mean gradient", None, [float(np.linalg.norm(mean[name])) for mean in means]),
            Row(f"{title}: cosine between the means of two halves of the draws", None, halves),
            Row(f"{title}: share of the weights' elements below 0", None, falling),
        ]
    return medians("initial-gradient", rows, sum(d.seconds for d in draws), scale)


def agreement(gradients: Sequence[Any]) -> float:
    """Return the cosine between the mean of the gradients at even positions and the mean of those at odd positions."""
    one, other = (np.mean(gradients[first::2], axis=0).ravel() for first in (0, 1))
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def draw_means(means: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw the mean gradient of each array at each step: weights to the left, biases to the right."""
    figure, axes = figures.panels(len(means), 2)
    for row, (name, gradient) in enumerate(means.items()):
        for column, (first, part) in enumerate(((1, "weights"), (0, "biases"))):
            panel = axes[2 * row + column]
            for i, schedule in enumerate(gradient[first::2], 1):
                panel.plot(schedule, linewidth=1, label=f"layer {i}")
            panel.axhline(0, color="0.6", linewidth=0.8)
            panel.set(xlabel="step", ylabel=f"gradient of the\n{NAMES[name]}", title=part)
    axes[0].legend(frameon=False)
    figure.savefig(path)
