"""`evaluate`: it takes a problem, hyperparameters and a method, and returns an `Evaluation`."""

import math

import jax

from hypergrad_search.checks import number, random_key, whole_number
from hypergrad_search.fold import Fold
from hypergrad_search.from_function import FunctionProblem, refuse
from hypergrad_search.hypergradient.base import Evaluation, Method, Report, Request, as_nested
from hypergrad_search.hypergradient.direct import Direct
from hypergrad_search.hypergradient.reversible import Reversible
from hypergrad_search.hypergradient.without_effect import warn_of_what_has_no_effect
from hypergrad_search.hyperparameters import noting_counts, split_of_space
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.nesting import flat
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.repeatable import checked_split
from hypergrad_search.space import Hyperparameters, NestedSpace, Space


@with_errors_of_load
def evaluate(
    problem: TrainingProblem | FunctionProblem,
    hyperparameters: Hyperparameters,
    *,
    method: Method | None = None,
    key: jax.Array | None = None,
    gradient_below: float = math.inf,
    fold: Fold | None = None,
    report: Report | None = None,
    report_every: int = 1,
    space: NestedSpace | None = None,
    checkpoint: bytes | None = None,
    snapshot: bytes | None = None,
) -> Evaluation:
    """Train at `hyperparameters`; return the validation loss and its gradient with respect to them.

    Args:
        problem: the training run, whose functions compile at the first evaluation; or a training function of your own,
            as `from_function(function)`, which takes no method, key, report, checkpoint or snapshot.
        hyperparameters: a dict from names to values, in natural units. The `space` says what each is: a `Float` is
            traced by JAX and has a derivative, an `Int` or a `Categorical` is a plain value, for which the problem
            compiles anew. Without a space every number is taken for a float, also where it is written 1.
        method: the way to differentiate, `Reversible()` by default.
        key: the source of the initial parameters and of each step's randomness; the same key gives the same value.
            Every training run needs one.
        gradient_below: the gradient is computed only where the value comes out below this. With `-math.inf` it never
            is.
        fold: a part of the validation set that the gradient leaves out; where the loss on the part that judges, by
            default the same, does not come out below `fold.below`, the status is "overfitted", and no gradient is
            computed. Nothing is held back where the validation loss is a scalar. All folds share one compiled program.
        report: a function that is called with a `Progress` (the step, the validation loss, and what takes a snapshot)
            every `report_every` steps before the last. An error that it raises ends the evaluation, as Optuna's pruning
            does. Only `Reversible` and the methods that go on from checkpoints call it: with the others training is one
            program.
        report_every: the number of steps between two reports.
        space: what each hyperparameter is, and the box that methods stay in which move them (`Hypernet`, `OnePass`,
            `Persistent`, `RealTime`). Methods that do not see all hyperparameters refuse those of the space that they
            do not see. Where it has dicts within dicts, `{"opt": {"rate": Float(...)}}`, so have the hyperparameters,
            the gradient and `refined`; all else calls this one `"opt/rate"`.
        checkpoint: the `checkpoint` of an earlier evaluation, from whose end this one goes on (`Hypernet`, `OnePass`,
            `Persistent`, `RealTime`).
        snapshot: what `Progress.snapshot` returned in an evaluation with the same arguments that was interrupted; this
            one goes on from there, and has the same value and gradient to the bit (`Reversible`). Other
            hyperparameters, keys, shapes, optimizers and resolutions are refused, but other losses and data go
            unnoticed.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do. What goes wrong in training is
            not an error but a `status` of the evaluation.
        InexactReversalError: `method` is a `Reversible` without a fallback, as by default, and the reversal did not end
            at the initial state.
        SnapshotError: a `ValueError`, where the snapshot belongs to another evaluation.
        RuntimeError: `method` is a `Reversible`, the device is a GPU, and XLA_FLAGS do not have
            `--xla_gpu_deterministic_ops=true`.
        Exception: what the `load` of a `HostBatches` raises, as it is.

    Example:
        >>> from hypergrad_search import evaluate
        >>> result = evaluate(problem, point, key=key)
        >>> print(f"{result.value:.2f}, and {result.gradient['rate']:.1f} more for each unit of the rate")
        0.74, and 2.5 more for each unit of the rate
    """
    if isinstance(problem, FunctionProblem):
        refuse("evaluate", method=method, key=key, report=report, checkpoint=checkpoint, snapshot=snapshot)
    elif not isinstance(problem, TrainingProblem):
        raise ValueError(f"evaluate: problem must be a TrainingProblem, or from_function(function), got {problem!r}")
    box: Space | None = flat(space)
    nests = box is not space
    hyperparameters = flat(hyperparameters, box) if nests else hyperparameters
    method = Reversible() if method is None else method
    if not isinstance(method, Method):
        raise ValueError(f"evaluate: method must be a Method such as Reversible(), got {method!r}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((hyperparameters, key))):
        raise ValueError("evaluate: JAX cannot trace it, as in jax.jit, jax.grad or jax.vmap; use train there")
    below = number("evaluate: gradient_below", gradient_below)
    if fold is not None and not isinstance(fold, Fold):
        raise ValueError(f"evaluate: fold must be a Fold such as Fold(0, of=4) or None, got {fold!r}")
    if report is not None and not callable(report):
        raise ValueError(f"evaluate: report must be a function of a Progress or None, got {report!r}")
    every = whole_number("evaluate: report_every", report_every, 1)
    request = Request(below, fold, report, every, box, checkpoint, snapshot)
    if isinstance(problem, FunctionProblem):
        split_of_space(hyperparameters, box)
        with noting_counts(hyperparameters, box):
            evaluation = Direct().evaluate(problem, hyperparameters, key, request)
        return as_nested(evaluation) if nests else evaluation
    checked_key = random_key("evaluate: key", key)
    if checkpoint is not None and not method.continues:
        raise ValueError(f"evaluate: {type(method).__name__} has no checkpoints to go on from; leave checkpoint out")
    if snapshot is not None and not method.resumes:
        raise ValueError(f"evaluate: {type(method).__name__} cannot go on from a snapshot; leave snapshot out")
    problem, _, _ = checked_split(problem, hyperparameters, box)
    evaluation = method.evaluate(problem, hyperparameters, checked_key, request)
    if not isinstance(evaluation, Evaluation):
        raise ValueError(f"{type(method).__name__}.evaluate must return an Evaluation, got {evaluation!r}")
    if evaluation.gradient is not None:
        warn_of_what_has_no_effect(problem, hyperparameters, box, evaluation.gradient)
    return as_nested(evaluation) if nests else evaluation
