"""What every way to a hypergradient has in common: its input, its result, and what it costs."""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import jax
import numpy as np

from hypergrad_search.problem import TrainingProblem
from hypergrad_search.space import Hyperparameters, Space

#: called with (steps done, validation loss) during training; it may raise to end the evaluation
Report = Callable[[int, float], None]


class Status(StrEnum):
    """How an evaluation ended; anything but `OK` and `EXPLODED` comes with an infinite value.

    `OVERFITTED`: the loss on the held-back part of the validation set is not below that of the point that the step set
    out from.
    `EXPLODED`: the value is sound, but a step along the gradient would be one in the dark. On its way back through
    training the adjoint grew by more than `MOST_GROWTH`, as it does where training is chaotic, or it is not finite.
    """

    OK = "ok"
    NAN = "nan"
    OVERFLOW = "overflow"
    DIVERGED = "diverged"
    OVERFITTED = "overfitted"
    EXPLODED = "exploded"


MESSAGES = {
    Status.OK: "",
    Status.NAN: "a gradient or loss was NaN",
    Status.OVERFLOW: "a number left the fixed-point range",
    Status.DIVERGED: "the validation loss is infinite; lower the learning rate or scales",
    Status.OVERFITTED: "the held-back part of the validation set is fitted no better than before the step",
    Status.EXPLODED: "the value is sound, but its gradient is useless: it is not finite",
}

#: largest norm of the adjoint on its way back, in units of that at the end, for a gradient to be of use (studies: the
#: hypergradient agrees with finite differences up to a growth of about 100, and no longer from about 1,000 on)
MOST_GROWTH = 1e3


@dataclass(frozen=True)
class Cost:
    """What an evaluation took: minibatch training gradients, or their worth, and wall seconds.

    A training step costs 1. A step of the reverse pass costs 3: one gradient to step back, and a Hessian-vector
    product worth two.
    """

    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The result of training once at given hyperparameters.

    - `value`: the validation loss; infinite where training failed, and `status` says why.
    - `gradient`: for each differentiable hyperparameter an array of its shape, in natural units (of `fitted_loss`,
      where the problem has one); None where none was asked for, or it is not finite. Do not step along it where the
      status is `EXPLODED`.
    - `refined`: better hyperparameters that the evaluation itself found, and that `value` is the loss at; None for
      methods that find none.
    - `checkpoint`: what a method needs to go on from `refined`, for the argument of `evaluate` of this name; None for
      methods that start anew each time.
    - `diagnostics`: JSON-able facts that no computation depends on: `status`, `message`, `steps` (trained), `exact`
      (whether the reversal gave back the initial state bit for bit: False where a fallback had to take over, None where
      nothing was reversed), `held_back_loss` and `test_loss` (None where the problem has none). `Reversible` adds
      `adjoint_norms`, the norm of the gradient with respect to all weights before each step that it reversed, and last
      with respect to the final ones.
    """

    value: float
    gradient: dict[str, Any] | None
    cost: Cost
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    refined: dict[str, Any] | None = None
    checkpoint: bytes | None = None

    @property
    def status(self) -> Status:
        """How the evaluation ended."""
        return Status(self.diagnostics["status"])


@dataclass(frozen=True)
class Request:
    """What is wanted of an evaluation: the keyword arguments of `hypergrad_search.evaluate`, which describes them."""

    gradient_below: float = math.inf
    held_back_below: float = math.inf
    report: Report | None = None
    report_every: int = 1
    space: Space | None = None
    checkpoint: bytes | None = None


class Method(abc.ABC):
    """A way to the value and the hypergradient of a training problem.

    `continues` tells that an evaluation leaves a checkpoint, from which another may go on.
    """

    continues = False

    @abc.abstractmethod
    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`, which has checked the arguments."""

    def cost(self, problem: TrainingProblem, steps: int) -> float:
        """Gradient evaluations that the first steps of an evaluation take: what one has cost that a report ended."""
        return steps


def judge(losses: Mapping[str, Any], held_back_below: float) -> tuple[Status, float]:
    """The status and value that finished training has, by its validation loss and what was held back of that."""
    value = float(losses["valid_loss"])
    if math.isnan(value) or math.isnan(float(losses.get("held_back_loss", 0.0))):
        return Status.NAN, math.inf
    if math.isinf(value):
        return Status.DIVERGED, math.inf
    if "held_back_loss" in losses and not float(losses["held_back_loss"]) < held_back_below:
        return Status.OVERFITTED, math.inf
    return Status.OK, value


def finite_or_none(gradient: dict[str, Any]) -> dict[str, Any] | None:
    """A gradient as numpy arrays, or None where an element is not finite."""
    arrays = jax.tree.map(np.asarray, gradient)
    return arrays if all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)) else None


def describe(
    status: Status, *, steps: int, exact: bool | None, losses: Mapping[str, Any], message: str | None = None
) -> dict[str, Any]:
    """The diagnostics of an evaluation; the status has its usual message unless another is given."""
    return {
        "status": str(status),
        "message": MESSAGES[status] if message is None else message,
        "steps": steps,
        "exact": exact,
        **{name: float(losses[name]) if name in losses else None for name in ("held_back_loss", "test_loss")},
    }
