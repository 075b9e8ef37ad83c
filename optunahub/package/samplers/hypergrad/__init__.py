"""The sampler of `hypergrad_optuna`, and what its objectives need."""

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    best_hyperparameters,
    report_gradient,
    suggest_array,
    wants_gradient,
)

__all__ = [
    "HypergradSampler",
    "Objective",
    "best_hyperparameters",
    "report_gradient",
    "suggest_array",
    "wants_gradient",
]
