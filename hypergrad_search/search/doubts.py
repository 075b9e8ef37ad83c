"""Doubts about what trials report: failures without an end, and gradients of a user's own; each is said once.

A step along a gradient says whether the gradient was right: over a short enough step, the value changes by the gradient
times the step. A gradient with the wrong sign or scale shows in step after step; one hard step shows nothing, since the
value may be curved or noisy.

A scale that is wrong by less than a factor of 10, such as that of a derivative per logarithm, is not noticed; look with
`check_gradient`.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from hypergrad_search.search.observation import Observation
from hypergrad_search.space import Space, gradient_to_unit, to_unit
from hypergrad_search.trouble import ending_with, see

#: A step is short if no coordinate moves farther than this, in units of the box.
SHORT = 0.1
#: Points count as different where some coordinate is farther from that of all others than this.
APART = 0.05
#: So many steps in a row must say the same.
ENOUGH = 5
#: A step whose change is this many times the prediction, or this share of it, tells that the scale is wrong.
OUT_OF_SCALE = 10.0
#: Ratios that differ by more than this factor come from curvature or noise, not from the gradient.
CONSISTENT = 2.0
#: The predictions must differ by this factor. Where they do not, a head that owes its low value to luck makes all steps
#: from it seem alike.
VARIED = 3.0
#: So many points in a row at which the whole gradient is zero are no accident.
ENOUGH_ZEROS = 3
#: If so many trials fail before any succeeds, or give useless gradients before any gives another, something else is
#: wrong than the hyperparameters.
ENOUGH_FAILURES = 5
KEPT = 32  # the number of trials with a gradient that are remembered, from which steps may start


@dataclass(frozen=True)
class _Start:
    """A point of the unit box with its value and gradient, from which a step may start."""

    point: np.ndarray
    value: float
    gradient: np.ndarray


class Doubts:
    """Looks at the finished trials of one search, and warns once for each kind of trouble.

    It is a memory of what was said, not a part of the search, which is the same with and without it.
    """

    def __init__(self, search: str) -> None:
        self._search = search
        self._said: set[str] = set()
        self._space: Space = {}
        self._starts: dict[str, _Start] = {}
        self._steps: list[tuple[float, float]] = []  # predicted and real changes of the last short steps
        self._zeros: list[np.ndarray] = []  # points with a gradient of 0, since one had another
        self._failures: int | None = 0  # None once a trial has succeeded
        self._useless: int | None = 0  # None once a trial has given a gradient that a search can use

    def look_at_value(self, observation: Observation, message: str | None) -> None:
        """Look at the value of one finished trial; `message` is what it says about its failure, if it does.

        A trial with a sound value has a message only where its gradient is useless.
        """
        self._look_at_gradient(observation, message)
        if math.isfinite(observation.value):
            self._failures = None
        if self._failures is None:
            return
        self._failures += 1
        if self._failures == ENOUGH_FAILURES:
            self._warn(
                "failures",
                f"all of the first {ENOUGH_FAILURES} trials have failed, so there is nothing to search by; trial "
                f"{observation.trial}: {message or 'its value is not finite, or it raised an error'}",
            )

    def _look_at_gradient(self, observation: Observation, message: str | None) -> None:
        zero = observation.gradient is not None and not any(np.any(x) for x in observation.gradient.values())
        if observation.gradient is not None and not zero:
            self._useless = None
        message = _ZERO if zero else message
        if self._useless is None or not message or not math.isfinite(observation.value) or "zero" in self._said:
            return
        self._useless += 1
        if self._useless == ENOUGH_FAILURES:
            self._warn(
                "useless",
                f"all of the first {ENOUGH_FAILURES} gradients are useless, so the explorer alone decides; trial "
                f"{observation.trial}: {message}",
            )

    def look(self, space: Space, observation: Observation, *, maximise: bool = False) -> None:
        """Look at one finished trial; points of another space than before cannot be compared with those before.

        `maximise` tells that the user's own values, which are in the warnings, have the other sign.
        """
        if space != self._space:
            self._space, self._starts, self._steps, self._zeros = space, {}, [], []
        if observation.ignored:
            self._warn("ignored", f"the gradient of trial {observation.trial} is ignored: {observation.ignored}")
        if not math.isfinite(observation.value) or observation.again or observation.refined is not None:
            return
        point = to_unit(space, observation.hyperparameters)
        if observation.parent in self._starts:
            self._look_at_step(self._starts[str(observation.parent)], point, observation, -1.0 if maximise else 1.0)
        if observation.gradient is None:
            return
        gradient = gradient_to_unit(space, observation.hyperparameters, observation.gradient)
        if gradient.any():
            self._zeros = []
        elif all(np.abs(point - zero).max(initial=0.0) > APART for zero in self._zeros):  # an optimum has one place
            self._zeros = [*self._zeros, point]
        if len(self._zeros) == ENOUGH_ZEROS:
            self._warn(
                "zero",
                f"the gradients at {ENOUGH_ZEROS} points in a row were zero, so no step can follow them; a "
                "piecewise constant objective, such as an accuracy, has no useful gradient: take a smooth loss",
            )
        self._starts[observation.trial] = _Start(point, observation.value, gradient)
        while len(self._starts) > KEPT:
            del self._starts[next(iter(self._starts))]

    def _look_at_step(self, start: _Start, point: np.ndarray, observation: Observation, sign: float) -> None:
        step = point - start.point
        predicted = float(start.gradient @ step)
        if not 0 < np.abs(step).max(initial=0.0) <= SHORT or not predicted:
            return
        changed = observation.value - start.value
        self._steps = [*self._steps, (predicted, changed)][-ENOUGH:]
        if len(self._steps) < ENOUGH:
            return
        predictions, changes = np.abs(np.transpose(self._steps))
        ratios = [change / prediction for prediction, change in self._steps]
        if predictions.max() < VARIED * predictions.min() or not changes.min():
            return
        sizes = changes / predictions
        numbers = (
            f"the last {ENOUGH} short steps changed the value by {_listed(ratios)} times what the reported "
            f"gradients promise (trial {observation.trial}: {sign * predicted:.3g} was promised, "
            f"{sign * changed:.3g} came)"
        )
        # What promises far too much need not do so consistently, since steps may go past a minimum.
        too_much = sizes.max() < 1 / OUT_OF_SCALE**2
        if sizes.max() > CONSISTENT * sizes.min() and not too_much:
            return
        if max(ratios) < 0 and not too_much:
            self._warn("sign", f"{numbers}; is the sign right? {_REMEDY}")
        elif too_much or (min(ratios) > 0 and np.median(sizes) > OUT_OF_SCALE):
            self._warn(
                "scale",
                f"{numbers}; a gradient must be in the parameters' own units, not per logarithm, and that of the "
                f"value itself; {_REMEDY}",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            section = kind if kind in ("failures", "useless") else "doubted"
            warnings.warn(ending_with(see(section), f"{self._search}: {message}"), stacklevel=4)


_ZERO = "its gradient is zero; an accuracy has no slope, so take a smooth loss, such as a cross-entropy"
_REMEDY = "check_gradient compares a gradient with finite differences"


def _listed(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:.2g}" for ratio in ratios)
