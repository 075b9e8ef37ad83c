"""The local step: around the head of a chain, a region of the unit box within which a model of the value is trusted.

The model fits the dimension: a quadratic whose curvature is learned from the gradients (`quasi_newton`) where a matrix
is cheap, and one radius a coordinate that follows the gradient's signs (`sign_steps`) where it is not.
"""

import abc
import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

START = 0.1  # radius, in units of the box
LARGEST = 0.5
SMALLEST = 1e-3


@dataclass(frozen=True)
class TrustRegion(abc.ABC):
    """A point of the unit box, with its value and gradient: arrays of shape `(n,)`.

    `looks` tells how often the point was evaluated (value and gradient are the means), `rejections` how many steps from
    it failed since it was last looked at, and `held_back` the loss on what of the validation set no gradient sees.
    """

    point: np.ndarray
    value: float
    gradient: np.ndarray
    looks: int = 1
    rejections: int = 0
    held_back: float = math.inf

    @property
    @abc.abstractmethod
    def reach(self) -> float:
        """How far the next step may go, in units of the box."""

    @abc.abstractmethod
    def step(self) -> np.ndarray:
        """The next point to try, in the unit box."""

    @abc.abstractmethod
    def length(self, point: np.ndarray) -> float:
        """How long the step to `point` is, in radii."""

    @abc.abstractmethod
    def accept(self, point: np.ndarray, value: float, gradient: np.ndarray) -> Self:
        """Move to a better point."""

    @abc.abstractmethod
    def resize(self, factor: float) -> Self:
        """The same region, with radii that many times as large."""

    @property
    @abc.abstractmethod
    def rejection(self) -> float:
        """The factor by which radii shrink after a step that failed."""

    def reject(self, point: np.ndarray) -> Self:
        """Stay, and try nearer than `point`, the step that failed."""
        nearer = min(self.rejection * self.length(point), 1.0)
        return replace(self.resize(nearer), rejections=self.rejections + 1)

    def look(self, value: float, gradient: np.ndarray | None, held_back: float = math.inf) -> Self:
        """What another evaluation of the same point gave: the steps that failed may have been judged too harshly."""
        weight = 1 / (self.looks + 1)
        return replace(
            self.resize(self.rejection**-self.rejections),
            value=self.value + weight * (value - self.value),
            gradient=self.gradient if gradient is None else self.gradient + weight * (gradient - self.gradient),
            held_back=self.held_back + weight * (held_back - self.held_back)
            if held_back < math.inf
            else self.held_back,
            looks=self.looks + 1,
            rejections=0,
        )

    @property
    def downhill(self) -> np.ndarray:
        """The gradient where the box leaves room to follow it, and 0 elsewhere."""
        stuck = ((self.point <= 0) & (self.gradient > 0)) | ((self.point >= 1) & (self.gradient < 0))
        return np.where(stuck, 0.0, self.gradient)

    @property
    def spent(self) -> bool:
        """Whether no step is left that would be worth its cost."""
        return self.reach < SMALLEST or not self.downhill.any()
