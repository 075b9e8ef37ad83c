"""`Unrolled`: hypergradients by differentiating the training loop in floats; the reference for all other methods."""

import math
import time
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import jax

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import TRAINING_STEP, VALUE_AND_GRADIENT, Cost
from hypergrad_search.hypergradient.base import Evaluation, Method, Request, Status, judge, with_gradient
from hypergrad_search.hypergradient.in_floats import trained
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out, outer_losses
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training.floats import train_in_floats


@dataclass(frozen=True)
class Unrolled(Method):
    """Train in plain floats and let JAX differentiate the loop, checkpointed every sqrt(steps).

    It works for any optimizer, those of optax and a momentum of 0 included, and parameters of any floating-point type.
    Memory grows with sqrt(steps): where that is too much, use `Reversible`, or limit it by `checkpoints`. Training is
    one program, so `report` is never called, and an evaluation that was interrupted begins again. Where
    `gradient_below` or `fold.below` is finite, the value is computed first, at the cost of one training run; a gradient
    that is then needed costs four more. The status is `EXPLODED` only where the gradient is not finite: growth on the
    way back is not measured.

    - `checkpoints`: the number of states that a gradient keeps in memory, whatever the number of steps (binomial
      checkpointing, Griewank and Walther 2000; it needs equinox). The fewer, the more often steps are computed again:
      with 10 checkpoints up to 3 times in 200 steps, and 4 times in 900. The cost that is charged stays the same.

    Raises `ValueError` where `checkpoints` is not a whole number from 1. Where checkpoints are asked for and equinox is
    missing, evaluations raise `ImportError`.

    Example:
        >>> import optax
        >>> from dataclasses import replace
        >>> from hypergrad_search import Unrolled, evaluate
        >>> with_lion = replace(problem, optimizer=lambda h: optax.lion(h["rate"]))
        >>> sorted(evaluate(with_lion, point, key=key, method=Unrolled()).gradient)
        ['l2', 'rate']
    """

    _: KW_ONLY
    checkpoints: int | None = None
    reports = False

    def __post_init__(self) -> None:
        if self.checkpoints is not None:
            object.__setattr__(self, "checkpoints", whole_number("Unrolled: checkpoints", self.checkpoints, 1))

    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        dynamic, static = split(hyperparameters, request.space)
        needs_value_first = request.gradient_below < math.inf or (
            request.fold is not None and request.fold.below < math.inf
        )
        spent, gradient = 0, None
        if needs_value_first:
            judged = judge(trained(problem, static, dynamic, key)[1], request.fold)
            spent += TRAINING_STEP * problem.steps
        if not needs_value_first or request.wants_gradient(judged):
            losses, gradient = _value_and_gradient(
                problem, static, self.checkpoints, dynamic, key, left_out(request.fold)
            )
            judged = judge(losses, request.fold)
            spent += VALUE_AND_GRADIENT * problem.steps
        if gradient is not None and judged.status is Status.OK:
            judged = with_gradient(judged, gradient)
        return replace(
            judged,
            cost=Cost(spent, time.perf_counter() - started),
            diagnostics={"steps": problem.steps, "exact": None},
        )


@compiled(static=3)
def _value_and_gradient(
    problem: TrainingProblem,
    static: Static,
    checkpoints: int | None,
    dynamic: dict[str, Any],
    key: jax.Array,
    without: LeftOut,
) -> tuple[OuterLosses, dict[str, jax.Array]]:
    def fitted(dynamic: dict[str, Any]) -> tuple[jax.Array, OuterLosses]:
        hyperparameters = {**dynamic, **dict(static)}
        model = train_in_floats(problem, hyperparameters, key, checkpoints)
        losses = outer_losses(problem, model, hyperparameters)
        return fitted_loss(problem, model, hyperparameters, without), losses

    gradient, losses = jax.grad(fitted, has_aux=True)(dynamic)
    return losses, gradient
