"""The evaluation of a trial, with its defaults, in one place for all hosts."""

import contextlib
import functools
import math
import re
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import random_key, whole_number
from hypergrad_search.cost import Cost
from hypergrad_search.from_function import FunctionProblem, refuse
from hypergrad_search.hypergradient.base import MESSAGES, Evaluation, Method, Progress, Status
from hypergrad_search.hypergradient.batch import evaluate_batch
from hypergrad_search.hypergradient.direct import Direct, FunctionError
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.reversible import InexactReversalError, Reversible
from hypergrad_search.hypergradient.snapshot import SnapshotError
from hypergrad_search.hypergradient.unrolled import Unrolled
from hypergrad_search.lifting import lift_settings
from hypergrad_search.load_errors import is_of_load
from hypergrad_search.problem import TrainingProblem, check_problem
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.search.observation import number_to_json
from hypergrad_search.space import (
    Hyperparameters,
    Space,
    as_given,
    centre,
    check_space,
    floats,
    lifted,
)
from hypergrad_search.trouble import see

#: It differentiates exactly, and in floats where a reversal turns out inexact, so that a search does not end for it.
DEFAULT_METHOD: Method = Reversible(fallback=Unrolled())

#: The kinds of errors that a trial's values may cause, from shapes that do not fit to memory that runs out.
_OF_VALUES = (ValueError, TypeError, ArithmeticError, LookupError, AssertionError, jax.errors.JaxRuntimeError)

_COORDINATE = re.compile(r"(.+)\[(\d+(?:,\d+)*)\]")

#: It is called with the progress, whose loss is infinite where it is NaN, and the cost so far.
OnTheWay = Callable[[Progress, float], None]


