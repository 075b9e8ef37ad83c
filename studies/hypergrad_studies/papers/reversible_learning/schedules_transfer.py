"""schedules-transfer: schedules learned on a small network, for one four times as wide, trained ten times as long.

If this worked, searches of schedules would pay: one could tune a small prototype, and then train the large network. The
schedules are those of `schedules` (the runs in the folder beside this study's, which it makes where they are not there
yet). Each entry lasts for ten steps, and the initial scales of weights are divided by two where their fan-in is four
times as large. The rivals are two settings of one rate, one decay and one initial scale: what TPE found for the small
network in 200 runs, carried over in the same way, and what it found for the large one in 20 runs of that network. What
counts is the loss from initial weights and on batches that no search has seen.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training, unseen
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup
from hypergrad_studies.papers.reversible_learning.schedules_rivals import rivals

WIDER, LONGER = 4, 10
TRIALS = 20  # TPE has so many on the large network
RUNS = 3  # losses that count are means over so many training runs


def large(setup: Setup) -> Setup:
    """Return the large network, and its longer training."""
    pixels, *hidden, classes = setup.sizes
    wide = (pixels, *(WIDER * units for units in hidden), classes)
    return Setup(wide, setup.data, steps=LONGER * setup.steps)


def carried(setup: Setup, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return hyperparameters of the small network, changed to suit the large one."""
    narrow, wide = setup.sizes[:-1], large(setup).sizes[:-1]
    shrink = [x for a, b in zip(narrow, wide, strict=True) for x in (0.0, 0.5 * np.log(a / b))]  # biases, weights
    scales = np.broadcast_to(found["log_init_scale"], len(shrink)) + np.array(shrink, np.float32)
    return {**found, "log_init_scale": scales.astype(np.float32)}


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules-transfer.svg` into the folder `out`, and return the numbers."""
    setup, folder = scheduled_training.SETUPS[scale], scheduled_loops.folder_of_schedules(out, scale)
    learned = scheduled_loops.outer_loops(setup)
    outer.finish(learned, seeds, folder, console)
    training = scheduled_training.problem(large(setup))
    small = rivals(setup)["tpe"]
    tuned = replace(small, problem=training, iterations=TRIALS)
    done = outer.record({"tpe-small": small, "tpe-large": tuned}, seeds, out, console)
    found = {
        **{f"schedules, {name}": [loop.found(name, s, folder) for s in range(seeds)] for name, loop in learned.items()},
        "constant, tuned on the small network": [small.found("tpe-small", s, out) for s in range(seeds)],
    }
    ways = {name: [carried(setup, mine) for mine in runs] for name, runs in found.items()}
    ways["constant, tuned on the large network"] = [tuned.found("tpe-large", s, out) for s in range(seeds)]
    losses = unseen.judge(large(setup), runs=RUNS)
    rows = [row for name, runs in ways.items() for row in unseen.rows(name, losses, runs)]
    figure, (axes,) = figures.panels(1, 1)
    for name, runs in ways.items():
        axes.plot(unseen.curve(training, runs[0], every=LONGER), label=name, linewidth=1)
    axes.set(xlabel=f"{LONGER} steps", ylabel="training loss", yscale="log")
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(out / "schedules-transfer.svg")
    return medians("schedules-transfer", rows, comparison.seconds(done), scale)
