"""Hyperparameter search that sees the gradient: exact hypergradients of training runs, in JAX."""

from hypergrad_search.accumulate import accumulate_gradients
from hypergrad_search.check_gradient import check_gradient
from hypergrad_search.cost import Cost
from hypergrad_search.fold import Fold
from hypergrad_search.from_function import from_function
from hypergrad_search.host_batches import HostBatches
from hypergrad_search.hypergradient import (
    DrMAD,
    Evaluation,
    Forward,
    Hypernet,
    Implicit,
    InexactReversalError,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Reversible,
    Smoothed,
    Status,
    Unrolled,
    evaluate,
    evaluate_batch,
)
from hypergrad_search.lifting import lift_settings
from hypergrad_search.measure_trust import measure_trust
from hypergrad_search.optax_optimizers import gradient_noise
from hypergrad_search.optimizers import (
    AdditiveOptimizer,
    Optimizer,
    ProximalOptimizer,
    adabelief,
    adam,
    adamw,
    ema,
    muon,
    proximal_sgd,
    rmsprop,
    sgd,
)
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.schedule_summary import ScheduleSummary, summarize_schedules
from hypergrad_search.schedules import fit_warmup_cosine, warmup_cosine
from hypergrad_search.space import Categorical, Float, Int, NestedSpace, Space
from hypergrad_search.training import train

__all__ = [
    "AdditiveOptimizer",
    "Categorical",
    "Cost",
    "DrMAD",
    "Evaluation",
    "Float",
    "Fold",
    "Forward",
    "HostBatches",
    "Hypernet",
    "Implicit",
    "InexactReversalError",
    "Int",
    "Method",
    "NestedSpace",
    "OnePass",
    "Optimizer",
    "Persistent",
    "ProximalOptimizer",
    "RealTime",
    "Reversible",
    "ScheduleSummary",
    "Smoothed",
    "Space",
    "Status",
    "TrainingProblem",
    "Unrolled",
    "accumulate_gradients",
    "adabelief",
    "adam",
    "adamw",
    "check_gradient",
    "ema",
    "evaluate",
    "evaluate_batch",
    "fit_warmup_cosine",
    "from_function",
    "gradient_noise",
    "lift_settings",
    "measure_trust",
    "muon",
    "proximal_sgd",
    "rmsprop",
    "sgd",
    "summarize_schedules",
    "train",
    "warmup_cosine",
]
