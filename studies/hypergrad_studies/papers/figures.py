"""What the figures of all studies share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(rows: int, columns: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row, each `width` x `height` inches, without upper and right frames."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def images(path: Path, rows: Mapping[str, np.ndarray], symmetric: bool) -> None:
    """Draw rows of square images, each of shape `(n, pixels)`, with one grey scale for each row.

    With `symmetric` the scale reaches as far below 0 as above it.
    """
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
