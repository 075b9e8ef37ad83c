"""The optimizers of training runs, one file a family, with the steps that floats take and those of exact reversal."""

from hypergrad_search.optimizers.adam import adabelief, adam, adamw, adaptive_step, one_minus_power
from hypergrad_search.optimizers.base import AdditiveOptimizer, Optimizer, rounded
from hypergrad_search.optimizers.ema import ema
from hypergrad_search.optimizers.muon import muon
from hypergrad_search.optimizers.proximal import ProximalOptimizer, held_at_zero, penalty_of, proximal_sgd
from hypergrad_search.optimizers.rmsprop import rmsprop
from hypergrad_search.optimizers.settings import (
    finest,
    gives_a_number,
    gives_arrays,
    is_elementwise,
    leaves_of,
    resolve,
    takes_hyperparameters,
)
from hypergrad_search.optimizers.sgd import sgd

__all__ = [
    "AdditiveOptimizer",
    "Optimizer",
    "ProximalOptimizer",
    "adabelief",
    "adam",
    "adamw",
    "adaptive_step",
    "ema",
    "finest",
    "gives_a_number",
    "gives_arrays",
    "held_at_zero",
    "is_elementwise",
    "leaves_of",
    "muon",
    "one_minus_power",
    "penalty_of",
    "proximal_sgd",
    "resolve",
    "rmsprop",
    "rounded",
    "sgd",
    "takes_hyperparameters",
]
