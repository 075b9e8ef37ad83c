"""What the figures of the reversible-learning studies share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hypergrad_studies.papers.outer import Reported, Runs


def panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of plain panels, row by row."""
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def outer_loop(axes: Axes, done: Runs, reported: Reported | None, ylabel: str) -> None:
    """The outer loss at each iteration, a line for each seed; dashed the loss that the paper reports at the end."""
    for i, (name, runs) in enumerate(done.items()):
        for seed, mine in enumerate(runs):
            label = name if seed == 0 else None
            axes.plot([x.value for x in mine], color=f"C{i}", linewidth=1, label=label)
    if reported:
        axes.axhline(reported.end, color="0.5", linestyle="--", linewidth=1)
    losses = [x.value for runs in done.values() for mine in runs for x in mine if np.isfinite(x.value)]
    starts = [mine[0].value for runs in done.values() for mine in runs if np.isfinite(mine[0].value)]
    axes.set(xlabel="outer iteration", ylabel=ylabel, yscale="log")
    if starts:  # what explored far away would hide the rest
        axes.set_ylim(0.9 * min(losses), 1.1 * max(starts))
    axes.legend(frameon=False)


def images(path: Path, rows: Mapping[str, np.ndarray], symmetric: bool) -> None:
    """Rows of square images, of shape `(n, pixels)` each, on one grey scale a row; around 0 if `symmetric`."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.1 * count, 1.35 * len(rows)), layout="constrained")
    parts = np.ravel(figure.subfigures(len(rows), 1, squeeze=False))
    for part, (name, pictures) in zip(parts, rows.items(), strict=True):
        high = float(np.abs(pictures).max() if symmetric else pictures.max())
        low = -high if symmetric else float(pictures.min())
        side = round(pictures.shape[1] ** 0.5)
        for panel, picture in zip(part.subplots(1, count), pictures, strict=True):
            panel.imshow(picture.reshape(side, side), cmap="gray", vmin=low, vmax=high)
            panel.set(xticks=[], yticks=[])
        part.suptitle(f"{name}: {low:.3g} (black) to {high:.3g} (white)", fontsize=9)
    figure.savefig(path)
