"""What all methods have in common: the request, the result, and how a result is judged."""

import abc
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import jax
import numpy as np

from hypergrad_search import fold as folds
from hypergrad_search.checks import number
from hypergrad_search.cost import Cost
from hypergrad_search.fold import Fold
from hypergrad_search.hyperparameters import split
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.losses import OuterLosses, mean_and_error, outer_losses
from hypergrad_search.nesting import nested
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.training.floats import train_in_floats
from hypergrad_search.trouble import ending_with, has_end, see


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come.

    - `step`: the number of steps done. `loss`: the validation loss after them, which may be NaN.
    - `snapshot`: returns bytes, from which `evaluate(snapshot=...)` goes on in any process. They are made when it is
      called, and that must be before `report` returns. It is None where the method cannot go on.
    """

    step: int
    loss: float
    snapshot: Callable[[], bytes] | None = None


#: It is called during training, and may raise an error to end the evaluation.
Report = Callable[[Progress], None]


class Status(StrEnum):
    """How an evaluation ended; the value is infinite unless the status is `OK`, `OVERFITTED` or `EXPLODED`.

    `UNDERFLOW`: gradients are so small that fixed-point numbers are too coarse for them (`Reversible` alone).
    `OVERFITTED`: the loss on the fold that judges did not come out below `Fold.below`. The value is sound, but a
    search takes the step for a failed one.
    `EXPLODED`: the value is sound, but the gradient does not tell where the loss falls: on its way back through
    training the adjoint grew by more than a factor of 1,000, as it does where training is chaotic (`Reversible` alone
    measures that), or the gradient is not finite.
    `REFUSED`: inside a host, an error refused the values of this trial, but not others.

    Example:
        >>> from hypergrad_search import Status, evaluate
        >>> evaluate(problem, {**point, "rate": 1e4}, key=key).status is Status.OVERFLOW
        True
    """

    OK = "ok"
    NAN = "nan"
    OVERFLOW = "overflow"
    UNDERFLOW = "underflow"
    DIVERGED = "diverged"
    OVERFITTED = "overfitted"
    EXPLODED = "exploded"
    REFUSED = "refused"


MESSAGES = {
    Status.OK: "",
    Status.NAN: "a gradient or loss was NaN; mostly the learning rate or a scale is too high",
    Status.OVERFLOW: "a number left the fixed-point range",
    Status.UNDERFLOW: "a number fell below the resolution of the fixed-point numbers",
    Status.DIVERGED: "the validation loss is infinite; lower the learning rate or scales",
    Status.OVERFITTED: "the part of the validation set that was held back is fitted no better than before the step",
    Status.EXPLODED: "the value is sound, but its gradient is useless: it is not finite; where an optimizer divides by "
    "the root of 0, as Adam of optax does for a weight without a gradient, eps_root=1e-8 keeps it off",
    Status.REFUSED: "an error refused these values",
}

#: A gradient is of use only if the norm of the adjoint, on its way back, stays below this many times its norm at the
#: end of training. In studies the hypergradient agrees with finite differences up to a growth of about 100, and no
#: longer from about 1,000 on.
MOST_GROWTH = 1e3
#: Up to this growth a gradient is believed.
HARMLESS_GROWTH = 1e2


@dataclass(frozen=True)
class Evaluation:
    """The result of training once at given hyperparameters.

    - `value`: the validation loss, a mean over examples; infinite where training failed, and `status` says why.
    - `gradient`: for each differentiable hyperparameter an array of its shape, in natural units. It is None where no
      gradient was asked for, where the value is infinite, where the status is `OVERFITTED`, and where the gradient is
      not finite. Where a `Fold` was held back it is the gradient of the loss on the other examples.
    - `status`, `message`: how the evaluation ended, and a sentence that says what to do about it, with the command that
      prints more; "" where all is well.
    - `cost`: what the evaluation took.
    - `refined`: better hyperparameters that the evaluation itself found; `value` is the loss at them. It is None for
      methods that find none.
    - `checkpoint`: the bytes that a method needs to go on from `refined`; pass them to `evaluate(checkpoint=...)`. It
      is None for methods that start anew each time.
    - `test_loss`: the mean test loss; None where the problem has none, or training did not end.
    - `standard_error`, `test_standard_error`: the standard errors of the means above; None unless the problem returns
      losses of examples.
    - `held_back`, `held_back_errors`: the mean loss on each fold, and their standard errors (None for a fold of one
      example), shape `(of,)`; None where no fold was held back, or the validation loss is a scalar.
    - `blocks`: the mean losses of the blocks of each fold (`Fold.margin` says what they are for), up to 32 for a fold;
      None where `held_back` is.
    - `cross_validated`: the loss that counts each example where its fold was held back (`Fold.cross_validate`); None
      where `held_back` is, or the status is not `OK`.
    - `trust`: for hyperparameters by name, a number from 0 to 1: how far the method believes the derivative, by what
      it could measure on its way; a search goes this share of its step. A name that is missing, or None for all of
      them, is believed. The docstring of each method says what it measures, and `measure_trust` measures more.
    - `diagnostics`: facts that JSON can hold, and that no computation reads. The methods of this package give `steps`
      (how many were trained) and `exact` (whether the reversal gave back the initial state bit for bit: False where a
      fallback had to take over, None where nothing was reversed). `Reversible` adds `adjoint_norms`: before each step
      that it reversed, the norm of the gradient with respect to all weights (and an average of them, which is taken to
      change as they do), and last the norm of the gradient with respect to the final weights; `spilled_bytes`, but
      in batches: the memory of the bits that decays have spilled; and `fallback` where its fallback evaluated: a
      sentence that says why.

    Raises `ValueError` where `value` is NaN, `status` or `cost` is of another kind, the gradient is not finite, or a
    trust is not from 0 to 1.

    Example:
        >>> from hypergrad_search import evaluate
        >>> result = evaluate(problem, point, key=key)
        >>> round(result.value, 2), str(result.status), result.diagnostics["exact"]
        (0.74, 'ok', True)
        >>> {name: round(float(slope), 1) for name, slope in result.gradient.items()}
        {'l2': -5.0, 'rate': 2.5}
    """

    value: float
    gradient: dict[str, Any] | None
    status: Status
    cost: Cost
    message: str = ""
    refined: dict[str, Any] | None = None
    checkpoint: bytes | None = None
    test_loss: float | None = None
    standard_error: float | None = None
    test_standard_error: float | None = None
    held_back: tuple[float, ...] | None = None
    held_back_errors: tuple[float | None, ...] | None = None
    blocks: tuple[tuple[float, ...], ...] | None = None
    cross_validated: float | None = None
    trust: Mapping[str, float] | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", number("Evaluation: value", self.value))
        if self.trust is not None:
            trust = {name: number(f"Evaluation: trust[{name!r}]", x, 0, 1) for name, x in self.trust.items()}
            object.__setattr__(self, "trust", trust)
        if self.status not in list(Status):
            raise ValueError(f"Evaluation: status must be one of {list(map(str, Status))}, got {self.status!r}")
        object.__setattr__(self, "status", Status(self.status))
        if self.message and self.status != Status.OK and not (self.status == Status.REFUSED and has_end(self.message)):
            object.__setattr__(self, "message", ending_with(see(self.status), self.message))
        if not isinstance(self.cost, Cost):
            raise ValueError(f"Evaluation: cost must be a Cost such as Cost(100, 0.5), got {self.cost!r}")
        if self.gradient is not None and finite_or_none(self.gradient) is None:
            raise ValueError("Evaluation: gradient has NaN or infinities; give finite_or_none(gradient)")

    @property
    def usable_gradient(self) -> dict[str, Any] | None:
        """The gradient, or None unless the status is `OK`, since a step along it would be of no use."""
        return self.gradient if self.status == Status.OK else None


@dataclass(frozen=True)
class Request:
    """The optional keyword arguments of `hypergrad_search.evaluate`, which describes them."""

    gradient_below: float = math.inf
    fold: Fold | None = None
    report: Report | None = None
    report_every: int = 1
    space: Space | None = None
    checkpoint: bytes | None = None
    snapshot: bytes | None = None

    def wants_gradient(self, judged: Evaluation) -> bool:
        """Return whether the gradient is wanted of what `judge` returned: its status is `OK`, and its value low."""
        return judged.status == Status.OK and judged.value < self.gradient_below


class Method(abc.ABC):
    """A way to the value and the hypergradient of a training problem.

    A subclass needs `evaluate` alone. It may build on `outer_losses`, `fitted_loss` and `judge`: `judge` returns an
    evaluation, to which the subclass adds its gradient, where `Request.wants_gradient`, and its cost with
    `dataclasses.replace`. `continues` tells that an evaluation leaves a checkpoint, from which another may go on,
    `reports` that it calls `report` on its way, and `resumes` that what it reports has snapshots, from which the same
    evaluation goes on after an interruption.
    """

    continues: bool = False
    reports: bool = True
    resumes: bool = False

    @abc.abstractmethod
    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`, which has checked the arguments."""

    def check(  # noqa: B027 (most methods can tune all)
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space
    ) -> None:
        """Raise `ValueError` where the method cannot tune a hyperparameter of `space`; this default never does."""

    def cost(self, problem: TrainingProblem, steps: int, space: Space | None = None) -> float:
        """Return the cost of the first `steps` steps, which is charged when `report` ends an evaluation early.

        `space` is that of the evaluation; a method whose cost does not depend on it needs none.
        """
        return steps

    @with_errors_of_load
    def params(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        *,
        key: jax.Array,
        space: Space | None = None,
        checkpoint: bytes | None = None,
    ) -> Trained:
        """Return the trained parameters whose validation loss is the value of an evaluation.

        Where the problem has statistics, they come as a pair with these. This default trains them once more, in floats.
        The arguments are those of `hypergrad_search.evaluate`.
        """
        problem = problem.at(hyperparameters)
        dynamic, static = split(hyperparameters, space)
        return train_in_floats(problem, {**dynamic, **dict(static)}, key)

    @with_errors_of_load
    def value(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, key: jax.Array, space: Space, left: bytes
    ) -> float:
        """Return the value of an evaluation that refined its hyperparameters to these, and left the checkpoint `left`.

        Methods that continue need it, so that a host can evaluate a trial again without the trials that came before.
        """
        params = self.params(problem, hyperparameters, key=key, space=space, checkpoint=left)
        return float(outer_losses(problem, params, dict(hyperparameters)).value)


