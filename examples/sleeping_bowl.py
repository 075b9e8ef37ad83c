"""An objective that takes half a second, to see what several workers are worth: `hypergrad parallel --problem`."""

import time
from collections.abc import Callable

import optuna

from hypergrad_optuna import report_gradient, wants_gradient

LOWEST = (1.3, -0.7, 2.1, 0.4, -1.9, 1.1)


def objective(trial: optuna.Trial) -> float:
    """Return a paraboloid of six numbers, and report its gradient where it is wanted."""
    offsets = [trial.suggest_float(f"x{i}", -5, 5) - lowest for i, lowest in enumerate(LOWEST)]
    time.sleep(0.5)
    value = sum((i + 1) * offset**2 for i, offset in enumerate(offsets))
    if wants_gradient(trial, value):
        report_gradient(trial, {f"x{i}": 2 * (i + 1) * offset for i, offset in enumerate(offsets)})
    return value


def make() -> Callable[[optuna.Trial], float]:
    """Return the objective, for `hypergrad compare`, `hypergrad sweep` and `hypergrad parallel`."""
    return objective
