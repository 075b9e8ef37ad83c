"""Methods that differentiate a training run, one file each, and all that is needed to write another.

A new method is a subclass of `Method` in a file of its own. It takes a problem, hyperparameters, a key and a `Request`,
and returns an `Evaluation`. The methods here are made of `split`, `outer_losses`, `fitted_loss` with `left_out`,
`judge` and `finite_or_none`.
"""

from hypergrad_search.cost import Cost
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient.algorithms import Algorithm, Global, Joint, Local
from hypergrad_search.hypergradient.base import (
    Evaluation,
    Method,
    Progress,
    Report,
    Request,
    Status,
    finite_or_none,
    judge,
)
from hypergrad_search.hypergradient.batch import evaluate_batch
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.hypernet import Hypernet
from hypergrad_search.hypergradient.response import Diagonal, Linear, LowRank, OneHidden, Response
from hypergrad_search.hypergradient.reversible import InexactReversalError, Reversible
from hypergrad_search.hypergradient.snapshot import SnapshotError
from hypergrad_search.hypergradient.unrolled import Unrolled
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import OuterLosses, fitted_loss, left_out, outer_losses

__all__ = [
    "Algorithm",
    "Cost",
    "Diagonal",
    "Evaluation",
    "Fold",
    "Global",
    "Hypernet",
    "InexactReversalError",
    "Joint",
    "Linear",
    "Local",
    "LowRank",
    "Method",
    "OneHidden",
    "OuterLosses",
    "Progress",
    "Report",
    "Request",
    "Response",
    "Reversible",
    "SnapshotError",
    "Status",
    "Unrolled",
    "evaluate",
    "evaluate_batch",
    "finite_or_none",
    "fitted_loss",
    "judge",
    "left_out",
    "outer_losses",
    "split",
]
