"""initial-scales: what the outer loops of `schedules` make of the initial scales, beside 1 / sqrt(fan-in).

Maclaurin, Duvenaud and Adams 2015, section 3.1. The scales are those of the runs of `schedules` in the folder beside
this study's, which it makes where they are not there yet.
"""

from pathlib import Path

import numpy as np
from rich.console import Console

from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training

LEARNED = (0.044, 0.249, 0.164, 0.126)  # what the paper reports for the weights of each layer


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `initial-scales.svg` into the folder `out`, and return the numbers."""
    setup, folder = scheduled_training.SETUPS[scale], scheduled_loops.folder_of_schedules(out, scale)
    paper, hypergrad = scheduled_loops.paper(setup), scheduled_loops.hypergrad(setup)
    done = outer.finish({"paper": paper, "hypergrad": hypergrad}, seeds, folder, console)
    paths = np.exp([paper.trajectory("paper", seed, folder)["log_init_scale"] for seed in range(seeds)])
    own = np.exp([hypergrad.found("hypergrad", seed, folder)["log_init_scale"] for seed in range(seeds)])
    rows = []
    for i, fan_in in enumerate(setup.sizes[:-1]):
        weights = 2 * i + 1  # biases come first
        rows += [
            Row(f"layer {i + 1}: 1 / sqrt(fan-in)", None, [fan_in**-0.5] * seeds),
            Row(f"layer {i + 1}: paper", LEARNED[i], paths[:, -1, weights].tolist()),
            Row(f"layer {i + 1}: hypergrad", LEARNED[i], own[:, weights].tolist()),
        ]
    draw(setup, paths, out / "initial-scales.svg")
    return medians("initial-scales", rows, comparison.seconds(done), scale)


def draw(setup: scheduled_training.Setup, paths: np.ndarray, path: Path) -> None:
    """Draw the scales at each iteration of the paper's loop: `paths` has shape `(seeds, iterations, arrays)`."""
    figure, axes = figures.panels(1, 2)
    for panel, first, title in ((axes[0], 1, "weights"), (axes[1], 0, "biases")):
        for i, fan_in in enumerate(setup.sizes[:-1]):
            for seed, mine in enumerate(paths):
                label = f"layer {i + 1}" if seed == 0 else None
                panel.plot(mine[:, 2 * i + first], color=f"C{i}", linewidth=1, label=label)
            if first:
                panel.axhline(fan_in**-0.5, color="0.6", linestyle="--", linewidth=1)
        panel.set(xlabel="outer iteration", ylabel="initial scale", yscale="log", title=title)
    axes[0].legend(frameon=False)
    figure.savefig(path)
