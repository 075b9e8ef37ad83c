"""The registry of problems: name -> a function that gives the `TrainingProblem` and its space."""

import functools
from collections.abc import Callable
from typing import Any

from hypergrad_search import Categorical, Int, Space, TrainingProblem, lift_settings
from hypergrad_search.space import centre, floats, unlifted
from hypergrad_studies.problems import (
    cancer_mlp,
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

_mlp = functools.cache(digits_mlp.problem)

PROBLEMS: dict[str, Callable[[], tuple[TrainingProblem, Space]]] = {
    "digits-mlp": _mlp,
    "digits-l2": functools.cache(digits_l2.problem),
    "digits-adamw": functools.cache(digits_adamw.problem),
    "cancer-mlp": functools.cache(cancer_mlp.problem),
    "diabetes-mlp": functools.cache(diabetes_mlp.problem),
    "text-mlp": functools.cache(text_mlp.problem),
    "mnist-mlp": functools.cache(mnist_mlp.problem),
    "mnist-cnn": functools.cache(mnist_cnn.problem),
    "digits-rates": functools.cache(digits_rates.problem),
    "digits-schedules": functools.cache(digits_schedules.problem),
    "digits-labels": functools.cache(digits_labels.problem),
    "digits-mixed": functools.cache(digits_mixed.problem),
    "digits-noisy": _mlp,
    **{
        f"synthetic-{name}": functools.cache(functools.partial(synthetic.problem, name)) for name in synthetic.FUNCTIONS
    },
}

#: the problems in which each trial has a seed of its own
NOISY = frozenset({"digits-noisy"})


def can_lift(name: str) -> bool:
    """Return whether an array may take the place of a number in the problem's space."""
    problem, space = PROBLEMS[name]()
    return any(parameter.lift for parameter in floats(lift_settings(problem, space)).values())


def posed(name: str, *, lifts: bool = False) -> tuple[TrainingProblem, Space]:
    """Return a problem and its space as a method gets them; the space has its lifts only if `lifts` is true.

    The problem is the same object each time, so that it compiles once.
    """
    problem, space = PROBLEMS[name]()
    return problem, lift_settings(problem, space) if lifts else unlifted(space)


def middle(space: Space) -> dict[str, Any]:
    """Return the middle of a space's box; integers have their lowest value, and categoricals their first choice."""
    point = centre(space)
    for name, parameter in space.items():
        if isinstance(parameter, Int):
            point[name] = parameter.low
        elif isinstance(parameter, Categorical):
            point[name] = parameter.choices[0]
    return point
