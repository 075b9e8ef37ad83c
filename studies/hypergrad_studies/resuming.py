"""A way to train in stretches: each evaluation goes on where the last one at the same hyperparameters was pruned."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from optuna import TrialPruned

from hypergrad_search import Evaluation, Method, TrainingProblem
from hypergrad_search.hypergradient import Progress, Request
from hypergrad_search.space import Hyperparameters


@dataclass(frozen=True)
class Resuming(Method):
    """Evaluate by another method, from where the last evaluation at the same hyperparameters was pruned, to the bit.

    All evaluations must have the same key and problem. The cost of an evaluation is that of all its stretches, also of
    those that were paid for before. Snapshots of what was pruned are in memory until it is trained to its end.

    - `method`: its reports must have snapshots, as those of `Reversible` do.
    """

    method: Method
    _snapshots: dict[Any, bytes] = field(default_factory=dict, init=False, compare=False)

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        if request.report is None:
            return self.method.evaluate(problem, hyperparameters, key, request)
        report, point = request.report, _hashable(hyperparameters)

        def keep(now: Progress) -> None:
            try:
                report(now)
            except TrialPruned:
                assert now.snapshot is not None  # see `method`
                self._snapshots[point] = now.snapshot()
                raise

        resumed = replace(request, report=keep, snapshot=self._snapshots.pop(point, None))
        return self.method.evaluate(problem, hyperparameters, key, resumed)


def _hashable(hyperparameters: Hyperparameters) -> Any:
    return tuple((n, v.tobytes() if isinstance(v, np.ndarray) else v) for n, v in sorted(hyperparameters.items()))
