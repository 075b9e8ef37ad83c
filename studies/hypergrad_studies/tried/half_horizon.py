"""Half the horizon: the value is that of the whole training run, and the gradient that of its first half.

A step along signs needs no exact gradient, and where a hyperparameter should go shows early in training. A gradient of
the first half of the steps costs half as much. (That the optimum of a short horizon is another is well known: Y. Wu et
al., *Understanding Short-Horizon Bias in Stochastic Meta-Optimization*, ICLR 2018.)

The first half of the whole run is the same to the bit, so its weights could be kept on the way. Here it is trained once
more, and only the steps of the way back are charged.

It is worse: the signs of half a run do not say where the whole run should go. The last half is no better.
"""

import functools
import math
from dataclasses import dataclass, replace

import jax

from hypergrad_search import Evaluation, Method, Reversible, Status, TrainingProblem, Unrolled
from hypergrad_search.cost import TRAINING_STEP
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.hypergradient import Request
from hypergrad_search.space import Hyperparameters


@dataclass(frozen=True)
class HalfHorizon(Method):
    """A way to the value of a training run, and to the gradient of its first half, for problems of fixed length."""

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `Method`."""
        whole = DEFAULT_METHOD.evaluate(problem, hyperparameters, key, replace(request, gradient_below=-math.inf))
        if not request.wants_gradient(whole):
            return whole
        short = shortened(problem)
        half = DEFAULT_METHOD.evaluate(
            short, hyperparameters, key, replace(request, gradient_below=math.inf, report=None)
        )
        reversed_only = half.cost.gradient_evaluations - TRAINING_STEP * short.steps
        cost = replace(whole.cost, gradient_evaluations=whole.cost.gradient_evaluations + max(reversed_only, 0.0))
        if half.status not in (Status.OK, Status.EXPLODED):
            return replace(whole, cost=cost)
        return replace(whole, gradient=half.gradient, status=half.status, message=half.message, cost=cost)


@dataclass(frozen=True)
class LastHalf(Method):
    """A way to the value of a training run, and to the gradient of its last half alone, which costs as much."""

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `Method`."""
        last = Reversible(last=shortened(problem).steps, fallback=Unrolled())
        return last.evaluate(problem, hyperparameters, key, request)


@functools.cache
def shortened(problem: TrainingProblem) -> TrainingProblem:
    """Return the problem with half as many steps, the same object each time, so that it compiles once."""
    return replace(problem, steps=max(problem.steps // 2, 1))
