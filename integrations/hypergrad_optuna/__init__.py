"""Hypergradient search in Optuna: `optuna.create_study(sampler=HypergradSampler())`."""

from hypergrad_optuna.arrays import best_arrays
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.refined import Refined, best_refined
from hypergrad_optuna.report import report_gradient, wants_gradient
from hypergrad_optuna.sampler import HypergradSampler
from hypergrad_optuna.suggest import suggest_array

__all__ = [
    "HypergradSampler",
    "Objective",
    "Refined",
    "best_arrays",
    "best_refined",
    "report_gradient",
    "suggest_array",
    "wants_gradient",
]
