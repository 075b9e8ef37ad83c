"""Hyperparameter search that sees the gradient: exact hypergradients of training runs, in JAX."""

from hypergrad_search.hypergradient.base import Cost, Evaluation, Method, Status
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.hypernet import Hypernet
from hypergrad_search.hypergradient.response import Linear, LowRank, OneHidden, Response
from hypergrad_search.hypergradient.reversible import InexactReversalError, Reversible
from hypergrad_search.hypergradient.unrolled import Unrolled
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.space import Categorical, Float, Int, Space
from hypergrad_search.training.optimizers import Optimizer, adam, adamw, sgd
from hypergrad_search.training.train import train

__all__ = [
    "Categorical",
    "Cost",
    "Evaluation",
    "Float",
    "Hypernet",
    "InexactReversalError",
    "Int",
    "Linear",
    "LowRank",
    "Method",
    "OneHidden",
    "Optimizer",
    "Response",
    "Reversible",
    "Space",
    "Status",
    "TrainingProblem",
    "Unrolled",
    "adam",
    "adamw",
    "evaluate",
    "sgd",
    "train",
]
