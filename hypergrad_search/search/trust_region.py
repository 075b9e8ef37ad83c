"""The local step: around the head of a chain, a region of the unit box within which a model of the value is trusted.

The model depends on the dimension. Where a matrix is cheap, the model is a quadratic whose curvature is learned from
the gradients (`quasi_newton`). Where it is not, each coordinate has a radius that follows the gradient's signs
(`sign_steps`).
"""

import abc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hypergrad_search.checks import number, whole_number
from hypergrad_search.search.variants import NEAR, REMEMBERED, VARIANTS, Slope, move_of


class LocalStep(abc.ABC):
    """A way to move on from a point whose gradient is known: it makes the first region around the point."""

    @abc.abstractmethod
    def around(self, point: np.ndarray, value: float, gradient: np.ndarray) -> "TrustRegion":
        """Return the region around a first point of the unit box, given its value and gradient, of shape `(n,)`."""


@dataclass(frozen=True, kw_only=True)
class Radii:
    """The allowed radii of a trust region, in units of the box.

    - `start`: the radius of a new region. What exploring finds is good to about a tenth of the box.
    - `largest`: no radius grows beyond this, with which a step reaches half of the box.
    - `smallest`: a region whose radius falls below this is spent, since a step that short is not worth a training run.

    Raises `ValueError` unless 0 < smallest <= start <= largest.

    Example:
        >>> from hypergrad_search.search import Radii, SignSteps
        >>> step = SignSteps(radii=Radii(start=0.1, largest=0.2))
    """

    start: float = 0.1
    largest: float = 0.5
    smallest: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("start", "largest", "smallest"):
            number(f"Radii: {name}", getattr(self, name), 0)
        if not 0 < self.smallest <= self.start <= self.largest:
            raise ValueError(f"Radii: 0 < smallest <= start <= largest must hold, got {self}")


