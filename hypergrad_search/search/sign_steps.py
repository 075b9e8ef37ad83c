"""Steps against the sign of the gradient, in a box with a radius for each coordinate: for any number of dimensions.

In a box, the linear model has its minimum at the corner that the gradient points away from, so a step needs no
length from the gradient, only its signs: hypergradients differ by orders of magnitude between coordinates and along
a path. But a sign says as much of a gradient of next to nothing, and thousands of those are a step at random. So signs
are soft: where the gradient has its median size a step is half of the radius, and less where it is smaller. The radii
follow the signs as in Rprop (Riedmiller and Braun 1993): they grow where a sign stays and shrink where it flips. As in
any trust region, a step that did not lower the value is taken back and all radii shrink.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hypergrad_search.search.trust_region import LARGEST, START, TrustRegion

GROWTH, SHRINKAGE = 1.3, 0.5
REJECTION = 0.4


@dataclass(frozen=True, kw_only=True)
class SignSteps(TrustRegion):
    """A trust region with `radii` of shape `(n,)`."""

    radii: np.ndarray
    rejection = REJECTION

    @property
    def reach(self) -> float:
        return float(self.radii.max(initial=0.0))

    def step(self) -> np.ndarray:
        return np.clip(self.point - self.radii * np.sign(self.gradient) * self._shares, 0.0, 1.0)

    def length(self, point: np.ndarray) -> float:
        return float((np.abs(point - self.point) / self.radii).max() / (self._shares.max() or 1.0))

    @property
    def _shares(self) -> np.ndarray:
        """Of its radius, that each coordinate's step has; what the box leaves no room for does not count."""
        size = np.abs(self.downhill)
        return size / (size + np.median(size[size > 0])) if size.any() else size

    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        agreement = np.sign(self.gradient) * np.sign(gradient)
        factor = np.where(agreement > 0, GROWTH, np.where(agreement < 0, SHRINKAGE, 1.0))
        return type(self)(point, value, gradient, radii=np.minimum(self.radii * factor, LARGEST))

    def resize(self, factor: float) -> Self:
        return replace(self, radii=np.minimum(self.radii * factor, LARGEST))


def start(point: np.ndarray, value: float, gradient: np.ndarray) -> SignSteps:
    """A region around a first point."""
    return SignSteps(point, value, gradient, radii=np.full(point.shape, START))