@dataclass(frozen=True, eq=False)
class HostedProblem:
    """A problem with all that decides how a host evaluates it; made by `host`.

    `problem` is a `TrainingProblem`, or a `FunctionProblem` with the method `Direct`, which has no use for the key.
    `lifts_settings` tells whether the optimizer's settings are lifted here; else `space` has all lifts already.
    """

    problem: Any
    space: Space
    method: Method
    key: jax.Array
    report_every: int | None
    lifts_settings: bool = False

    def searched(self, *, by_gradients: bool) -> Space:
        """Return the space that trials are drawn from: numbers are lifted only for a search that uses gradients."""
        return lifted(self.liftable) if by_gradients else self.space

    @functools.cached_property
    def liftable(self) -> Space:
        """The space with a `lift` for each number that may have one; `lift_settings` says which these are."""
        if isinstance(self.problem, FunctionProblem) or not self.lifts_settings:
            return self.space
        return lift_settings(self.problem, self.space)

    def evaluate(
        self,
        hyperparameters: Hyperparameters,
        wanted: Wanted,
        *,
        on_the_way: OnTheWay,
        checkpoint: Callable[[], bytes | None],
        snapshot: Callable[[], bytes | None] = lambda: None,
        key: jax.Array | None = None,
    ) -> Evaluation:
        """Evaluate a trial.

        `checkpoint` returns the checkpoint of the trial's parent, and `snapshot` that of the trial itself, if it was
        interrupted. Each is called only if the method can go on from one, and `snapshot` only if there are reports.

        An error that comes of the trial's values is the result `REFUSED`, so that no search ends for it; a warning
        says so once. An error of a kind that values cause, such as `ValueError`, is taken for one if other values of
        this problem have been evaluated without an error, or can be, at the middle of the space. All other errors are
        raised, and so are those of `on_the_way`, `checkpoint` and `snapshot`.
        """
        problem = self.problem.at(hyperparameters)
        reports_failed: list[Exception] = []

        space = as_given(self.liftable, hyperparameters)

        def report(now: Progress) -> None:
            try:
                loss = math.inf if math.isnan(now.loss) else now.loss
                on_the_way(replace(now, loss=loss), self.method.cost(problem, now.step, space))
            except Exception as error:  # whatever it is, it is raised as it is
                reports_failed.append(error)
                raise

        before = checkpoint() if self.method.continues else None
        interrupted = snapshot() if self.method.resumes and self.report_every is not None else None
        started = time.perf_counter()
        try:
            evaluation = evaluate(
                problem,
                hyperparameters,
                gradient_below=wanted.gradient_below,
                fold=wanted.held_back(self.liftable),
                report=None if self.report_every is None else report,
                report_every=self.report_every or problem.steps,
                space=space,
                checkpoint=before,
                snapshot=interrupted,
                **self._training(key),
            )
        except (InexactReversalError, FunctionError, SnapshotError):
            raise
        except _OF_VALUES as error:
            if error in reports_failed or is_of_load(error) or not self._works_elsewhere(hyperparameters, wanted):
                raise
            spent = Cost(self.method.cost(problem, problem.steps, space), time.perf_counter() - started)
            message = f"{MESSAGES[Status.REFUSED]}: {type(error).__name__}: {error}"
            if self not in _REFUSING:
                _REFUSING.add(self)
                warnings.warn(f"a trial failed, and the search goes on; {message}", stacklevel=3)
            return Evaluation(math.inf, None, Status.REFUSED, spent, message, diagnostics={"steps": problem.steps})
        _WORKING.add(self)
        return replace(evaluation, diagnostics={"steps": problem.steps, **evaluation.diagnostics})

    def evaluate_batch(
        self, hyperparameters: Sequence[Hyperparameters], wanted: Sequence[Wanted], keys: Sequence[jax.Array]
    ) -> list[Evaluation]:
        """Evaluate several trials at once, as `hypergrad_search.evaluate_batch` does, where `check_batches` passes.

        A trial whose shapes are not those of the first is evaluated alone. So are all where an error comes of values,
        since each one's own evaluation tells whose they are; a warning says so where they are nobody's.
        """
        spaces = [as_given(self.liftable, h) for h in hyperparameters]
        together = [i for i, space in enumerate(spaces) if space == spaces[0]]
        failed: Exception | None = None
        evaluations: list[Evaluation] = []
        try:
            evaluations = evaluate_batch(
                self.problem,
                [hyperparameters[i] for i in together],
                method=self.method,  # type: ignore[arg-type]  # `check_batches` has seen that it is a Reversible
                key=jnp.stack([keys[i] for i in together]),
                gradient_below=[wanted[i].gradient_below for i in together],
                fold=[wanted[i].held_back(self.liftable) for i in together],
                space=spaces[0],
            )
            _WORKING.add(self)
        except InexactReversalError:
            raise
        except _OF_VALUES as error:
            if is_of_load(error):
                raise
            failed = error
        found = dict(zip(together, evaluations, strict=False))
        for i, of_trial in enumerate(zip(hyperparameters, wanted, keys, strict=True)):
            if i not in found:
                found[i] = self._alone(*of_trial)
        if failed is not None and all(evaluation.status != Status.REFUSED for evaluation in found.values()):
            warnings.warn(
                f"a batch failed, and its trials were evaluated one by one; {type(failed).__name__}: {failed}",
                stacklevel=3,
            )
        return [found[i] for i in range(len(found))]

    def _alone(self, hyperparameters: Hyperparameters, wanted: Wanted, key: jax.Array) -> Evaluation:
        return self.evaluate(hyperparameters, wanted, on_the_way=lambda *_: None, checkpoint=lambda: None, key=key)

    def check_batches(self, owner: str) -> None:
        """Raise `ValueError` where trials cannot be evaluated at once; the message names the caller, `owner`."""
        if isinstance(self.problem, FunctionProblem):
            raise ValueError(f"{owner}: batches need a TrainingProblem, got a function; run its trials one by one")
        if not isinstance(self.method, Reversible) or self.method.last is not None:
            raise ValueError(f"{owner}: batches need method=Reversible() without last, got {self.method!r}")
        if self.report_every is not None:
            raise ValueError(f"{owner}: trials of a batch do not report on their way; leave report_every out")

    def _works_elsewhere(self, hyperparameters: Hyperparameters, wanted: Wanted) -> bool:
        """Return whether other values can be evaluated: the middle of all floats, or that of the whole space."""
        if self in _WORKING:
            return True
        space = as_given(self.liftable, hyperparameters)
        middle = centre(space)
        of_floats = {name: middle[name] for name in floats(space)}
        for values in ({**hyperparameters, **of_floats}, {**hyperparameters, **middle}):
            with contextlib.suppress(Exception):  # that these values fail is an answer too
                evaluate(
                    self.problem,
                    values,
                    gradient_below=-math.inf,
                    fold=wanted.held_back(self.liftable),
                    space=space,
                    **self._training(None),
                )
                _WORKING.add(self)
                return True
        return False

    def _training(self, key: jax.Array | None) -> dict[str, Any]:
        """Return the arguments of `evaluate` that are for training problems alone."""
        if isinstance(self.problem, FunctionProblem):
            return {}
        return {"method": self.method, "key": self.key if key is None else key}

    def facts(self, evaluation: Evaluation, *, reseeded: bool = False) -> dict[str, Any]:
        """Return by name what a host stores of an evaluation, beside its value and checkpoint.

        A training run gives the same value again, unless each trial is `reseeded`; of a function that is not known.

        Facts that are None are left out, and so is `gradient` where a search must not step along it. `gradient` and
        `refined` hold floats as numbers and numpy arrays; all else is plain JSON, but for a test loss that is not
        finite.
        """
        usable, refined, held_back = evaluation.usable_gradient, evaluation.refined, evaluation.held_back
        differentiable = floats(self.space)
        facts = {
            "status": str(evaluation.status),
            "message": evaluation.message,
            "cost": evaluation.cost.gradient_evaluations,
            "seconds": evaluation.cost.seconds,
            "steps": evaluation.diagnostics.get("steps"),
            "exact": evaluation.diagnostics.get("exact"),
            "deterministic": True if isinstance(self.problem, TrainingProblem) and not reseeded else None,
            "test_loss": evaluation.test_loss,
            "held_back": None if held_back is None else [number_to_json(loss) for loss in held_back],
            "blocks": None if evaluation.blocks is None else [list(map(number_to_json, x)) for x in evaluation.blocks],
            "cross_validated": evaluation.cross_validated,
            "trust": dict(evaluation.trust) if usable is not None and evaluation.trust else None,
            "gradient": None if usable is None else _plain({n: usable[n] for n in differentiable if n in usable}),
            "refined": None if refined is None else {**refined, **_plain({n: refined[n] for n in differentiable})},
        }
        return {name: fact for name, fact in facts.items() if fact is not None}


