"""schedules-rivals: one rate, one decay and one initial scale, by other searches, against the schedules of 1,608.

Maclaurin, Duvenaud and Adams 2015, section 3.1, where Bayesian optimisation had about 100 evaluations of these three
numbers. Here TPE, a Gaussian process (if torch is there) and random search have the 20,000 gradient evaluations of the
paper's outer loop: 200 training runs, the first at the same start. "hypergrad" has as many, and "paper" is the run of
`schedules` in the folder beside this study's, which it makes where it is not there yet. What counts is the loss from
initial weights and on batches that no search has seen.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from rich.console import Console

from hypergrad_studies.papers import figures, outer, schedules
from hypergrad_studies.papers.outer import Sampled
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.schedules import Setup

TRIALS = 200
GRADIENT = 4  # training runs that one with its gradient costs
BASELINE = (0.151, None, 0.0832)  # the paper's training loss and test error, by Bayesian optimisation

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def rivals(setup: Setup) -> dict[str, outer.Search]:
    """Searches of three numbers, in the box of the schedules."""
    training = schedules.problem(setup)
    numbers = {name: replace(array, shape=()) for name, array in schedules.space(setup.sizes).items()}
    return {
        name: Sampled(training, numbers, schedules.START, TRIALS, sampler=sampler)
        for name, sampler in SAMPLERS.items()
        if name != "gp" or importlib.util.find_spec("torch")
    }


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules-rivals.svg` into the folder `out`, and return the numbers."""
    setup, folder = schedules.SETUPS[scale], schedules.beside(out, scale)
    within = TRIALS // (GRADIENT * schedules.NETWORKS)
    searches = {**rivals(setup), "hypergrad": replace(schedules.hypergrad(setup), iterations=within)}
    done = outer.run(searches, seeds, out, console)
    paper = schedules.paper(setup)
    outer.complete({"paper": paper}, seeds, folder, console)
    losses = schedules.judge(setup)
    rows = []
    for name, search in searches.items():
        found = [search.found(name, seed, out) for seed in range(seeds)]
        rows += schedules.unseen(name, losses, found, (None, None, None) if name == "hypergrad" else BASELINE)
    rows += schedules.unseen("paper", losses, [paper.found("paper", seed, folder) for seed in range(seeds)])
    figure, (axes,) = figures.panels(1, 1)
    figures.outer_loop(axes, done, setup.reported, "training loss")
    figure.savefig(out / "schedules-rivals.svg")
    return medians("schedules-rivals", rows, outer.seconds(done), scale)
