"""`check_gradient`: a gradient held against finite differences along random directions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from hypergrad_search.checks import number, shown, whole_number
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hypergradient.base import Method
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.nesting import flat
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.space import Float, Hyperparameters, NestedSpace, Space, floats, from_unit, to_unit

STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)  # in units of the box
#: Differences at two step sizes measure one slope only if they agree to this share of it.
SETTLED = 0.2
#: Differences below this share of the largest value are rounding.
ROUNDING = 1e-6
#: A gradient agrees if it differs from a slope that has settled by at most this share of it.
AGREEMENT = 0.1

Values = dict[str, Any]


@dataclass(frozen=True)
class Direction:
    """One direction in the space: what the gradient predicts along it, and what was measured.

    - `name`: the hyperparameter that moves, or `"all"`.
    - `steps`: the lengths of the steps to either side, in units of the box, from long to short.
    - `predicted`, `measured`: for each step, the change of the value from one side to the other, divided by twice the
      length. `measured` is NaN where a value is not finite.
    - `largest`: the largest magnitude of a value along the direction.
    """

    name: str
    steps: tuple[float, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    largest: float

    @property
    def flat(self) -> bool:
        """Whether the gradient and the value agree that nothing changes here, but for rounding in float32."""
        noise = ROUNDING * self.largest
        return all(
            abs(predicted) <= noise / step and abs(measured) <= noise / step
            for step, predicted, measured in zip(self.steps, self.predicted, self.measured, strict=True)
        )

    @property
    def settled(self) -> int | None:
        """The index of the step at which the measured slope depends least on the length; None where it never settles.

        The prediction has no part in this choice.
        """
        pairs = [_difference(a, b) for a, b in zip(self.measured, self.measured[1:], strict=False)]
        if not pairs or not min(pairs) <= SETTLED:
            return None
        return pairs.index(min(pairs)) + 1

    @property
    def error(self) -> float:
        """The difference of prediction and measurement, as a share of the larger; NaN where nothing has settled."""
        at = self.settled
        if self.flat:
            return 0.0
        return math.nan if at is None else _difference(self.predicted[at], self.measured[at])

    @property
    def verdict(self) -> str:
        """What the numbers say about the gradient along this direction."""
        at = self.settled
        if self.flat:
            return "agrees: it is flat here"
        if any(map(math.isnan, self.predicted)):
            return "WRONG: the gradient is NaN"
        if not any(self.measured) and any(self.predicted):
            return (
                f"WRONG: the gradient says {self.predicted[-1]:.3g}, but the value does not change at all: it is "
                "piecewise constant, or does not depend on this"
            )
        if at is None:
            return "the finite differences do not settle: the value is noisy, chaotic or has jumps here"
        predicted, measured = self.predicted[at], self.measured[at]
        if self.error <= AGREEMENT:
            return f"agrees to {self.error:.1%}"
        numbers = f"the gradient says {predicted:.3g}, the value changes by {measured:.3g}"
        if not predicted:
            return f"WRONG: {numbers}; the derivative is missing"
        ratio = measured / predicted
        if abs(ratio + 1) <= AGREEMENT:
            return f"WRONG SIGN: {numbers}"
        return f"WRONG: {numbers}, {ratio:.3g} times as much"


@dataclass(frozen=True)
class GradientCheck:
    """The result of `check_gradient`; `print` it to read the table.

    - `value`: the value at the point.
    - `directions`: along each direction, the predicted and the measured slopes.
    """

    value: float
    directions: tuple[Direction, ...]

    @property
    def agrees(self) -> bool:
        """Whether the gradient agrees with the finite differences along every direction."""
        return all(direction.error <= AGREEMENT for direction in self.directions)

    def __str__(self) -> str:
        lines = [f"value {self.value:.6g}; slopes in units of the box, by the length of the step"]
        wide = max(len(direction.name) for direction in self.directions)
        for direction in self.directions:
            lines.append(f"{direction.name:{wide}}  {direction.verdict}")
            lines += [
                f"{'':{wide}}  {step:8.0e}  predicted {predicted:12.5g}  measured {measured:12.5g}"
                for step, predicted, measured in zip(
                    direction.steps, direction.predicted, direction.measured, strict=True
                )
            ]
        return "\n".join(lines)


def check_gradient(
    problem: TrainingProblem | FunctionProblem,
    hyperparameters: Hyperparameters,
    space: NestedSpace,
    *,
    key: jax.Array | None = None,
    method: Method | None = None,
    directions: int = 3,
    steps: Sequence[float] = STEPS,
) -> GradientCheck:
    """Hold a problem's hypergradient against finite differences of its validation loss.

    Along each direction the value is taken at both sides of the point, at several distances. Long steps measure the
    curvature too, and short ones the rounding of float32: a slope is believed where two lengths measure the same. Each
    length costs two training runs a direction.

    Args:
        problem: the training run, or `from_function(function)`, which takes neither key nor method.
        hyperparameters: the point, in natural units.
        space: the box; steps are measured in it, so that one length suits all hyperparameters, and end at its bounds.
        key: the source of randomness, the same for all evaluations. Every training run needs one.
        method: the way to differentiate, `Reversible()` by default.
        directions: the number of random directions along which all hyperparameters move. There is one more for each
            hyperparameter, along which it moves alone.
        steps: the lengths of the steps, in units of the box.

    Returns:
        the check; `print(check)` shows a table with a verdict for each direction, and `check.agrees` is their sum.

    Raises:
        ValueError: an argument does not fit, the space has no `Float`, the point is out of its bounds, or there is no
            gradient at the point.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from hypergrad_search import Float, TrainingProblem, check_gradient, sgd
        >>> problem = TrainingProblem(
        ...     init=lambda key, h: jnp.ones(3),
        ...     train_loss=lambda w, h, batch, key: jnp.sum(w**2),
        ...     valid_loss=lambda w, h: jnp.sum(w**2),
        ...     batches=lambda step: None,
        ...     optimizer=sgd("rate", 0.5),
        ...     steps=10,
        ... )
        >>> space = {"rate": Float(1e-3, 1.0, log=True)}
        >>> check_gradient(problem, {"rate": 0.01}, space, key=jax.random.key(0)).agrees
        True
    """
    box: Space = flat(space)
    start = flat(hyperparameters, box)
    at = evaluate(problem, start, method=method, key=key, space=box)
    if at.gradient is None:
        raise ValueError(
            f"check_gradient: {'the problem' if method is None else type(method).__name__} gives no gradient at this "
            "point, and the status is "
            f"{str(at.status)!r}: {at.message or 'it moves the hyperparameters by itself'}"
        )

    def value_at(point: Values) -> float:
        return evaluate(problem, point, method=method, key=key, space=box, gradient_below=-math.inf).value

    return check(value_at, at.value, at.gradient, box, start, directions=directions, steps=steps)


def check(
    value_at: Callable[[Values], float],
    value: float,
    gradient: Hyperparameters,
    space: Space,
    point: Hyperparameters,
    *,
    directions: int = 3,
    steps: Sequence[float] = STEPS,
) -> GradientCheck:
    """Return the check of a gradient, in natural units, of the function `value_at`, which is `value` at `point`.

    Derivatives that `gradient` lacks are taken for 0. `check_gradient` says more about the other arguments.
    """
    whole_number("check_gradient: directions", directions, 0)
    if not isinstance(steps, list | tuple | np.ndarray):
        raise ValueError(f"check_gradient: steps must be a list of lengths, got {steps!r}")
    lengths = tuple(sorted((number("check_gradient: every length in steps", step) for step in steps), reverse=True))
    if len(lengths) < 2 or not 0 < lengths[-1] <= lengths[0] <= 1:
        raise ValueError(f"check_gradient: steps must be at least two lengths above 0 and up to 1, got {steps!r}")
    moving = floats(space)
    if not moving:
        raise ValueError("check_gradient: the space has no Float, and nothing else has a gradient")
    start, rng, owners = to_unit(space, point), np.random.default_rng(0), _owners(moving)
    for name, owner in owners:
        if not np.all(np.abs(start[owner] - 0.5) <= 0.5 + 1e-9):  # bounds may be rounded
            raise ValueError(
                f"check_gradient: {name!r} must be within the bounds of the space, got {shown(point[name])}"
            )
    moves = [("all", rng.choice([-1.0, 1.0], start.size)) for _ in range(directions if len(moving) > 1 else 0)]
    moves += [(name, np.where(owner, rng.choice([-1.0, 1.0], start.size), 0.0)) for name, owner in owners]

    def measure(name: str, direction: np.ndarray[Any, Any]) -> Direction:
        predicted, measured, largest = [], [], abs(value)
        for length in lengths:
            ahead, behind = (from_unit(space, start + side * length * direction) for side in (1, -1))
            change = sum(float(np.sum(np.asarray(gradient.get(n, 0.0)) * (ahead[n] - behind[n]))) for n in moving)
            values = [value_at({**point, **side}) for side in (ahead, behind)]
            largest = max([largest, *(abs(x) for x in values if math.isfinite(x))])
            predicted.append(change / (2 * length))
            measured.append((values[0] - values[1]) / (2 * length) if np.isfinite(values).all() else math.nan)
        return Direction(name, lengths, tuple(predicted), tuple(measured), largest)

    return GradientCheck(value, tuple(measure(name, direction) for name, direction in moves))


def _owners(moving: dict[str, Float]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Return for each hyperparameter which coordinates of a vector in the unit box are its own."""
    names = np.repeat(np.array(list(moving), object), [parameter.size for parameter in moving.values()])
    return [(name, names == name) for name in moving]


def _difference(some: float, other: float) -> float:
    """Return the difference of two slopes as a share of the larger; infinite where one is NaN."""
    if math.isnan(some) or math.isnan(other):
        return math.inf
    largest = max(abs(some), abs(other))
    return abs(some - other) / largest if largest else 0.0
