"""The local step: against the sign of the gradient, in a box with a radius for each coordinate.

In a box, the linear model has its minimum at the corner that the gradient points away from, so a step needs no
length from the gradient, only its signs: hypergradients differ by orders of magnitude between coordinates and along
a path. The radii follow the signs as in Rprop (Riedmiller and Braun 1993): they grow where a sign stays and shrink
where it flips. As in any trust region, a step that did not lower the value is taken back and all radii shrink.
"""

from dataclasses import dataclass, replace

import numpy as np

START = 0.2
LARGEST = 0.5
SMALLEST = 1e-3
GROWTH, SHRINKAGE = 1.3, 0.5
REJECTION = 0.4


@dataclass(frozen=True)
class TrustRegion:
    """A point of the unit box with its value and gradient, and the radii around it; arrays of shape `(n,)`."""

    point: np.ndarray
    value: float
    gradient: np.ndarray
    radii: np.ndarray

    @property
    def spent(self) -> bool:
        """Whether no step is left that would be worth its cost."""
        return bool(self.radii.max(initial=0.0) < SMALLEST) or not self.gradient.any()


def start(point: np.ndarray, value: float, gradient: np.ndarray) -> TrustRegion:
    """A trust region around a first point."""
    return TrustRegion(point, value, gradient, np.full(point.shape, START))


def step(region: TrustRegion) -> np.ndarray:
    """The next point to try, in the unit box."""
    return np.clip(region.point - region.radii * np.sign(region.gradient), 0.0, 1.0)


def accept(region: TrustRegion, point: np.ndarray, value: float, gradient: np.ndarray) -> TrustRegion:
    """Move to a better point."""
    agreement = np.sign(region.gradient) * np.sign(gradient)
    factor = np.where(agreement > 0, GROWTH, np.where(agreement < 0, SHRINKAGE, 1.0))
    return TrustRegion(point, value, gradient, np.minimum(region.radii * factor, LARGEST))


def reject(region: TrustRegion) -> TrustRegion:
    """Stay, and try nearer."""
    return replace(region, radii=region.radii * REJECTION)
