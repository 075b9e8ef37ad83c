"""`measure_trust`: how far the derivatives by each hyperparameter can be believed, from a few gradients more."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from hypergrad_search.checks import number, shown
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient.base import Evaluation, Method
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.losses import examples
from hypergrad_search.nesting import flat
from hypergrad_search.parameters import initial
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.space import Hyperparameters, NestedSpace, Space, floats, from_unit, gradient_to_unit, to_unit

HALVES = 2  # of the validation set


@dataclass(frozen=True)
class Trust:
    """How far the derivatives by one hyperparameter agree with those of slightly different training runs.

    Two gradients g and h, in the unit box, agree by `2 * g @ h / (g @ g + h @ h)`: 1 where they are equal, 0 where they
    have nothing in common, -1 where they are opposite. Each number is None where it could not be measured.

    - `seeds`: with another key, which draws other initial weights, minibatches and noise.
    - `folds`: each with the other half of the validation set; None unless `valid_loss` returns two losses or more.
    - `smoothness`: after a short step downhill; None where the box leaves no room for one. Engstrom et al. (2025) call
      it metasmoothness, and find that it tells whether steps along a gradient through training pay.
    - `method`: what the method believes by itself, `Evaluation.trust`.
    """

    name: str
    seeds: float | None
    folds: float | None
    smoothness: float | None
    method: float | None

    @property
    def least(self) -> float:
        """The least of the numbers, from 0 to 1; 1 where none was measured."""
        known = [x for x in (self.seeds, self.folds, self.smoothness, self.method) if x is not None]
        return max(min(known, default=1.0), 0.0)


@dataclass(frozen=True)
class TrustReport:
    """The result of `measure_trust`; `print` it to read the table.

    - `trusts`: by the name of each float of the space.
    - `cost`: what all evaluations took, in minibatch gradient evaluations.
    """

    trusts: dict[str, Trust]
    cost: float

    def __str__(self) -> str:
        wide = max(len(name) for name in ("hyperparameter", *self.trusts))
        lines = [f"{'hyperparameter':{wide}}  seeds  folds  smoothness  method"]
        for name, x in self.trusts.items():
            cells = (_cell(x.seeds, 5), _cell(x.folds, 5), _cell(x.smoothness, 10), _cell(x.method, 6))
            lines.append(f"{name:{wide}}  {'  '.join(cells)}")
        return "\n".join(lines)


def measure_trust(
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    space: NestedSpace,
    *,
    key: jax.Array,
    method: Method | None = None,
    step: float = 0.03,
) -> TrustReport:
    """Measure how far a hypergradient can be believed, hyperparameter by hyperparameter.

    `check_gradient` tells whether a gradient is that of the value. This tells whether it is of use: a gradient that is
    exact for one seed, one half of the validation set and one point, and another one for the next, leads nowhere.
    It takes the gradients of four evaluations, or three where `valid_loss` returns a single loss.

    Args:
        problem: the training run.
        hyperparameters: the point, in natural units.
        space: the box in whose units gradients are compared.
        key: the source of randomness; another key is split from it.
        method: the way to differentiate, `Reversible()` by default.
        step: the length of the step downhill in the direction that changes most, in units of the box, up to 1.

    Returns:
        the numbers, by hyperparameter; `print` shows them as a table.

    Raises:
        ValueError: an argument does not fit, the space has no `Float`, or the point has no gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from hypergrad_search import Float, TrainingProblem, measure_trust, sgd
        >>> problem = TrainingProblem(
        ...     init=lambda key, h: jax.random.normal(key, (3,)),
        ...     train_loss=lambda w, h, batch, key: jnp.sum(w**2),
        ...     valid_loss=lambda w, h: jnp.sum(w**2),
        ...     batches=lambda step: None,
        ...     optimizer=sgd("rate", 0.5),
        ...     steps=10,
        ... )
        >>> report = measure_trust(
        ...     problem, {"rate": 0.01}, {"rate": Float(1e-3, 1.0, log=True)}, key=jax.random.key(0)
        ... )
        >>> report.trusts["rate"].smoothness > 0.9
        True
    """
    length = number("measure_trust: step", step, 0, 1)
    if not length:
        raise ValueError("measure_trust: step must be above 0, got 0")
    box: Space = flat(space)
    point = flat(hyperparameters, box)
    if not floats(box):
        raise ValueError("measure_trust: the space has no Float, and nothing else has a gradient")
    start = to_unit(box, point)
    for name, part in _parts(box, start).items():
        if not np.all(np.abs(part - 0.5) <= 0.5 + 1e-9):  # bounds may be rounded
            raise ValueError(
                f"measure_trust: {name!r} must be within the bounds of the space, got {shown(point[name])}"
            )
    spent = 0.0

    def gradient(fold: int, at: Hyperparameters, key: jax.Array) -> tuple[dict[str, np.ndarray[Any, Any]], Evaluation]:
        nonlocal spent
        held_back = Fold(fold, HALVES) if has_folds else None
        found = evaluate(problem, at, key=key, method=method, space=box, fold=held_back)
        spent += found.cost.gradient_evaluations
        if found.gradient is None:
            raise ValueError(
                f"measure_trust: there is no gradient at {'this point' if at is point else 'a point near by'}"
                f", and the status is {str(found.status)!r}: {found.message or 'the method moves the hyperparameters'}"
            )
        return _by_name(box, at, found.gradient), found

    has_folds = _examples(problem, point, key) >= HALVES
    here, found = gradient(0, point, key)
    other_seed, _ = gradient(0, point, jax.random.fold_in(key, 1))
    other_half = gradient(1, point, key)[0] if has_folds else None
    downhill = np.concatenate([-x.ravel() for x in here.values()])
    steepest = np.abs(downhill).max(initial=0.0)
    move = downhill * (length / steepest) if steepest else downhill
    there = np.clip(start + move, 0.0, 1.0)
    near = None
    if not np.array_equal(there, start):
        near = gradient(0, {**point, **from_unit(box, there)}, key)[0]
    trusts = {
        name: Trust(
            name,
            seeds=_agreement(slope, other_seed[name]),
            folds=None if other_half is None else _agreement(slope, other_half[name]),
            smoothness=None if near is None else _agreement(slope, near[name]),
            method=(found.trust or {}).get(name),
        )
        for name, slope in here.items()
    }
    return TrustReport(trusts, spent)


def _examples(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> int:
    """Return the number of losses that `valid_loss` returns, 0 for a scalar."""
    posed = problem.at(hyperparameters)
    params, statistics = jax.eval_shape(lambda: initial(posed, dict(hyperparameters), key))
    return examples(posed, (params, statistics) if problem.has_statistics else params, dict(hyperparameters))


def _by_name(space: Space, at: Hyperparameters, gradient: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a gradient in units of the box, as one vector for each float of the space."""
    given = {name: gradient.get(name, np.zeros(p.shape)) for name, p in floats(space).items()}
    return _parts(space, gradient_to_unit(space, at, given))


def _parts(space: Space, vector: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    ends = np.cumsum([p.size for p in floats(space).values()])
    return dict(zip(floats(space), np.split(vector, ends[:-1]), strict=True))


def _agreement(some: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> float | None:
    sizes = float(some @ some + others @ others)
    return 2 * float(some @ others) / sizes if sizes else None


def _cell(x: float | None, width: int) -> str:
    return f"{'' if x is None else f'{x:.2f}':>{width}}"
