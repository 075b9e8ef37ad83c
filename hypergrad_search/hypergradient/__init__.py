"""Methods that differentiate a training run, one file each, and all that is needed to write another.

A new method is a subclass of `Method` in a file of its own. It takes a problem, hyperparameters, a key and a `Request`,
and returns an `Evaluation`. The methods here are made of `split`, `outer_losses`, `fitted_loss` with `left_out`,
`judge` and `finite_or_none`. Those that train in floats first use `after_training` for all but the gradient, `trained`
and `step_loss`, and, to refuse what they cannot see, `read_by_losses` and `refuse_unseen`.
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
    with_gradient,
)
from hypergrad_search.hypergradient.batch import evaluate_batch
from hypergrad_search.hypergradient.drmad import DrMAD
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.forward import Forward
from hypergrad_search.hypergradient.hypernet import Hypernet
from hypergrad_search.hypergradient.implicit import Implicit
from hypergrad_search.hypergradient.in_floats import Derived, after_training, trained
from hypergrad_search.hypergradient.one_pass import OnePass
from hypergrad_search.hypergradient.persistent import Persistent
from hypergrad_search.hypergradient.real_time import RealTime
from hypergrad_search.hypergradient.response import Diagonal, Linear, LowRank, OneHidden, Response
from hypergrad_search.hypergradient.reversible import InexactReversalError, Reversible
from hypergrad_search.hypergradient.smoothed import Smoothed
from hypergrad_search.hypergradient.snapshot import SnapshotError
from hypergrad_search.hypergradient.solvers import ConjugateGradients, Identity, Neumann, Solution, Solver
from hypergrad_search.hypergradient.unrolled import Unrolled
from hypergrad_search.hypergradient.unseen import read_by_losses, refuse_unseen, tuned
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import OuterLosses, fitted_loss, left_out, outer_losses, step_loss

__all__ = [
    "Algorithm",
    "ConjugateGradients",
    "Cost",
    "Derived",
    "Diagonal",
    "DrMAD",
    "Evaluation",
    "Fold",
    "Forward",
    "Global",
    "Hypernet",
    "Identity",
    "Implicit",
    "InexactReversalError",
    "Joint",
    "Linear",
    "Local",
    "LowRank",
    "Method",
    "Neumann",
    "OneHidden",
    "OnePass",
    "OuterLosses",
    "Persistent",
    "Progress",
    "RealTime",
    "Report",
    "Request",
    "Response",
    "Reversible",
    "Smoothed",
    "SnapshotError",
    "Solution",
    "Solver",
    "Status",
    "Unrolled",
    "after_training",
    "evaluate",
    "evaluate_batch",
    "finite_or_none",
    "fitted_loss",
    "judge",
    "left_out",
    "outer_losses",
    "read_by_losses",
    "refuse_unseen",
    "split",
    "step_loss",
    "trained",
    "tuned",
    "with_gradient",
]
