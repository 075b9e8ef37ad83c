"""Variants of a step: other steps from the same head, for the workers beside the one that takes the local step.

A chain of steps is sequential, so that other workers can only help by trying other steps from the same head, of which
the best one counts. Those that learn from more gradients than the head's own help most. They are bold, and wrong at
times, which costs no time while another worker takes the local step.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The number of steps that are tried from one head at the same time, the local step among them. Further workers extend
#: other chains, or explore, since a fourth step, whichever it was, has gained nothing.
VARIANTS = 3
#: Two steps lead to the same place if they end nearer to one another than this share of their length.
NEAR = 0.1
#: How many points a head remembers besides its own, and so the most curvatures along different lines that it knows.
REMEMBERED = 8
#: No coordinate moves by more than so many times as far as the local step may go.
FARTHEST = 4.0


@dataclass(frozen=True)
class Slope:
    """A point of the unit box with its gradient, both of shape `(n,)`."""

    point: np.ndarray
    gradient: np.ndarray


def move_of(
    variant: int, head: Slope, downhill: np.ndarray, trail: Sequence[Slope], step: np.ndarray, reach: float
) -> np.ndarray:
    """Return the move from a head, shape `(n,)`, that a variant of the next step makes; the box does not bound it yet.

    1 goes to the minimum of a quadratic that has the gradients of the last points, and 2 treats each coordinate by
    itself. Before there is a second gradient, 1 follows the gradient, and 2 goes twice as far as the local step.

    - `downhill`: the gradient where the box leaves room to follow it, and 0 elsewhere.
    - `trail`: the points before the head, the latest one last.
    - `step`: the move of the local step; `reach` is how far it may go.
    """
    steepest = downhill / -np.abs(downhill).max() * reach
    if not trail:
        return steepest if variant == 1 else 2 * step
    with np.errstate(all="ignore"):  # gradients may be so large that their products overflow
        move = _by_coordinates(head, trail[-1], step) if variant == 2 else _quasi_newton(head, downhill, trail)
        move *= min(1.0, FARTHEST * reach / np.abs(move).max())
    return move if np.isfinite(move).all() else steepest


def _by_coordinates(head: Slope, before: Slope, step: np.ndarray) -> np.ndarray:
    """Return a Newton step for each coordinate by itself, and the local step where the curvature is not positive."""
    moved, change, most = head.point - before.point, head.gradient - before.gradient, FARTHEST * np.abs(step)
    newton = np.clip(-head.gradient * moved / change, -most, most)
    move: np.ndarray = np.where(moved * change > 0, newton, step)
    return move


def _quasi_newton(head: Slope, downhill: np.ndarray, trail: Sequence[Slope]) -> np.ndarray:
    """Return the step of limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4), NaN without positive curvature.

    It is that of the coordinates that the box leaves free.
    """
    points, free = [*trail, head], downhill != 0
    pairs = [((b.point - a.point) * free, (b.gradient - a.gradient) * free) for a, b in itertools.pairwise(points)]
    curved = [(s, y) for s, y in pairs if s @ y > 1e-10 * math.sqrt((s @ s) * (y @ y))]
    if not curved:
        return np.full_like(downhill, np.nan)
    move: np.ndarray = -downhill
    shares: list[float] = []
    for s, y in reversed(curved):
        shares.append((s @ move) / (s @ y))
        move = move - shares[-1] * y
    s, y = curved[-1]
    move = move * ((s @ y) / (y @ y))
    for (s, y), share in zip(curved, reversed(shares), strict=True):
        move = move + (share - (y @ move) / (s @ y)) * s
    return move
