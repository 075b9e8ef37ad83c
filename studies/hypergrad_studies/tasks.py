"""What a comparison can be about, each kind with a name: a training problem, an objective, or a trainable."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from hypergrad_search import Space, TrainingProblem, lift_settings
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.space import floats, unlifted


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """A training problem and its space, for both hosts.

    - `reseed`: whether each trial has a seed of its own.
    """

    name: str
    problem: TrainingProblem | FunctionProblem
    space: Space
    reseed: bool = False

    def posed(self, *, lifts: bool = False) -> tuple[Any, Space]:
        """Return the problem and its space as a method gets them; the space has its lifts only if `lifts` is true.

        The problem is the same object each time, so that it compiles once.
        """
        return self.problem, self.liftable if lifts else unlifted(self.space)

    @property
    def liftable(self) -> Space:
        """The space with a `lift` for each number in whose place there may be an array."""
        if isinstance(self.problem, FunctionProblem):
            return self.space
        return lift_settings(self.problem, self.space)

    @property
    def can_lift(self) -> bool:
        """Whether an array may take the place of a number in the space."""
        return any(parameter.lift for parameter in floats(self.liftable).values())


@dataclass(frozen=True, eq=False)
class ObjectiveTask:
    """An objective of Optuna, which suggests its own hyperparameters and may report gradients.

    A trial's cost is what `report_gradient` was told, and seconds where it was told nothing. The user attribute
    "hypergrad:test_loss" of a trial is its test loss.

    - `maximise`: whether higher values are better. Records hold the value with the opposite sign then.
    """

    name: str
    objective: Callable[[optuna.Trial], float]
    maximise: bool = False


@dataclass(frozen=True, eq=False)
class TrainableTask:
    """A trainable of Ray Tune and its space, in Ray's own domains.

    A trial's cost is its last result's `gradient_evaluations`, and seconds where there is none. `test_loss` in the last
    result is its test loss.

    - `metric`, `maximise`: what of a result is optimised, and whether higher values are better. Records hold the value
      with the opposite sign then.
    """

    name: str
    trainable: Any
    param_space: Mapping[str, Any]
    metric: str = "loss"
    maximise: bool = False


Task = TrainingTask | ObjectiveTask | TrainableTask


def goal(tasks: Collection[Task]) -> tuple[str, str]:
    """Return the direction of tasks that have one, and what of a result counts."""
    directions = {"maximize" if task.maximise else "minimize" for task in tasks if not isinstance(task, TrainingTask)}
    metrics = {task.metric for task in tasks if isinstance(task, TrainableTask)}
    if len(directions) > 1 or len(metrics) > 1:
        raise ValueError("problems of one comparison must have the same direction and metric; compare them apart")
    return directions.pop() if directions else "minimize", metrics.pop() if metrics else "loss"
