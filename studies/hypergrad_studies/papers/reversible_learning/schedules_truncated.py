"""schedules-truncated: schedules learned from hypergradients of the last steps alone.

A truncated hypergradient says nothing about the rates before these steps, nor about initial scales. It counts the
other rates for what they do at once, so that a rate which is better in the long run may look too high (short-horizon
bias: Wu, Ren, Liao and Grosse 2018). The study runs the paper's outer loop with the last 10, 25 and 50 of 100 steps,
and with all of them.
"""

from pathlib import Path

import numpy as np
from rich.console import Console

from hypergrad_search import Reversible, Unrolled
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training, unseen

LAST = (10, 25, 50, scheduled_training.STEPS)


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules-truncated.svg` into the folder `out`, and return the numbers."""
    setup = scheduled_training.SETUPS[scale]
    loops = {f"last-{last}": scheduled_loops.paper(setup, Reversible(last=last, fallback=Unrolled())) for last in LAST}
    done = outer.record(loops, seeds, out, console)
    losses = unseen.judge(setup)
    rows, rates = [], {}
    for name, loop in loops.items():
        found = [loop.found(name, seed, out) for seed in range(seeds)]
        rows += unseen.rows(name, losses, found)
        weights = np.exp([mine["log_learning_rate"][1::2] for mine in found])
        rates[name] = np.exp(np.log(weights).mean(axis=(0, 1)))
        ends = np.exp(np.log(weights[..., -LAST[0] :]).mean(axis=(1, 2)))
        rows.append(Row(f"{name}: mean learning rate of the last {LAST[0]} steps, weights", None, ends.tolist()))
    figure, axes = figures.panels(1, 2)
    for name, schedule in rates.items():
        axes[0].plot(schedule, label=name)
    axes[0].set(xlabel="step", ylabel="learning rate of the weights,\nmean of layers and seeds", yscale="log")
    axes[0].legend(frameon=False)
    comparison.draw(axes[1], done, setup.reported, "training loss")
    figure.savefig(out / "schedules-truncated.svg")
    return medians("schedules-truncated", rows, comparison.seconds(done), scale)