def judge(losses: OuterLosses, fold: Fold | None = None) -> Evaluation:
    """Return the evaluation that follows from the losses after training; it has no gradient, and its cost is 0.

    Its status is `NAN`, `DIVERGED`, `OVERFITTED` or `OK`. Raises `ValueError` where there are more folds than examples.

    Example:
        >>> from hypergrad_search.hypergradient import judge, outer_losses
        >>> judged = judge(outer_losses(problem, jnp.zeros(3), point), None)
        >>> str(judged.status), judged.gradient
        ('ok', None)
    """
    value = float(losses.value)
    valid = np.asarray(losses.valid)
    status, held_back, errors, blocks = Status.OK, None, None, None
    if fold is not None and valid.ndim:
        if valid.size < fold.of:
            raise ValueError(
                f"fold: {valid.size} validation examples cannot be split into of={fold.of} parts; "
                "use fewer parts, in a search with strategy=ExploreDescend(folds=...)"
            )
        parts = [mean_and_error(part) for part in folds.split(valid, fold.of)]
        held_back, errors = tuple(mean for mean, _ in parts), tuple(error for _, error in parts)
        blocks = folds.blocks_of(valid, fold.of)
        if not fold.accepts(held_back, blocks, valid.size):
            status = Status.OVERFITTED
    if math.isnan(value):
        status = Status.NAN
    elif math.isinf(value):
        status = Status.DIVERGED
    return Evaluation(
        value=value if status in (Status.OK, Status.OVERFITTED) else math.inf,
        gradient=None,
        status=status,
        cost=Cost(0.0, 0.0),
        message=_why_nan(losses) if status is Status.NAN else MESSAGES[status],
        test_loss=None if losses.test_value is None else float(losses.test_value),
        standard_error=mean_and_error(valid)[1],
        test_standard_error=None if losses.test is None else mean_and_error(losses.test)[1],
        held_back=held_back,
        held_back_errors=errors,
        blocks=blocks,
        cross_validated=fold.cross_validate(value, held_back) if fold and held_back and status is Status.OK else None,
    )


