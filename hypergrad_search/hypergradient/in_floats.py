"""What the methods share that train in floats: the value comes first, and the gradient only where it is wanted."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax

from hypergrad_search.cost import TRAINING_STEP, Cost
from hypergrad_search.hypergradient.base import Evaluation, Request, judge, with_gradient
from hypergrad_search.hyperparameters import Static
from hypergrad_search.losses import OuterLosses, outer_losses
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.training.floats import train_in_floats

End = TypeVar("End")


class Derived(NamedTuple):
    """A gradient after training: what it cost, in gradient evaluations, and what diagnostics it leaves.

    `useless` says why the gradient does not tell where the loss falls; "" where it does. `trust` is `Evaluation`'s.
    """

    gradient: dict[str, Any]
    cost: float
    diagnostics: Mapping[str, Any]
    useless: str = ""
    trust: Mapping[str, float] | None = None


def after_training(
    problem: TrainingProblem,
    request: Request,
    train: Callable[[], tuple[End, OuterLosses]],
    differentiate: Callable[[End], Derived],
) -> Evaluation:
    """Return the evaluation of a method that trains, and then differentiates, if the gradient is wanted.

    `train` returns the end of training, such as the model, and the losses there; it costs one training run.
    `differentiate` is called with that end, or not at all.
    """
    started = time.perf_counter()
    end, losses = train()
    judged = judge(losses, request.fold)
    spent, diagnostics = float(TRAINING_STEP * problem.steps), {"steps": problem.steps, "exact": None}
    if request.wants_gradient(judged):
        derived = differentiate(end)
        judged = with_gradient(judged, derived.gradient, derived.useless)
        judged = replace(judged, trust=None if judged.gradient is None else derived.trust)
        spent, diagnostics = spent + derived.cost, {**diagnostics, **derived.diagnostics}
    return replace(judged, cost=Cost(spent, time.perf_counter() - started), diagnostics=diagnostics)


@compiled(static=2)
def trained(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[Trained, OuterLosses]:
    """Return the model that training in floats ends with, and its losses.

    Example:
        >>> from hypergrad_search.hypergradient import split, trained
        >>> dynamic, static = split(point, space)
        >>> model, losses = trained(problem, static, dynamic, key)
        >>> model.shape, losses.valid.shape
        ((3,), (20,))
    """
    hyperparameters = {**dynamic, **dict(static)}
    model = train_in_floats(problem, hyperparameters, key)
    return model, outer_losses(problem, model, hyperparameters)
