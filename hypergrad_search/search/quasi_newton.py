"""A quadratic model whose curvature is learned from gradients, trusted in a box: for few dimensions.

The curvature is a BFGS matrix with Powell's damping, which keeps it positive definite (Nocedal and Wright 2006,
sections 4.1 and 18.3). Radii change boldly: a step that fails costs a value, one that succeeds a gradient too, and
validation losses are rugged, so that small careful steps only find the nearest dent.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.optimize import minimize

from hypergrad_search.search.trust_region import LARGEST, START, TrustRegion

GROWTH = 2.0
REJECTION = 0.7
AGREEMENT = 0.25  # of the decrease that the model promised: what a step must have brought for the region to grow
DAMPING = 0.2
CURVATURES = 1e-3, 1e3  # within which the first guess is kept


@dataclass(frozen=True, kw_only=True)
class QuasiNewton(TrustRegion):
    """A trust region with one radius, and a matrix `curvature` of shape `(n, n)`, None before the first step."""

    radius: float
    curvature: np.ndarray | None = None
    rejection = REJECTION

    @property
    def reach(self) -> float:
        return self.radius

    def step(self) -> np.ndarray:
        low, high = np.maximum(self.point - self.radius, 0.0), np.minimum(self.point + self.radius, 1.0)
        corner = np.where(self.gradient > 0, low, np.where(self.gradient < 0, high, self.point))
        if self.curvature is None:
            return corner
        solution = minimize(
            lambda point: (self._change(point), self.gradient + self.curvature @ (point - self.point)),
            corner,
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([low, high], axis=1),
        )
        return np.clip(solution.x, low, high)

    def length(self, point: np.ndarray) -> float:
        return float(np.abs(point - self.point).max() / self.radius)

    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        agreement = (self.value - value) / max(-self._change(point), 1e-300)
        radius = self.radius * GROWTH if agreement > AGREEMENT else self.radius
        return type(self)(
            point,
            value,
            gradient,
            # where steps get short, it is because the minimum is near
            radius=min(radius, GROWTH * self.length(point) * self.radius, LARGEST),
            curvature=_updated(self.curvature, point - self.point, gradient - self.gradient),
        )

    def resize(self, factor: float) -> Self:
        return replace(self, radius=min(self.radius * factor, LARGEST))

    def _change(self, point: np.ndarray) -> float:
        """By how much the value changes on the way to `point`, as the model has it."""
        step = point - self.point
        quadratic = 0.0 if self.curvature is None else 0.5 * step @ self.curvature @ step
        return float(self.gradient @ step + quadratic)


def start(point: np.ndarray, value: float, gradient: np.ndarray) -> QuasiNewton:
    """A region around a first point."""
    return QuasiNewton(point, value, gradient, radius=START)


def _updated(curvature: np.ndarray | None, step: np.ndarray, change: np.ndarray) -> np.ndarray | None:
    """The BFGS matrix after a step along which the gradient changed by `change`."""
    length = step @ step
    if not length:
        return curvature
    if curvature is None:
        curvature = np.eye(len(step)) * np.clip(abs(step @ change) / length, *CURVATURES)
    along = curvature @ step
    expected = step @ along
    share = 1.0 if step @ change >= DAMPING * expected else (1 - DAMPING) * expected / (expected - step @ change)
    damped = share * change + (1 - share) * along
    return curvature - np.outer(along, along) / expected + np.outer(damped, damped) / (step @ damped)
