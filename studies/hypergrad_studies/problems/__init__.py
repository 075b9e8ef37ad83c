"""The registry of problems: name -> a function that gives the `TrainingProblem` and its space."""

import functools
from collections.abc import Callable

from hypergrad_search import Space, TrainingProblem
from hypergrad_studies.problems import digits_l2, digits_mlp

PROBLEMS: dict[str, Callable[[], tuple[TrainingProblem, Space]]] = {
    "digits-mlp": functools.cache(digits_mlp.problem),
    "digits-l2": functools.cache(digits_l2.problem),
}
