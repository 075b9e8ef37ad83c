"""Hypergradient search in Optuna: `optuna.create_study(sampler=HypergradSampler())`."""

from hypergrad_optuna.attributes import report_gradient, wants_gradient
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.sampler import HypergradSampler

__all__ = ["HypergradSampler", "Objective", "report_gradient", "wants_gradient"]
