"""Hypergradients by differentiating the unrolled training loop in floats: the reference, and for any optimizer."""

import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import jax

from hypergrad_search.hypergradient.base import (
    Cost,
    Evaluation,
    Method,
    Request,
    Status,
    describe,
    finite_or_none,
    judge,
)
from hypergrad_search.problem import TrainingProblem, losses, split
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training.unrolled import train_unrolled

Static = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Unrolled(Method):
    """Train in plain floats and let JAX differentiate the loop, checkpointed every sqrt(steps).

    Works for any momentum, 0 included, and parameters of any floating-point type. Memory grows with sqrt(steps):
    where that is too much, use `Reversible`. Training is one program, so `report` is never called. With a finite
    `gradient_below` the value is computed first, and a gradient trains once more, at that cost.
    """

    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        dynamic, static = split(hyperparameters)
        spent, gradient = 0, None
        eager = min(request.gradient_below, request.held_back_below) == math.inf
        if not eager:
            final = _value(problem, static, dynamic, key)
            spent += problem.steps
        if eager or judge(final, request.held_back_below)[1] < request.gradient_below:
            final, gradient = _value_and_gradient(problem, static, dynamic, key)
            spent += 4 * problem.steps
        status, value = judge(final, request.held_back_below)
        if status is not Status.OK:
            gradient = None
        elif gradient is not None:
            gradient = finite_or_none(gradient)
            status = Status.EXPLODED if gradient is None else status
        return Evaluation(
            value=value,
            gradient=gradient,
            cost=Cost(spent, time.perf_counter() - started),
            diagnostics=describe(status, steps=problem.steps, exact=None, losses=final),
        )


def _losses(
    dynamic: dict[str, Any], problem: TrainingProblem, static: Static, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    result = losses(problem, train_unrolled(problem, {**dynamic, **dict(static)}, key))
    return result["valid_loss"], result


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value(problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    return _losses(dynamic, problem, static, key)[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_gradient(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    (_, result), gradient = jax.value_and_grad(_losses, has_aux=True)(dynamic, problem, static, key)
    return result, gradient