def _why_nan(losses: OuterLosses) -> str:
    """Return what is known of a validation loss that is NaN: whether the model is to blame or the loss itself."""
    sound = int(np.isfinite(losses.valid).sum())
    if sound:
        return (
            f"{losses.valid.size - sound} of the {losses.valid.size} losses that valid_loss returned are not finite; "
            "look at these examples, and for a logarithm, a root or a division of 0; else the learning rate or a scale "
            "is too high"
        )
    if losses.test_value is not None and math.isfinite(losses.test_value):
        return "valid_loss returned NaN for a model whose test loss is finite; look at it, and at the validation data"
    return MESSAGES[Status.NAN]


def with_gradient(judged: Evaluation, gradient: dict[str, Any], useless: str = "") -> Evaluation:
    """Return what `judge` returned with its gradient; its status is `EXPLODED` where the gradient is not finite.

    `useless` says why a gradient does not tell where the loss falls; the status is `EXPLODED` then too.

    Example:
        >>> from hypergrad_search.hypergradient import judge, outer_losses, with_gradient
        >>> judged = judge(outer_losses(problem, jnp.zeros(3), point), None)
        >>> str(with_gradient(judged, {"l2": jnp.float32(jnp.nan)}).status)
        'exploded'
    """
    arrays = finite_or_none(gradient)
    why = useless or (MESSAGES[Status.EXPLODED] if arrays is None else "")
    if not why:
        return replace(judged, gradient=arrays)
    return replace(judged, gradient=arrays, status=Status.EXPLODED, message=why)


