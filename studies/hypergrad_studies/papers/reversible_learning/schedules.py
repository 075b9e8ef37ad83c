"""schedules: a learning rate and a decay for each array at each step, and each array's initial scale, 1,608 in all.

Maclaurin, Duvenaud and Adams 2015, section 3.1: a tanh network 784-50-50-50-10 (on scikit-learn's digits 64-...), 100
steps on random batches of 200 of 10,000 images of MNIST. The hyperparameters are logarithms of rates and scales, and
logits of decays. The outer loss is the training loss on all 10,000 images. There are two outer loops:

- "paper": Adam as in the authors' code, with step 0.04. Each iteration has its own initial weights and batches.
- "hypergrad": `HypergradSampler`, from the same start, on the mean loss of four networks. The same schedules train all
  of them, each from its own initial weights on its own batches, which stay the same in each iteration. With one network
  it would learn the batches by heart, and with new batches in each iteration a step could not be judged.

So one iteration of "hypergrad" costs four training runs. What counts in the end is the loss from initial weights and
on batches that no search has seen.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training, unseen
from hypergrad_studies.papers.reversible_learning.outer import Histories, OuterLoop
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup

RATES = {"paper": (3.3, 1.2, 1.8, 6.7), "small": (None,) * 4}  # the paper's largest learning rate in each layer


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules.svg` into the folder `out`, and return the numbers."""
    setup = scheduled_training.SETUPS[scale]
    loops = scheduled_loops.outer_loops(setup)
    done = outer.record(loops, seeds, out, console)
    found = {name: [loop.found(name, seed, out) for seed in range(seeds)] for name, loop in loops.items()}
    draw(setup, loops, done, found, out / "schedules.svg")
    rows = comparison.rows(loops, done, "training loss", setup.reported)
    losses = unseen.judge(setup)
    # the paper reports losses with seeds that no earlier iteration had
    reported = (setup.reported.end, setup.reported.test, None) if setup.reported else (None, None, None)
    for name in loops:
        rows += unseen.rows(name, losses, found[name], reported)
    peaks = np.array([np.exp(mine["log_learning_rate"]).max(axis=1)[1::2] for mine in found["paper"]])
    rows += [
        Row(f"paper: largest learning rate, layer {i}", paper, peak.tolist())
        for i, (paper, peak) in enumerate(zip(RATES[scale], peaks.T, strict=True), 1)
    ]
    return medians("schedules", rows, comparison.seconds(done), scale)


def draw(
    setup: Setup,
    loops: Mapping[str, OuterLoop],
    done: Histories,
    found: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    path: Path,
) -> None:
    """Draw the learned schedules by layer, the learning curves before and after, and the outer loops."""
    figure, axes = figures.panels(3, len(loops))
    ways: list[tuple[str, Callable[[Any], Any], str]] = [
        ("log_learning_rate", np.exp, "learning rate"),
        ("logit_momentum", jax.nn.sigmoid, "decay"),
    ]
    for row, (name, transform, label) in enumerate(ways):
        for column, loop in enumerate(loops):
            panel = axes[row * len(loops) + column]
            for i, schedule in enumerate(transform(np.median([mine[name] for mine in found[loop]], axis=0))[1::2], 1):
                panel.plot(schedule, linewidth=1.2, label=f"layer {i}")
            panel.set(xlabel="step", ylabel=label, title=loop)
    axes[0].legend(frameon=False)
    curves, losses, *_ = axes[-len(loops) :]
    one_network = scheduled_training.problem(setup)
    start = loops["paper"].start_arrays()
    for label, hyperparameters in {"at the start": start, **{name: mine[0] for name, mine in found.items()}}.items():
        curves.plot(unseen.curve(one_network, hyperparameters), label=label)
    curves.set(xlabel="step", ylabel="training loss")
    curves.legend(frameon=False)
    comparison.draw(losses, done, setup.reported, "training loss")
    figure.savefig(path)
