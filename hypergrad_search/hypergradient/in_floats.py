"""What the methods share that train in floats: the value comes first, and the gradient only where it is wanted."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from hypergrad_search.cost import TRAINING_STEP, Cost
from hypergrad_search.hypergradient.base import Evaluation, Request, Status, judge, with_gradient
from hypergrad_search.hyperparameters import Static
from hypergrad_search.losses import OuterLosses, outer_losses
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.training.floats import train_in_floats


class Derived(NamedTuple):
    """A gradient after training: what it cost, in gradient evaluations, and what diagnostics it leaves.

    `useless` says why the gradient does not tell where the loss falls; "" where it does.
    """

    gradient: dict[str, Any]
    cost: float
    diagnostics: Mapping[str, Any]
    useless: str = ""


def after_training(
    problem: TrainingProblem,
    request: Request,
    train: Callable[[], OuterLosses],
    differentiate: Callable[[], Derived],
) -> Evaluation:
    """Return the evaluation of a method that trains, and then differentiates, if the gradient is wanted.

    `train` returns the losses after training, and costs one training run. `differentiate` is called after it, or never.
    """
    started = time.perf_counter()
    judged = judge(train(), request.fold)
    spent, diagnostics = float(TRAINING_STEP * problem.steps), {"steps": problem.steps, "exact": None}
    if request.wants_gradient(judged):
        derived = differentiate()
        judged = with_gradient(judged, derived.gradient, derived.useless)
        spent, diagnostics = spent + derived.cost, {**diagnostics, **derived.diagnostics}
    return replace(judged, cost=Cost(spent, time.perf_counter() - started), diagnostics=diagnostics)


def in_one_program(
    problem: TrainingProblem,
    request: Request,
    value: Callable[[], OuterLosses],
    value_and_gradient: Callable[[], tuple[OuterLosses, dict[str, Any]]],
    cost_of_gradient: float,
) -> Evaluation:
    """Return the evaluation of a method that differentiates while it trains.

    Where `gradient_below` or `fold.below` is finite, `value` is called first, which costs one training run, and the
    gradient is computed only if it is wanted. `cost_of_gradient` is that of `value_and_gradient`.
    """
    started = time.perf_counter()
    needs_value_first = request.gradient_below < math.inf or (
        request.fold is not None and request.fold.below < math.inf
    )
    spent, gradient = 0.0, None
    if needs_value_first:
        judged = judge(value(), request.fold)
        spent += TRAINING_STEP * problem.steps
    if not needs_value_first or request.wants_gradient(judged):
        losses, gradient = value_and_gradient()
        judged = judge(losses, request.fold)
        spent += cost_of_gradient
    if gradient is not None and judged.status is Status.OK:
        judged = with_gradient(judged, gradient)
    return replace(
        judged,
        cost=Cost(spent, time.perf_counter() - started),
        diagnostics={"steps": problem.steps, "exact": None},
    )


@compiled(static=2)
def trained(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[Trained, OuterLosses]:
    """Return the model that training in floats ends with, and its losses."""
    hyperparameters = {**dynamic, **dict(static)}
    model = train_in_floats(problem, hyperparameters, key)
    return model, outer_losses(problem, model, hyperparameters)
