"""Hypergradient search in Optuna: `optuna.create_study(sampler=HypergradSampler())`."""

from hypergrad_optuna.best import best_hyperparameters, best_model, hyperparameters_of
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.report import report_gradient, wants_gradient
from hypergrad_optuna.sampler import HypergradSampler
from hypergrad_optuna.suggest import suggest_array

__all__ = [
    "HypergradSampler",
    "Objective",
    "best_hyperparameters",
    "best_model",
    "hyperparameters_of",
    "report_gradient",
    "suggest_array",
    "wants_gradient",
]
