"""`DrMAD`: hypergradients by going back along the straight line between the first weights and the last."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.cost import HESSIAN_VECTOR_PRODUCT
from hypergrad_search.hypergradient.base import MOST_GROWTH, Evaluation, Method, Request, trust_after
from hypergrad_search.hypergradient.in_floats import Derived, after_training
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out, outer_losses
from hypergrad_search.optimizers import finest
from hypergrad_search.parameters import split_statistics
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training.floats import FloatState, float_training, judged_model, last_state


@dataclass(frozen=True)
class DrMAD(Method):
    """Train in floats, and differentiate back along a straight line instead of the path (Fu et al. 2016).

    The state before step t of T, counted from 0, is taken to be `first + t / T * (last - first)`: the weights, what the
    optimizer keeps beside them, and the statistics. The way back is that of `Unrolled` otherwise, so it needs no more
    than the two ends of the path.

    Cost: the value takes one training run, the gradient two more. Memory is that of three copies of the state, and does
    not grow with the number of steps, but for the settings, which are schedules.

    It is exact where the path is a straight line that is gone along evenly, and where derivatives do not depend on
    where the weights are. Else it is biased, as training curves: it is meant for hyperparameters of losses, such as
    penalties, whose derivatives change little along the path. It sees all hyperparameters, but do not trust it for
    those of the optimizer: a derivative by a rate or momentum is that of the update itself, which is far from even. On
    networks it may be many times too large, and with AdamW have the wrong sign; the status is "ok" all the same.
    `trust` tells as little of that: it falls with the growth alone, as that of `Reversible` does. `diagnostics` have
    `straightness`, the mean cosine of the angle between the line and the steps that training takes from it.
    The status is "exploded" where the gradient by the weights grows by more than a factor of 1,000 on the way back: on
    the line, steps may be unstable that were stable on the path. Where `Reversible` works, that is exact, for a third
    more time and some bits a weight and step. Training is one program, so `report` is never called.

    Example:
        >>> from hypergrad_search import DrMAD, evaluate
        >>> round(float(evaluate(problem, point, key=key, method=DrMAD()).gradient["l2"]))
        -5
    """

    reports = False

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        dynamic, static = split(hyperparameters, request.space)

        def differentiate(last: FloatState) -> Derived:
            back = _gradient(problem, static, dynamic, last, key, left_out(request.fold))
            useless = "" if back.growth <= MOST_GROWTH else _EXPLODED  # NaN is no growth that can be trusted
            straightness = float(jnp.nan_to_num(back.straightness))
            trust = trust_after(float(back.growth), back.gradient)
            diagnostics = {"straightness": straightness}
            return Derived(back.gradient, HESSIAN_VECTOR_PRODUCT * problem.steps, diagnostics, useless, trust)

        return after_training(problem, request, lambda: _train(problem, static, dynamic, key), differentiate)


_EXPLODED = (
    "the value is sound, but its gradient is useless: it grew by more than a factor of 1,000 on its way back along the "
    "straight line; lower the learning rate or the number of steps, or use Reversible()"
)


class _Back(NamedTuple):
    """What going back along the line gives.

    - `growth`: the largest growth of the gradient of the weights.
    - `straightness`: the mean cosine of the angle between the line and the steps that training takes from its points.
    """

    gradient: dict[str, Any]
    growth: jax.Array
    straightness: jax.Array


@compiled(static=2)
def _train(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[FloatState, OuterLosses]:
    hyperparameters = {**dynamic, **dict(static)}
    last = last_state(problem, hyperparameters, key)
    return last, outer_losses(problem, judged_model(problem, last), hyperparameters)


@compiled(static=2)
def _gradient(
    problem: TrainingProblem,
    static: Static,
    dynamic: dict[str, Any],
    last: FloatState,
    key: jax.Array,
    without: LeftOut,
) -> _Back:
    """Return the gradient of the loss that is fitted; `last` is the state where training ends."""
    floats, put_last = split_statistics(last)

    def fitted(floats: list[jax.Array], dynamic: dict[str, Any]) -> jax.Array:
        model = judged_model(problem, put_last(floats))
        return fitted_loss(problem, model, {**dynamic, **dict(static)}, without)

    def begin(dynamic: dict[str, Any]) -> tuple[tuple[list[jax.Array], dict[str, jax.Array]], tuple[Any, jax.Array]]:
        _, first, (steps, settings) = float_training(problem, {**dynamic, **dict(static)}, key)
        return (split_statistics(first)[0], settings), (first, steps)

    weights = len(jax.tree.leaves(last.params))

    def norm(of_state: list[jax.Array]) -> jax.Array:
        return jnp.sqrt(sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in of_state[:weights]))

    def back(adjoint: Any, scanned: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, Any]:
        (of_state, of_dynamic), (step, now) = adjoint, scanned
        floats, put = split_statistics(_between(first, last, step, problem.steps))

        def one_step(floats: list[jax.Array], dynamic: dict[str, Any], now: dict[str, jax.Array]) -> list[jax.Array]:
            body, _, _ = float_training(problem, {**dynamic, **dict(static)}, key)
            return split_statistics(body(put(floats), (step, now))[0])[0]

        after, pull_back = jax.vjp(one_step, floats, dynamic, now)
        of_state, of_this_step, of_now = pull_back(of_state)
        taken = [x - y for x, y in zip(after[:weights], floats[:weights], strict=True)]
        of_dynamic = jax.tree.map(jnp.add, of_dynamic, of_this_step)
        return (of_state, of_dynamic), (of_now, norm(of_state), _cosine(taken, line))

    (_, settings), pull_back, (first, steps) = jax.vjp(begin, dynamic, has_aux=True)
    ends = [split_statistics(state)[0][:weights] for state in (first, last)]
    line = [(y - x) / problem.steps for x, y in zip(*ends, strict=True)]
    start = jax.grad(fitted, argnums=(0, 1))(floats, dynamic)
    (of_first, of_dynamic), (of_settings, norms, cosines) = jax.lax.scan(back, start, (steps, settings), reverse=True)
    gradient: dict[str, Any] = jax.tree.map(jnp.add, of_dynamic, pull_back((of_first, of_settings))[0])
    at_end = norm(start[0])
    growth = jnp.where(at_end > 0, jnp.max(norms) / at_end, 0.0)
    return _Back(gradient, growth, jnp.mean(cosines))


def _cosine(some: list[jax.Array], others: list[jax.Array]) -> jax.Array:
    """Return the cosine of the angle between two moves; 1 where one of them goes nowhere."""

    def product(xs: list[jax.Array], ys: list[jax.Array]) -> jax.Array:
        parts = (jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)) for x, y in zip(xs, ys, strict=True))
        return sum(parts, jnp.float32(0.0))

    sizes = jnp.sqrt(product(some, some) * product(others, others))
    return jnp.where(sizes > 0, product(some, others) / jnp.where(sizes > 0, sizes, 1.0), 1.0)


def _between(first: FloatState, last: FloatState, step: jax.Array, steps: int) -> FloatState:
    """Return the state before a step; whole numbers that count steps do so, and all others stay as they were."""

    def between(x: jax.Array, y: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            share = step.astype(finest(x.dtype)) / steps
            return x + share.astype(x.dtype) * (y - x)
        if jnp.issubdtype(x.dtype, jnp.signedinteger):
            return x + (y - x) // steps * step.astype(x.dtype)
        return x

    state: FloatState = jax.tree.map(between, first, last)
    return state