@dataclass(frozen=True)
class TrustRegion(abc.ABC):
    """A point of the unit box, with its value and gradient: arrays of shape `(n,)`.

    `looks` counts how often the point was evaluated (value and gradient are the means), and `rejections` how many steps
    from it have failed since it was last looked at. `held_back` has the loss at the point on each fold of the
    validation set, and `blocks` those on each fold's blocks; both are None where nothing is held back. The gradient
    leaves the fold `left_out` out. `cross_validated` is the cross-validated loss, None where it is not known.

    `trail` holds points that the search passed on its way here, with their gradients, the latest one last. `found_by`
    is the variant of the step that led here, and `failed` has the variants but the first that have failed from here.
    `trust` says how far each derivative is believed, from 0 to 1: a coordinate goes this share of its step.
    """

    point: np.ndarray
    value: float
    gradient: np.ndarray
    looks: int = 1
    rejections: int = 0
    held_back: tuple[float, ...] | None = None
    blocks: tuple[tuple[float, ...], ...] | None = None
    cross_validated: float | None = None
    left_out: int = 0
    trail: tuple[Slope, ...] = ()
    found_by: int = 0
    failed: tuple[int, ...] = ()
    trust: np.ndarray | float = 1.0

    @property
    @abc.abstractmethod
    def reach(self) -> float:
        """The distance that the next step may go, in units of the box."""

    @property
    @abc.abstractmethod
    def rejection(self) -> float:
        """The factor by which radii shrink after a step that failed."""

    @property
    @abc.abstractmethod
    def radii_allowed(self) -> Radii:
        """The allowed radii of the region."""

    @abc.abstractmethod
    def step(self) -> np.ndarray:
        """Return the next point to try, in the unit box; coordinates that are believed less go less far."""

    @property
    @abc.abstractmethod
    def expected_gain(self) -> float:
        """How much the model expects the next step to lower the value."""

    @abc.abstractmethod
    def length(self, point: np.ndarray) -> float:
        """Return the length of the step to `point`, in radii."""

    @abc.abstractmethod
    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        """Return the region around a better point."""

    @abc.abstractmethod
    def resize(self, factor: float) -> Self:
        """Return the same region with radii that are `factor` times as large."""

    def reject(self, point: np.ndarray) -> Self:
        """Return the region after the step to `point` has failed, so that the next step goes less far."""
        nearer = min(self.rejection * self.length(point), 1.0)
        return replace(self.resize(nearer), rejections=self.rejections + 1)

    def variants(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the variants of the next step that are worth a try, with their points, in the order to try them.

        The one that led here goes first, since what has worked may work again. One that leads to the same place as one
        of a lower number is left out.
        """
        distinct = self._distinct()
        if self.found_by:
            distinct = iter(sorted(distinct, key=lambda variant: variant[0] != self.found_by))
        return (variant for variant in distinct if variant[0] not in self.failed)

    def _distinct(self) -> Iterator[tuple[int, np.ndarray]]:
        points: list[np.ndarray] = []
        for variant in range(VARIANTS):
            point = self.variant(variant)
            near = NEAR * np.abs(point - self.point).max()
            if all(np.abs(point - other).max() > near for other in points):
                points.append(point)
                yield variant, point

    def variant(self, variant: int) -> np.ndarray:
        """Return the point that a variant of the next step leads to, in the unit box; that of 0 is `step`."""
        step = self.step()
        if not variant:
            return step
        move = move_of(
            variant, Slope(self.point, self.gradient), self.downhill, self.trail, step - self.point, self.reach
        )
        point: np.ndarray = np.clip(self.point + self.trust * move, 0.0, 1.0)
        return point

    def fail(self, variant: int) -> Self:
        """Return the region after a variant other than the first has failed, which says nothing of the first."""
        return replace(self, failed=(*self.failed, variant))

    def follow(self, point: np.ndarray, value: float, gradient: np.ndarray, variant: int) -> Self:
        """Return the region around a better point, to which a variant of the next step has led, with its trail."""
        region = self
        if variant:  # the radii must not be longer than the step that was found to be good
            usual = float(np.linalg.norm(self.step() - self.point))
            region = self.resize(min(float(np.linalg.norm(point - self.point)) / usual, 1.0) if usual else 1.0)
        here = Slope(self.point, self.gradient)
        return replace(region.accept(point, value, gradient), found_by=variant)._with_trail((*self.trail, here))

    def pass_by(self, slope: Slope) -> Self:
        """Return the region with one more point on its trail, just before the latest one."""
        return self._with_trail((*self.trail[:-1], slope, *self.trail[-1:]))

    def _with_trail(self, trail: tuple[Slope, ...]) -> Self:
        return replace(self, trail=trail[-REMEMBERED:])

    def look(
        self,
        value: float,
        gradient: np.ndarray | None,
        held_back: tuple[float, ...] | None = None,
        blocks: tuple[tuple[float, ...], ...] | None = None,
        trust: np.ndarray | float = 1.0,
    ) -> Self:
        """Return the region after another evaluation of its point, which is averaged with those before.

        The radii are again as large as before the steps that failed, which may have been judged too harshly.
        """
        weight = 1 / (self.looks + 1)
        return replace(
            self.resize(self.rejection**-self.rejections),
            value=self.value + weight * (value - self.value),
            gradient=self.gradient if gradient is None else self.gradient + weight * (gradient - self.gradient),
            trust=self.trust if gradient is None else self.trust + weight * (trust - self.trust),
            held_back=_average(self.held_back, held_back, weight),
            blocks=_average_blocks(self.blocks, blocks, weight),
            looks=self.looks + 1,
            rejections=0,
            failed=(),
        )

    @property
    def downhill(self) -> np.ndarray:
        """The gradient where it is believed and the box leaves room to follow it, and 0 elsewhere."""
        stuck = ((self.point <= 0) & (self.gradient > 0)) | ((self.point >= 1) & (self.gradient < 0))
        return np.where(stuck | (np.asarray(self.trust) == 0), 0.0, self.gradient)

    @property
    def most_trust(self) -> float:
        """The trust of the coordinate that goes the largest share of its step; 1 where none goes anywhere."""
        return float(np.max(np.where(self.downhill != 0, self.trust, 0.0), initial=0.0)) or 1.0

    @property
    def untried(self) -> bool:
        """Whether no step from here has ended, nor led here."""
        return not (self.trail or self.failed or self.rejections)

    @property
    def spent(self) -> bool:
        """Whether no step is left that would be worth its cost."""
        return self.reach * self.most_trust < self.radii_allowed.smallest or not self.downhill.any()


def _average(
    before: tuple[float, ...] | None, new: tuple[float, ...] | None, weight: float
) -> tuple[float, ...] | None:
    """Return the averages of losses, of which `new` have this weight; those that are not finite do not count."""
    if before is None or new is None or not np.isfinite([*before, *new]).all():
        return new if before is None else before
    return tuple(old + weight * (loss - old) for old, loss in zip(before, new, strict=True))


def _average_blocks(
    before: tuple[tuple[float, ...], ...] | None, new: tuple[tuple[float, ...], ...] | None, weight: float
) -> tuple[tuple[float, ...], ...] | None:
    if before is None or new is None or list(map(len, before)) != list(map(len, new)):
        return new if before is None else before
    return tuple(_average(old, losses, weight) or old for old, losses in zip(before, new, strict=True))


@dataclass(frozen=True, kw_only=True)
class ByDimension(LocalStep):
    """One local step for few dimensions, another for many.

    - `few`, `many`: the two local steps.
    - `most`: the largest dimension that counts as few. A step in 200 dimensions costs milliseconds with a matrix, which
      is nothing beside training; the cost grows with the cube of the dimension.

    Raises `ValueError` where `most` is not a whole number from 0.

    Example:
        >>> from hypergrad_search.search import ByDimension, ExploreDescend, QuasiNewton, SignSteps
        >>> strategy = ExploreDescend(step=ByDimension(few=QuasiNewton(), many=SignSteps(), most=20))
    """

    few: LocalStep
    many: LocalStep
    most: int = 200

    def __post_init__(self) -> None:
        whole_number("ByDimension: most", self.most, 0)
        for name in ("few", "many"):
            if not isinstance(getattr(self, name), LocalStep):
                raise ValueError(
                    f"ByDimension: {name} must be a LocalStep such as SignSteps(), got {getattr(self, name)!r}"
                )

    def around(self, point: np.ndarray, value: float, gradient: np.ndarray) -> TrustRegion:
        """See `LocalStep`."""
        return (self.few if len(point) <= self.most else self.many).around(point, value, gradient)
