"""`QuasiNewton`: a quadratic model, trusted in a box, that learns its curvature from gradients; for few dimensions.

The curvature is a BFGS matrix with Powell's damping, which keeps it positive definite (Nocedal and Wright 2006,
sections 4.1 and 18.3). Radii change boldly: a step that fails costs a value alone, one that succeeds costs a gradient
too, and validation losses are rugged, so that small careful steps only find the nearest dent.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from scipy.optimize import minimize

from hypergrad_search.checks import number
from hypergrad_search.search.trust_region import LocalStep, Radii, TrustRegion


@dataclass(frozen=True, kw_only=True)
class QuasiNewton(LocalStep):
    """A step to the minimum of a quadratic model within a box whose sides have one length.

    Do not use it for many hundreds of dimensions: a matrix of shape `(n, n)` is kept for each chain.

    - `radii`: how large the box may be.
    - `growth`: the factor by which the radius grows after a good step. Doubling loses few steps where the first radius
      was too small.
    - `rejection`: the factor by which it shrinks after a failed step. It is near 1 because a failed step costs only a
      value.
    - `agreement`: the radius grows where a step brings at least this share of the decrease that the model promised.
      Below a quarter the model does not describe the loss there.
    - `damping`: the share of the model's own curvature that the measured curvature must reach. Where it does not, the
      two are mixed. 0.2 is Powell's choice.
    - `curvatures`: the lowest and highest curvature of the first guess, in units of the box. One step is a poor measure
      of scale, so the guess stays within three orders of magnitude of 1.

    Raises `ValueError` where a factor, `damping` or `curvatures` is out of its range.

    Example:
        >>> from hypergrad_search.search import ExploreDescend, QuasiNewton
        >>> strategy = ExploreDescend(step=QuasiNewton())
    """

    radii: Radii = field(default_factory=Radii)
    growth: float = 2.0
    rejection: float = 0.7
    agreement: float = 0.25
    damping: float = 0.2
    curvatures: tuple[float, float] = (1e-3, 1e3)

    def __post_init__(self) -> None:
        for name in ("growth", "rejection", "agreement", "damping"):
            number(f"QuasiNewton: {name}", getattr(self, name), 0)
        if not isinstance(self.radii, Radii):
            raise ValueError(f"QuasiNewton: radii must be a Radii such as Radii(start=0.1), got {self.radii!r}")
        if not isinstance(self.curvatures, tuple) or len(self.curvatures) != 2:
            raise ValueError(f"QuasiNewton: curvatures must be two numbers (lowest, highest), got {self.curvatures!r}")
        for curvature in self.curvatures:
            number("QuasiNewton: curvatures", curvature, 0)
        if not self.growth >= 1 or not 0 < self.rejection < 1:
            raise ValueError(f"QuasiNewton: growth must be at least 1 and rejection between 0 and 1, got {self}")
        if not 0 < self.damping < 1 or not 0 < self.curvatures[0] <= self.curvatures[1]:
            raise ValueError(
                f"QuasiNewton: damping must be between 0 and 1 and curvatures (lowest, highest) above 0, got {self}"
            )

    def around(self, point: np.ndarray, value: float, gradient: np.ndarray) -> "QuasiNewtonRegion":
        """See `LocalStep`."""
        return QuasiNewtonRegion(point, value, gradient, how=self, radius=self.radii.start)


@dataclass(frozen=True, kw_only=True)
class QuasiNewtonRegion(TrustRegion):
    """A trust region with one radius, and a matrix `curvature` of shape `(n, n)`, None before the first step."""

    how: QuasiNewton
    radius: float
    curvature: np.ndarray | None = None

    @property
    def reach(self) -> float:
        return self.radius

    @property
    def rejection(self) -> float:
        return self.how.rejection

    @property
    def radii_allowed(self) -> Radii:
        return self.how.radii

    def step(self) -> np.ndarray:
        reach = self.radius * self.trust
        low, high = np.maximum(self.point - reach, 0.0), np.minimum(self.point + reach, 1.0)
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
        point: np.ndarray = np.clip(solution.x, low, high)
        return point

    @property
    def expected_gain(self) -> float:
        return -self._change(self.step())

    def length(self, point: np.ndarray) -> float:
        return float(np.abs(point - self.point).max() / (self.radius * self.most_trust))

    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        agreement = (self.value - value) / max(-self._change(point), 1e-300)
        radius = self.radius * self.how.growth if agreement > self.how.agreement else self.radius
        # Where steps get short, the minimum is near, so the radius follows the length of the step.
        near = self.how.growth * self.length(point) * self.radius
        return type(self)(
            point,
            value,
            gradient,
            how=self.how,
            radius=min(radius, near, self.how.radii.largest),
            curvature=self._updated(point - self.point, gradient - self.gradient),
        )

    def resize(self, factor: float) -> Self:
        return replace(self, radius=min(self.radius * factor, self.how.radii.largest))

    def _change(self, point: np.ndarray) -> float:
        """Return the change of the value that the model expects on the way to `point`."""
        step = point - self.point
        quadratic = 0.0 if self.curvature is None else 0.5 * step @ self.curvature @ step
        return float(self.gradient @ step + quadratic)

    def _updated(self, step: np.ndarray, change: np.ndarray) -> np.ndarray | None:
        """Return the BFGS matrix after a step along which the gradient changed by `change`."""
        curvature, damping = self.curvature, self.how.damping
        length = step @ step
        if not length:
            return curvature
        if curvature is None:
            curvature = np.eye(len(step)) * np.clip(abs(step @ change) / length, *self.how.curvatures)
        along = curvature @ step
        expected = step @ along
        share = 1.0 if step @ change >= damping * expected else (1 - damping) * expected / (expected - step @ change)
        damped = share * change + (1 - share) * along
        updated: np.ndarray = curvature - np.outer(along, along) / expected + np.outer(damped, damped) / (step @ damped)
        return updated
