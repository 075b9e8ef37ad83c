"""`Direct`: JAX differentiates a training function of the user's own, and the cost of that is measured."""

import math
import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import fold as folds
from hypergrad_search.checks import shown
from hypergrad_search.cost import VALUE_AND_GRADIENT, Cost
from hypergrad_search.fold import Fold
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hypergradient.base import (
    MESSAGES,
    Evaluation,
    Method,
    Request,
    Status,
    finite_or_none,
    judge,
)
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import OuterLosses
from hypergrad_search.nesting import nested
from hypergrad_search.space import Hyperparameters
from hypergrad_search.trouble import see

#: A function of the hyperparameters that JAX traces.
_Traced = Callable[[dict[str, Any]], jax.Array]

#: What decides which programs a call runs: the plain values, and the shapes of all others.
_Choice = tuple[Static, tuple[tuple[int, ...], ...]]

_CONVERSIONS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

_UNDIFFERENTIABLE = (TypeError, ValueError, NotImplementedError)  # JAX's: a wrong kind, a conversion, a missing rule


class FunctionError(ValueError):
    """The user's function is wrong, whatever the hyperparameters, so that no search should go on."""


@dataclass(frozen=True)
class Direct(Method):
    """Call the user's function for its value, and differentiate it by `jax.vjp` where the gradient is wanted.

    It is no choice of the user's: `from_function` says what it does, and it evaluates nothing else.
    """

    reports = False

    def evaluate(  # type: ignore[override]  # it is given functions alone
        self, problem: FunctionProblem, hyperparameters: Hyperparameters, key: jax.Array | None, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`; there is no use for a key.

        Raises `FunctionError` where the function returns no losses, or works but cannot be differentiated.
        """
        started = time.perf_counter()
        dynamic, static = split(hyperparameters, request.space)
        choice = static, tuple(x.shape for x in jax.tree.leaves(dynamic))
        needs_value_first = request.gradient_below < math.inf or (
            request.fold is not None and request.fold.below < math.inf
        )

        def losses(dynamic: dict[str, Any]) -> jax.Array:
            return _checked(problem, problem.function(nested({**dynamic, **dict(static)})))

        spent, gradient = 0.0, None
        if needs_value_first:
            with _timed(problem, "value", choice):
                valid = losses(dynamic).block_until_ready()
            judged = _judge(valid, request.fold)
            spent += problem.steps
        if not needs_value_first or request.wants_gradient(judged):
            with _timed(problem, "gradient", choice):
                valid, gradient = _value_and_gradient(problem, losses, dynamic, request.fold)
            judged = judged if needs_value_first else _judge(valid, request.fold)
            spent += _measured_ratio(problem) * problem.steps
        judged = replace(
            judged,
            cost=Cost(spent, time.perf_counter() - started),
            diagnostics={"steps": problem.steps, "exact": None},
        )
        if gradient is None or judged.status is not Status.OK:
            return judged
        gradient = finite_or_none(gradient)
        if gradient is None:
            return replace(judged, status=Status.EXPLODED, message=MESSAGES[Status.EXPLODED])
        _warn_of_zeros(problem, gradient)
        return replace(judged, gradient=gradient)

    def params(self, problem: FunctionProblem, *_: Any, **__: Any) -> Any:  # type: ignore[override]  # it is given functions alone
        """Raise `ValueError`, since a function returns its loss alone."""
        raise ValueError(
            f"from_function({problem.name}) knows no trained parameters, since the function returns its loss alone; "
            "train once more at the hyperparameters that were found, with a function that returns the parameters"
        )


def _value_and_gradient(
    problem: FunctionProblem, losses: _Traced, dynamic: dict[str, Any], fold: Fold | None
) -> tuple[jax.Array, dict[str, Any]]:
    with _differentiable(problem, losses, dynamic):
        valid, pull_back = jax.vjp(losses, dynamic)
        (gradient,) = pull_back(_weights(valid, fold))
        return valid, jax.device_get(gradient)  # which waits for it


@contextmanager
def _differentiable(problem: FunctionProblem, losses: _Traced, dynamic: dict[str, Any]) -> Iterator[None]:
    """Raise `FunctionError` where the gradient ends in an error and the value alone does not."""
    try:
        yield
    except FunctionError:
        raise
    except _UNDIFFERENTIABLE as error:
        losses(dynamic)  # here errors are raised that the gradient has no part in
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if isinstance(error, _CONVERSIONS):
            raise FunctionError(
                f"from_function: {problem.name} makes a Python number or a NumPy array of a hyperparameter, or of what "
                f"follows from one, and JAX cannot differentiate that ({reason}); the loss must stay a JAX array on "
                f"the whole way, so use jax.numpy in place of float(), math and NumPy{see('function')}"
            ) from error
        raise FunctionError(
            f"from_function: JAX cannot differentiate {problem.name} ({reason}){see('function')}"
        ) from error


def _weights(losses: jax.Array, fold: Fold | None) -> jax.Array:
    """Return the weight of each loss in the mean of those that are not held back; 1 for a scalar."""
    kept = np.ones(losses.shape)
    if fold is not None and losses.ndim:
        kept = np.where(folds.order(losses.size) % fold.of == fold.index, 0.0, 1.0)
    return jnp.asarray(kept / kept.sum(), losses.dtype)


def _judge(losses: jax.Array, fold: Fold | None) -> Evaluation:
    return judge(OuterLosses(jnp.mean(losses), losses, None, None), fold)


def _checked(problem: FunctionProblem, value: Any) -> jax.Array:
    """Return what the function returned, if it is a loss or losses; else raise `FunctionError`."""
    if value is None:
        remedy = "does it lack a return?"
    elif not jax.tree_util.all_leaves([value]):
        remedy = "return the loss alone"
    elif not isinstance(value, jax.Array):
        remedy = "the loss must stay a JAX array on the whole way, so leave out float(), .item() and NumPy's functions"
    elif not jnp.issubdtype(value.dtype, jnp.floating):
        remedy = "make it floating-point"
    elif value.ndim > 1 or not value.size:
        remedy = "take the mean over all other axes"
    else:
        return value
    got = f"shape {value.shape} and dtype {value.dtype}" if isinstance(value, jax.Array) else shown(value)
    raise FunctionError(
        f"from_function: {problem.name} must return a JAX array, a floating-point scalar or one loss for each example, "
        f"shape (n,), got {got}; {remedy}{see('function')}"
    )


# The problems whose first gradient was looked at; later ones may well be 0, where a search has come to an optimum.
_LOOKED_AT: "weakref.WeakSet[FunctionProblem]" = weakref.WeakSet()


def _warn_of_zeros(problem: FunctionProblem, gradient: dict[str, Any]) -> None:
    if problem in _LOOKED_AT:
        return
    _LOOKED_AT.add(problem)
    leaves = jax.tree.leaves(gradient)
    if not leaves or any(map(np.any, leaves)):
        return
    warnings.warn(
        f"from_function: the gradient of {problem.name} is 0 in all hyperparameters, so that a search cannot follow "
        "it; does the function stop it by jax.lax.stop_gradient, .item() or int(), or not depend on them? "
        "check_gradient tells",
        stacklevel=5,
    )


# By problem: the seconds of all calls, by their kind, "value" or "gradient", and by the programs that they run.
_SECONDS: "weakref.WeakKeyDictionary[FunctionProblem, dict[tuple[str, _Choice], list[float]]]" = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def _timed(problem: FunctionProblem, kind: str, choice: _Choice) -> Iterator[None]:
    """Note the seconds of a call that ends without an error."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    _SECONDS.setdefault(problem, {}).setdefault((kind, choice), []).append(seconds)


def _measured_ratio(problem: FunctionProblem) -> float:
    """Return how many times the seconds of a value the seconds of a value with its gradient are.

    It is the median over all choices of plain values of which both are known. The first call of each kind is left out,
    since it compiles.
    """
    seconds_of = _SECONDS.get(problem, {}).copy()  # other threads may add to it
    known = {key: statistics.median(calls[1:]) for key, calls in seconds_of.items() if len(calls) > 1}
    ratios = [
        seconds / known["value", choice]
        for (kind, choice), seconds in known.items()
        if kind == "gradient" and ("value", choice) in known
    ]
    return statistics.median(ratios) if ratios else VALUE_AND_GRADIENT
