"""The registry of problems: name -> a function that returns the `TrainingTask`, the same object each time."""

import functools
from collections.abc import Callable
from typing import Any

from hypergrad_search import Categorical, Int, Space, TrainingProblem
from hypergrad_search.space import centre
from hypergrad_studies.problems import (
    cancer_mlp,
    data_cleaning,
    diabetes_mlp,
    digits_adamw,
    digits_l2,
    digits_labels,
    digits_mixed,
    digits_mlp,
    digits_rates,
    digits_schedules,
    mnist_cnn,
    mnist_mlp,
    synthetic,
    text_mlp,
)
from hypergrad_studies.tasks import TrainingTask

Make = Callable[[], tuple[TrainingProblem, Space]]


def _task(name: str, make: Make, *, reseed: bool = False) -> Callable[[], TrainingTask]:
    return functools.cache(lambda: TrainingTask(name, *make(), reseed=reseed))


def _tasks(makes: dict[str, Make]) -> dict[str, Callable[[], TrainingTask]]:
    return {name: _task(name, make) for name, make in makes.items()}


_digits_mlp = functools.cache(digits_mlp.problem)

PROBLEMS: dict[str, Callable[[], TrainingTask]] = {
    **_tasks(
        {
            "digits-mlp": _digits_mlp,
            "digits-l2": digits_l2.problem,
            "digits-adamw": digits_adamw.problem,
            "cancer-mlp": cancer_mlp.problem,
            "diabetes-mlp": diabetes_mlp.problem,
            "text-mlp": text_mlp.problem,
            "mnist-mlp": mnist_mlp.problem,
            "mnist-cnn": mnist_cnn.problem,
            "digits-rates": digits_rates.problem,
            "digits-schedules": digits_schedules.problem,
            "digits-labels": digits_labels.problem,
            "digits-mixed": digits_mixed.problem,
            "data-cleaning": data_cleaning.problem,
        }
    ),
    "digits-noisy": _task("digits-noisy", _digits_mlp, reseed=True),
    **_tasks({f"synthetic-{name}": functools.partial(synthetic.problem, name) for name in synthetic.FUNCTIONS}),
}


def middle(space: Space) -> dict[str, Any]:
    """Return the middle of a space's box; integers have their lowest value, and categoricals their first choice."""
    point = centre(space)
    for name, parameter in space.items():
        if isinstance(parameter, Int):
            point[name] = parameter.low
        elif isinstance(parameter, Categorical):
            point[name] = parameter.choices[0]
    return point
