"""How the outer loops of a study compare with the paper's: the numbers, and a figure of their losses."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from hypergrad_studies.papers.results import Row
from hypergrad_studies.papers.reversible_learning.outer import Histories, Iteration, OuterLoop


class Reported(NamedTuple):
    """What the paper reports: the outer loss at the start and the end, the test loss at the end, and the iterations."""

    start: float
    end: float
    test: float
    iterations: int


def rows(loops: Mapping[str, OuterLoop], done: Histories, loss: str, reported: Reported | None) -> list[Row]:
    """Return how each loop began and ended, and how soon it reached the loss at which the paper's loop ended.

    There are two such losses: the reported one, and the one at which the first of `loops`, the paper's own, ended with
    the same seed. `loss` is the name of the outer loss. `reported` is None at a scale for which the paper has nothing.
    """
    found = []
    first = next(iter(loops))
    ends_of_first = [loops[first].outcome(mine).value for mine in done[first]]
    for name, loop in loops.items():
        last = [loop.outcome(mine) for mine in done[name]]
        values = [i.value for i in last]
        found += [
            Row(f"{name}: {loss} at the start", reported and reported.start, [mine[0].value for mine in done[name]]),
            Row(f"{name}: {loss} after {loop.iterations} iterations", reported and reported.end, values),
            Row(f"{name}: the same, worst seed", None, [max(values)] * len(values)),
            Row(f"{name}: test loss there", reported and reported.test, [i.test for i in last]),
        ]
        targets = {f"first iteration at {reported.end:g} or below": [reported.end] * len(values)} if reported else {}
        if name != first:
            targets[f"first iteration where {first} ends"] = ends_of_first
        for label, losses in targets.items():
            soon = [reached(mine, value) for mine, value in zip(done[name], losses, strict=True)]
            spent = [cost(mine, until) for mine, until in zip(done[name], soon, strict=True)]
            found.append(Row(f"{name}: {label}", reported and reported.iterations, soon))
            found.append(Row(f"{name}: gradient evaluations until then", None, spent))
        failures = [float(sum(math.isinf(i.value) for i in mine)) for mine in done[name]]
        found.append(Row(f"{name}: iterations that failed", None, failures))
    return found


def reached(iterations: Sequence[Iteration], value: float) -> float:
    """Return the first iteration whose outer loss is `value` or below; infinite where there is none."""
    return next((float(i.iteration) for i in iterations if i.value <= value), math.inf)


def cost(iterations: Sequence[Iteration], until: float) -> float:
    """Return the gradient evaluations of all iterations up to and including `until`; infinity where `until` is."""
    return sum(i.gradient_evaluations for i in iterations if i.iteration <= until) if until < math.inf else math.inf


def seconds(done: Histories) -> float:
    """Return the seconds that all iterations took together."""
    return sum(i.seconds for runs in done.values() for mine in runs for i in mine)


def draw(axes: Axes, done: Histories, reported: Reported | None, ylabel: str) -> None:
    """Draw the outer loss at each iteration, with a line for each seed, and a dashed line for the paper's loss."""
    for i, (name, runs) in enumerate(done.items()):
        for seed, mine in enumerate(runs):
            label = name if seed == 0 else None
            axes.plot([x.value for x in mine], color=f"C{i}", linewidth=1, label=label)
    if reported:
        axes.axhline(reported.end, color="0.5", linestyle="--", linewidth=1)
    losses = [x.value for runs in done.values() for mine in runs for x in mine if np.isfinite(x.value)]
    starts = [mine[0].value for runs in done.values() for mine in runs if np.isfinite(mine[0].value)]
    axes.set(xlabel="outer iteration", ylabel=ylabel, yscale="log")
    if starts:  # far points that a search explored would squeeze all other lines
        axes.set_ylim(0.9 * min(losses), 1.1 * max(starts))
    axes.legend(frameon=False)
