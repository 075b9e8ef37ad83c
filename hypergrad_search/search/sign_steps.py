"""`SignSteps`: steps against the gradient's sign, with a radius for each coordinate; for any number of dimensions.

In a box, the linear model has its minimum at the corner that the gradient points away from, so a step needs no
length from the gradient, only its signs: hypergradients differ by orders of magnitude between coordinates and along
a path. But a sign alone counts tiny derivatives as much as large ones, and thousands of tiny ones would make a random
step. So signs are soft: a coordinate steps half of its radius where its derivative has the median size, and less where
it is smaller. The radii follow the signs as in Rprop (Riedmiller and Braun 1993): they grow where a sign stays and
shrink where it flips. As in any trust region, a step that did not lower the value is taken back and all radii shrink.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from hypergrad_search.checks import number
from hypergrad_search.search.trust_region import LocalStep, Radii, TrustRegion


@dataclass(frozen=True, kw_only=True)
class SignSteps(LocalStep):
    """A step whose length comes from radii, one for each coordinate, rather than from the size of the gradient.

    - `radii`: how large each radius may be. The first is bolder than that of other steps, since a step goes half as far
      as its radius where the derivative has the median size.
    - `growth`: the factor by which a radius grows where the gradient's sign stays. It is bolder than Rprop's 1.2, since
      training runs are dear.
    - `shrinkage`: the factor by which it shrinks where the sign flips, as in Rprop: the minimum was stepped over, so
      the next step should go half as far.
    - `rejection`: the factor by which all radii shrink after a failed step. It is bold, since in many dimensions a step
      that fails has mostly gone much too far.

    Raises `ValueError` where a factor is out of its range.

    Example:
        >>> from hypergrad_search.search import ExploreDescend, Radii, SignSteps
        >>> strategy = ExploreDescend(step=SignSteps(radii=Radii(start=0.05)))
    """

    radii: Radii = field(default_factory=lambda: Radii(start=0.2))
    growth: float = 1.5
    shrinkage: float = 0.5
    rejection: float = 0.4

    def __post_init__(self) -> None:
        for name in ("growth", "shrinkage", "rejection"):
            number(f"SignSteps: {name}", getattr(self, name), 0)
        if not isinstance(self.radii, Radii):
            raise ValueError(f"SignSteps: radii must be a Radii such as Radii(start=0.1), got {self.radii!r}")
        if not self.growth >= 1 or not 0 < self.shrinkage <= 1 or not 0 < self.rejection < 1:
            raise ValueError(
                "SignSteps: growth must be at least 1, shrinkage above 0 and at most 1, rejection between 0 and 1, "
                f"got {self}"
            )

    def around(self, point: np.ndarray, value: float, gradient: np.ndarray) -> "SignRegion":
        """See `LocalStep`."""
        return SignRegion(point, value, gradient, how=self, radii=np.full(point.shape, self.radii.start))


@dataclass(frozen=True, kw_only=True)
class SignRegion(TrustRegion):
    """A trust region with `radii` of shape `(n,)`."""

    how: SignSteps
    radii: np.ndarray

    @property
    def reach(self) -> float:
        return float(self.radii.max(initial=0.0))

    @property
    def rejection(self) -> float:
        return self.how.rejection

    @property
    def radii_allowed(self) -> Radii:
        return self.how.radii

    def step(self) -> np.ndarray:
        move = self.trust * self.radii * np.sign(self.gradient) * self._shares
        point: np.ndarray = np.clip(self.point - move, 0.0, 1.0)
        return point

    @property
    def expected_gain(self) -> float:
        return float(self.gradient @ (self.point - self.step()))

    def length(self, point: np.ndarray) -> float:
        return float((np.abs(point - self.point) / self.radii).max() / ((self.trust * self._shares).max() or 1.0))

    @property
    def _shares(self) -> np.ndarray:
        """The share of its radius that each coordinate steps; coordinates that the box blocks have no share."""
        size: np.ndarray = np.abs(self.downhill)
        return size / (size + np.median(size[size > 0])) if size.any() else size

    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        agreement = np.sign(self.gradient) * np.sign(gradient)
        factor = np.where(agreement > 0, self.how.growth, np.where(agreement < 0, self.how.shrinkage, 1.0))
        radii = np.minimum(self.radii * factor, self.how.radii.largest)
        return type(self)(point, value, gradient, how=self.how, radii=radii)

    def resize(self, factor: float) -> Self:
        return replace(self, radii=np.minimum(self.radii * factor, self.how.radii.largest))