# The problems of which some evaluation has ended without an error.
_WORKING: "weakref.WeakSet[HostedProblem]" = weakref.WeakSet()

# The problems of which a trial was refused, and a warning was given.
_REFUSING: "weakref.WeakSet[HostedProblem]" = weakref.WeakSet()


def host(
    owner: str,
    problem: TrainingProblem | FunctionProblem,
    space: Space,
    method: Method | None,
    key: jax.Array | None,
    report_every: int | None,
    *,
    lifts_settings: bool = False,
) -> HostedProblem:
    """Return a problem that a host can evaluate; errors name the caller, `owner`.

    Raises `ValueError` where an argument does not fit.
    """
    if isinstance(problem, FunctionProblem):
        check_space(space)
        refuse(owner, method=method, key=key, report_every=report_every)
        return HostedProblem(problem, space, Direct(), jax.random.key(0), None)
    check_problem(problem, space)
    method = DEFAULT_METHOD if method is None else method
    if not isinstance(method, Method):
        raise ValueError(f"{owner}: method must be a Method such as Reversible(), got {method!r}")
    if report_every is not None:
        report_every = whole_number(f"{owner}: report_every", report_every, 1)
        if not method.reports:
            warnings.warn(
                f"{owner}: {type(method).__name__} trains in one program and never reports, so report_every="
                f"{report_every} has no effect, and nothing is stopped early; leave it out, or use "
                f"Reversible(){see('no-reports')}",
                stacklevel=3,
            )
    if key is None:
        key = jax.random.key(0)
    random_key(f"{owner}: key", key)
    return HostedProblem(problem, space, method, key, report_every, lifts_settings)


def is_coordinate(name: str) -> bool:
    """Return whether hosts know an array's element by such a name, as `coordinates` gives them."""
    return _COORDINATE.fullmatch(name) is not None


def joined(values: Hyperparameters) -> dict[str, Any]:
    """Return hyperparameters with an array in place of its coordinates `name[i,j]`, where all of these are present."""
    keys: dict[str, dict[tuple[int, ...], str]] = {}
    for key in values:
        if match := _COORDINATE.fullmatch(key):
            keys.setdefault(match[1], {})[tuple(map(int, match[2].split(",")))] = key
    arrays: dict[str, tuple[str, Any]] = {}  # by the key of each element
    for name, of_name in keys.items():
        shape = tuple(max(axis) + 1 for axis in zip(*of_name, strict=False))
        whole = math.prod(shape) == len(of_name) and all(index in of_name for index in np.ndindex(*shape))
        if whole and name not in values:
            array = np.reshape([values[of_name[index]] for index in np.ndindex(*shape)], shape)
            arrays |= dict.fromkeys(of_name.values(), (name, array))
    return dict(arrays.get(key, (key, value)) for key, value in values.items())


def described(array: np.ndarray[Any, Any]) -> str:
    """Return a summary of an array of numbers for people, such as "2x3 numbers, 0 to 1, median 0.5"."""
    size = "x".join(f"{length:,}" for length in array.shape)
    return f"{size} numbers, {array.min():.3g} to {array.max():.3g}, median {np.median(array):.3g}"


def _plain(values: Hyperparameters) -> dict[str, Any]:
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {name: array if array.shape else float(array) for name, array in arrays.items()}