def as_nested(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose gradient and refined hyperparameters are as nested as their names say."""
    gradient, refined = evaluation.gradient, evaluation.refined
    return replace(
        evaluation,
        gradient=None if gradient is None else nested(gradient),
        refined=None if refined is None else nested(refined),
    )


def trust_after(growth: float, names: Iterable[str]) -> dict[str, float]:
    """Return how far derivatives are believed whose adjoint grew by a factor: from 1 at `HARMLESS_GROWTH`, falling with
    its logarithm, to 0 at `MOST_GROWTH`."""
    if not growth < MOST_GROWTH:  # NaN is no growth that can be trusted
        return dict.fromkeys(names, 0.0)
    share = math.log(MOST_GROWTH / max(growth, HARMLESS_GROWTH)) / math.log(MOST_GROWTH / HARMLESS_GROWTH)
    return dict.fromkeys(names, share)


def finite_or_none(gradient: dict[str, Any]) -> dict[str, Any] | None:
    """Return a gradient as numpy arrays, or None where an element is not finite.

    Example:
        >>> from hypergrad_search.hypergradient import finite_or_none
        >>> finite_or_none({"rate": jnp.float32(jnp.nan)}) is None
        True
    """
    arrays = jax.tree.map(np.asarray, gradient)
    return arrays if all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)) else None
