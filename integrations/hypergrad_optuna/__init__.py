"""Hypergradient search in Optuna: `optuna.create_study(sampler=HypergradSampler())`."""

from hypergrad_optuna import _version  # noqa: F401 (it refuses an Optuna that is missing or old before the others are imported)
from hypergrad_optuna.best import best_hyperparameters, best_model, best_trial
from hypergrad_optuna.check_gradient import check_gradient
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.optimize_batched import optimize_batched
from hypergrad_optuna.report import report_gradient, wants_gradient
from hypergrad_optuna.sampler import HypergradSampler
from hypergrad_optuna.suggest import suggest_array

__all__ = [
    "HypergradSampler",
    "Objective",
    "best_hyperparameters",
    "best_model",
    "best_trial",
    "check_gradient",
    "hyperparameters_of",
    "optimize_batched",
    "report_gradient",
    "suggest_array",
    "wants_gradient",
]
