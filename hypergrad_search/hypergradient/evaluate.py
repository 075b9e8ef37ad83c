"""The one door to a hypergradient: a problem, hyperparameters and a method in, an `Evaluation` out."""

import math

import jax

from hypergrad_search.hypergradient.base import Evaluation, Method, Report, Request
from hypergrad_search.hypergradient.reversible import Reversible
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.space import Hyperparameters, Space


def evaluate(
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    *,
    method: Method = Reversible(),  # noqa: B008 (frozen and empty)
    key: jax.Array,
    gradient_below: float = math.inf,
    held_back_below: float = math.inf,
    report: Report | None = None,
    report_every: int = 1,
    space: Space | None = None,
    checkpoint: bytes | None = None,
) -> Evaluation:
    """Train at `hyperparameters`; return the validation loss and its gradient with respect to them.

    Args:
        problem: what to train. Its functions compile at the first evaluation.
        hyperparameters: a dict from names to values, in natural units.
        method: how to differentiate.
        key: decides the initial parameters and each step's randomness; the same key gives the same value.
        gradient_below: the gradient is computed only where the value comes out below this; `-math.inf` for never.
        held_back_below: where the problem's `held_back_loss` does not come out below this, the value is infinite.
        report: called with (steps done, validation loss) every `report_every` steps before the last; what it raises
            ends the evaluation, as Optuna's pruning does. Only methods that train step by step call it.
        report_every: in steps.
        space: the box that the hyperparameters are to stay in, for methods that move them (`Hypernet`).
        checkpoint: go on from where the evaluation with this `checkpoint` ended; for methods that have one.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do. What goes wrong in training is
            no error, but the evaluation's `status`.
    """
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"evaluate: problem must be a TrainingProblem, got {problem!r}")
    if not isinstance(method, Method):
        raise ValueError(f"evaluate: method must be a Method such as Reversible(), got {method!r}")
    if report_every < 1:
        raise ValueError(f"evaluate: report_every must be a whole number above 0, got {report_every!r}")
    if checkpoint is not None and not method.continues:
        raise ValueError(f"evaluate: {type(method).__name__} has no checkpoints to go on from; leave checkpoint out")
    request = Request(gradient_below, held_back_below, report, report_every, space, checkpoint)
    return method.evaluate(problem, hyperparameters, key, request)
