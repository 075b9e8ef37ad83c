"""schedules-rivals: one rate, one decay and one initial scale, by other searches, against the schedules of 1,608.

Maclaurin, Duvenaud and Adams 2015, section 3.1, where Bayesian optimisation had about 100 evaluations of these three
numbers. Here TPE, a Gaussian process (if torch is there) and random search have the 20,000 gradient evaluations of the
paper's outer loop, which are 200 training runs after the one at the same start. "hypergrad" has as many, and "paper" is
the run of `schedules` in the folder beside this study's, which it makes where it is not there yet. What counts is the
loss from initial weights and on batches that no search has seen.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from rich.console import Console

from hypergrad_search.cost import VALUE_AND_GRADIENT
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training, unseen
from hypergrad_studies.papers.reversible_learning.outer import OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup

TRIALS = 200
BASELINE = (0.151, None, 0.0832)  # the paper's training loss and test error, by Bayesian optimisation

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def rivals(setup: Setup) -> dict[str, OuterLoop]:
    """Return the searches of three numbers, in the box of the schedules."""
    training = scheduled_training.problem(setup)
    numbers = {name: replace(array, shape=()) for name, array in scheduled_training.space(setup.sizes).items()}
    return {
        name: Sampled(training, numbers, scheduled_loops.START, TRIALS, sampler=sampler)
        for name, sampler in SAMPLERS.items()
        if name != "gp" or importlib.util.find_spec("torch")
    }


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules-rivals.svg` into the folder `out`, and return the numbers."""
    setup, folder = scheduled_training.SETUPS[scale], scheduled_loops.folder_of_schedules(out, scale)
    iterations = TRIALS // (VALUE_AND_GRADIENT * scheduled_loops.NETWORKS)
    loops = {**rivals(setup), "hypergrad": replace(scheduled_loops.hypergrad(setup), iterations=iterations)}
    done = outer.record(loops, seeds, out, console)
    paper = scheduled_loops.paper(setup)
    outer.finish({"paper": paper}, seeds, folder, console)
    losses = unseen.judge(setup)
    rows = []
    for name, loop in loops.items():
        found = [loop.found(name, seed, out) for seed in range(seeds)]
        rows += unseen.rows(name, losses, found, (None, None, None) if name == "hypergrad" else BASELINE)
    rows += unseen.rows("paper", losses, [paper.found("paper", seed, folder) for seed in range(seeds)])
    figure, (axes,) = figures.panels(1, 1)
    comparison.draw(axes, done, setup.reported, "training loss")
    figure.savefig(out / "schedules-rivals.svg")
    return medians("schedules-rivals", rows, comparison.seconds(done), scale)
