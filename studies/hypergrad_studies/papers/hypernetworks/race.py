"""Races: searches that all have the same time, and what each of them reaches."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from hypergrad_search import TrainingProblem
from hypergrad_studies import json_lines
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.hypernetworks.searches import Attempt, train
from hypergrad_studies.papers.results import Row

WARM_UP = 15  # evaluations before the clock starts, enough for searches with gradients to compute one


@dataclass(frozen=True)
class Timed:
    """One evaluation in a race, done `seconds` after its search began. The losses are squared errors."""

    seed: int
    method: str
    seconds: float
    value: float
    test: float
    status: str


def race(
    searches: Mapping[str, Callable[[int], Iterator[Attempt]]],
    seeds: int,
    seconds: float,
    path: Path,
    console: Console,
) -> list[tuple[Timed, Attempt]]:
    """Run each search with each seed for so many seconds, one after another; each evaluation is a line of `path`.

    No search pays for compilation, since each runs a few evaluations beforehand, which are thrown away. An evaluation
    that ends after the time is up does not count, unless it is the search's first.
    """
    turns = [(seed, method) for seed in range(seeds) for method in searches]
    done = []
    path.write_bytes(b"")
    for seed, method in track(turns, path.parent.name, console=console):
        for _ in itertools.islice(searches[method](seed), WARM_UP):
            pass
        mine = []
        started = time.perf_counter()
        for i, attempt in enumerate(searches[method](seed)):
            passed = time.perf_counter() - started
            if passed > seconds and i:
                break
            mine.append((Timed(seed, method, passed, attempt.value, attempt.test, attempt.status), attempt))
        json_lines.append(path, *(timed for timed, _ in mine))
        done += mine
    return done


def best(evaluations: Iterable[Timed], method: str, seed: int) -> list[Timed]:
    """Return those evaluations of one search that are better than all before, or the last if no loss is finite."""
    mine = [timed for timed in evaluations if (timed.method, timed.seed) == (method, seed)]
    found: list[Timed] = []
    for timed in mine:
        if timed.value < (found[-1].value if found else math.inf):
            found.append(timed)
    return found or mine[-1:]


def retrain(
    problem: TrainingProblem, raced: Sequence[tuple[Timed, Attempt]], methods: Iterable[str], seeds: int
) -> list[Timed]:
    """Train a model from scratch with the best hyperparameters of each search, and return the losses."""
    evaluations = [timed for timed, _ in raced]
    again = []
    for method, seed in itertools.product(methods, range(seeds)):
        end = best(evaluations, method, seed)[-1]
        hyperparameters = next(attempt.hyperparameters for timed, attempt in raced if timed is end)
        found = train(problem, hyperparameters, seed)
        again.append(replace(end, value=found.value, test=found.test, status=found.status))
    return again


def rows(
    raced: Sequence[tuple[Timed, Attempt]],
    retrained: Sequence[Timed],
    paper: Mapping[str, tuple[float, float]],
    seeds: int,
) -> list[Row]:
    """Return the validation and test loss at the best point of each search, and those of the models in `retrained`.

    `paper` holds both losses that the paper reports for each search.
    """
    evaluations = [timed for timed, _ in raced]
    found = []
    for method, (valid, test) in paper.items():
        last = [best(evaluations, method, seed)[-1] for seed in range(seeds)]
        found.append(Row(f"{method}: validation", valid, [timed.value for timed in last]))
        found.append(Row(f"{method}: test", test, [timed.test for timed in last]))
        if again := [timed for timed in retrained if timed.method == method]:
            found.append(Row(f"{method}: validation, trained from scratch", None, [timed.value for timed in again]))
            found.append(Row(f"{method}: test, trained from scratch", None, [timed.test for timed in again]))
    return found


def draw(evaluations: Sequence[Timed], path: Path) -> None:
    """Draw the best validation loss so far against seconds and the test loss there, with a line for each seed."""
    figure, panels = figures.panels(1, 2, width=5.25, height=4.4)
    panels[1].sharey(panels[0])
    methods = list(dict.fromkeys(timed.method for timed in evaluations))
    for (i, method), seed in itertools.product(enumerate(methods), sorted({timed.seed for timed in evaluations})):
        curve = best(evaluations, method, seed)
        seconds = [timed.seconds for timed in curve] + [max(timed.seconds for timed in evaluations)]
        for axes, part in zip(panels, ("value", "test"), strict=True):
            losses = [getattr(timed, part) for timed in curve]
            label = method if seed == 0 else None
            axes.step(seconds, losses + losses[-1:], where="post", color=f"C{i}", linewidth=1, label=label)
    for axes, label in zip(panels, ("validation", "test"), strict=True):
        axes.set(xscale="log", xlabel="seconds", ylabel=f"squared error, {label}")
    panels[0].set_yscale("log")
    panels[1].legend(frameon=False)
    figure.savefig(path)
