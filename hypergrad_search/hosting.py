"""How hosts evaluate their trials: the defaults, and what a trial's search wants, in one place for all hosts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from hypergrad_search.checks import whole_number
from hypergrad_search.hypergradient.base import Evaluation, Method
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.reversible import Reversible
from hypergrad_search.hypergradient.unrolled import Unrolled
from hypergrad_search.problem import TrainingProblem, check_problem
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.space import Hyperparameters, Space, floats, lifted

#: differentiates exactly, and in floats where a reversal turns out inexact, so that a search does not end for it
DEFAULT_METHOD: Method = Reversible(fallback=Unrolled())

#: called with the steps done, the validation loss (infinite where it is NaN) and the cost so far
OnTheWay = Callable[[int, float, float], None]


@dataclass(frozen=True)
class HostedProblem:
    """A problem with all that decides how a host evaluates it; made by `host`."""

    problem: TrainingProblem
    space: Space
    method: Method
    key: jax.Array
    report_every: int | None

    def searched(self, *, by_gradients: bool) -> Space:
        """Return the space that trials are drawn from: numbers are lifted only for a search that uses gradients."""
        return lifted(self.space) if by_gradients else self.space

    def evaluate(
        self,
        hyperparameters: Hyperparameters,
        wanted: Wanted,
        *,
        by_gradients: bool,
        on_the_way: OnTheWay,
        checkpoint: Callable[[], bytes | None],
        key: jax.Array | None = None,
    ) -> Evaluation:
        """Evaluate a trial; `checkpoint` fetches the parent's, and is called only if the method goes on from one."""

        def report(step: int, loss: float) -> None:
            on_the_way(step, math.inf if math.isnan(loss) else loss, self.method.cost(self.problem, step))

        return evaluate(
            self.problem,
            hyperparameters,
            method=self.method,
            key=self.key if key is None else key,
            gradient_below=wanted.gradient_below,
            fold=wanted.held_back(self.space),
            report=None if self.report_every is None else report,
            report_every=self.report_every or self.problem.steps,
            space=self.searched(by_gradients=by_gradients),
            checkpoint=checkpoint() if self.method.continues else None,
        )

    def gradient(self, evaluation: Evaluation) -> dict[str, Any] | None:
        """Return the derivatives that a search may step along; None where there are none."""
        usable = evaluation.usable_gradient
        return None if usable is None else {name: usable[name] for name in floats(self.space) if name in usable}


def host(
    owner: str, problem: TrainingProblem, space: Space, method: Method, key: jax.Array | None, report_every: int | None
) -> HostedProblem:
    """Return a problem ready to be evaluated by a host, where `owner` names the caller in errors.

    Raises `ValueError` where an argument does not fit.
    """
    check_problem(problem, space)
    if report_every is not None:
        report_every = whole_number(f"{owner}: report_every", report_every, 1)
    return HostedProblem(problem, space, method, jax.random.key(0) if key is None else key, report_every)
