"""`Implicit`: hypergradients by the implicit function theorem, from the end of training alone."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import HESSIAN_VECTOR_PRODUCT, TRAINING_STEP
from hypergrad_search.hypergradient.algorithms import VALIDATION_STEP
from hypergrad_search.hypergradient.base import Evaluation, Method, Request
from hypergrad_search.hypergradient.in_floats import Derived, after_training, trained
from hypergrad_search.hypergradient.settled import settled
from hypergrad_search.hypergradient.solvers import ConjugateGradients, Solver
from hypergrad_search.hypergradient.unseen import (
    OF_TRAINING_RUNS,
    read_by_losses,
    read_by_penalty,
    reads_the_step,
    refuse_unseen,
    tuned,
)
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import LeftOut, fitted_loss, left_out, step_loss
from hypergrad_search.optimizers import ProximalOptimizer, held_at_zero, penalty_of
from hypergrad_search.parameters import as_returned
from hypergrad_search.problem import Statistics, Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space


@dataclass(frozen=True)
class Implicit(Method):
    """Train, and differentiate the minimum that training came to, by the implicit function theorem.

    Where the weights minimise the training loss f, their derivative by the hyperparameters h is
    `-inverse(hessian of f) @ (derivative of f by weights and h)`, whatever training did to get there. So the
    hypergradient is `dL/dh - dL/dw @ inverse(hessian) @ d2f/dw dh`, where L is the validation loss.

    - `solver`: how the inverse is applied: `ConjugateGradients(tolerance=...)` (HOAG, Pedregosa 2016), `Neumann(terms=
      ..., rate=...)` (Lorraine et al. 2020), `Identity()` (T1-T2, Luketina et al. 2016), or a `Solver` of your own.
    - `batches`: f is the mean of the training losses of so many last steps; give the number of steps of an epoch. It
      is 1 where the training loss is the same at every step.

    Cost: one training run, and `2 * batches` gradient evaluations for each product with the Hessian. Neither its time
    nor its memory beyond that of training grows with the number of steps, or of hyperparameters.

    It is exact where training has converged and the solver is exact. Its bias is about as large, relative to the
    gradient, as what training has left: `diagnostics` have `training_gradient`, the norm of the gradient of f at the
    weights, `to_come`, how much L would change, to first order, by the step that the solver takes towards the minimum,
    `residual`, the share of the right side that the solver left, and `products`.

    HOAG lowers the tolerance from one step of a search to the next. A method keeps nothing from one evaluation to the
    next, so the tolerance here is what the last step of a search needs. Weights do not minimise f with `adamw`, whose
    weight decay is no part of it, nor with a `transform` that changes where the gradient is 0. Where a hyperparameter
    acts on the loss and on the way of training too, only the former counts. Statistics count as those that settle for
    the weights, as with `Hypernet`, and as constants in f.

    With proximal steps (`proximal_sgd`), f is the training loss and the penalties. Weights that these hold at 0 stay
    there, and the system is solved for all others (Feng and Simon 2017). So penalties have gradients too; a schedule of
    one counts as it is at the last steps, those whose losses f is the mean of. The gradient is that of the present
    zeros: where others are about to appear, the loss has a kink.

    It cannot see other hyperparameters of the optimizer, or those of `init`: they do not change where the minimum is.
    An error names them; use `Reversible`, or `OnePass` for those of the optimizer. Do not use it for short training, or
    where early stopping is what regularises. Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Implicit, evaluate
        >>> from hypergrad_search.hypergradient import ConjugateGradients
        >>> method = Implicit(solver=ConjugateGradients(damping=0.01))
        >>> list(evaluate(problem, point, method=method, key=key, space={"l2": space["l2"]}).gradient)
        ['l2']
    """

    _: KW_ONLY
    solver: Solver = ConjugateGradients()  # noqa: RUF009 (frozen)
    batches: int = 10
    reports = False

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise ValueError(f"Implicit: solver must be a Solver such as ConjugateGradients(), got {self.solver!r}")
        object.__setattr__(self, "batches", whole_number("Implicit: batches", self.batches, 1))

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        seen = _seen(problem, hyperparameters, request.space)
        dynamic, static = split(hyperparameters, request.space)

        def differentiate(model: Trained) -> Derived:
            varies = reads_the_step(problem, hyperparameters, request.space)
            batches = min(self.batches, problem.steps) if varies else 1
            known, at = (problem, static, batches), (dynamic, model, key)
            held = _held(problem, static, dynamic, model)
            right, direct = _validation_gradient(*known, *at, left_out(request.fold))
            products = 0

            def product(vector: jax.Array) -> jax.Array:
                nonlocal products
                products += 1
                return jnp.where(held, vector, _hessian_product(*known, *at, jnp.where(held, 0, vector)))

            solution = self.solver.solve(product, jnp.where(held, 0, right))
            vector = jnp.where(held, 0, solution.vector)
            through_weights, slope = _mixed_product(*known, *at, vector)
            gradient = {name: jax.tree.map(jnp.subtract, direct[name], through_weights[name]) for name in seen}
            of_statistics = TRAINING_STEP * batches if problem.has_statistics else 0
            cost = VALIDATION_STEP + of_statistics + HESSIAN_VECTOR_PRODUCT * batches * (products + 1)
            diagnostics = {
                "products": products,
                "residual": _finite_or_none(solution.residual),
                "to_come": _finite_or_none(float(-(vector @ slope))),
                "training_gradient": _finite_or_none(float(jnp.linalg.norm(jnp.where(held, 0, slope)))),
            }
            return Derived(gradient, cost, diagnostics, solution.useless)

        return after_training(problem, request, lambda: trained(problem, static, dynamic, key), differentiate)

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """See `Method`."""
        _seen(problem, hyperparameters, space)


def _finite_or_none(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _seen(problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None) -> list[str]:
    """Return the hyperparameters that have a gradient; raise `ValueError` where one is asked for that has none."""
    seen = read_by_losses(problem, hyperparameters, space) | read_by_penalty(problem, hyperparameters, space)
    exact = "Unrolled()" if isinstance(problem.optimizer, ProximalOptimizer) else "Reversible()"
    instead = f"or use {exact}, or OnePass() for those of the optimizer"
    refuse_unseen("Implicit", tuned(hyperparameters, space), seen, f"{OF_TRAINING_RUNS}, {instead}")
    return [name for name in split(hyperparameters, space)[0] if name in seen]


class _Training(NamedTuple):
    """Training at its end: the weights as a vector, and two functions.

    `step(flat, statistics, dynamic, step)` returns the training loss of a step, with the penalty of the optimizer where
    it has one, and the new statistics. `model(flat, statistics)` returns a model like the trained one.
    """

    flat: jax.Array
    statistics: Statistics
    step: Callable[[jax.Array, Statistics, dict[str, Any], jax.Array], tuple[jax.Array, Statistics]]
    model: Callable[[jax.Array, Statistics], Trained]


def _at_its_end(problem: TrainingProblem, static: Static, model: Trained, key: jax.Array) -> _Training:
    params, statistics = model if problem.has_statistics else (model, None)
    flat, unravel = ravel_pytree(params)
    _, step_key = jax.random.split(key)

    def step(
        flat: jax.Array, statistics: Statistics, dynamic: dict[str, Any], step: jax.Array
    ) -> tuple[jax.Array, Statistics]:
        params, hyperparameters = unravel(flat), {**dynamic, **dict(static)}
        loss, statistics = step_loss(problem, params, statistics, hyperparameters, step_key, step)
        penalty = penalty_of(problem.optimizer, hyperparameters, params, problem.steps, step)
        return loss + penalty.astype(loss.dtype), statistics

    return _Training(flat, statistics, step, lambda flat, now: as_returned(problem, unravel(flat), now))


@compiled(static=2)
def _held(problem: TrainingProblem, static: Static, dynamic: dict[str, Any], model: Trained) -> jax.Array:
    """Return for each weight whether a penalty holds it at 0, as a vector."""
    params = model[0] if problem.has_statistics else model
    held: jax.Array
    held, _ = ravel_pytree(held_at_zero(problem.optimizer, {**dynamic, **dict(static)}, params, problem.steps))
    return held


def _last_steps(problem: TrainingProblem, batches: int) -> jax.Array:
    return jnp.arange(problem.steps - batches, problem.steps, dtype=jnp.int32)


@compiled(static=3)
def _validation_gradient(
    problem: TrainingProblem,
    static: Static,
    batches: int,
    dynamic: dict[str, Any],
    model: Trained,
    key: jax.Array,
    without: LeftOut,
) -> tuple[jax.Array, dict[str, Any]]:
    """Return the gradient of the validation loss by the weights, as a vector, and directly by the hyperparameters."""
    training = _at_its_end(problem, static, model, key)

    def fitted(flat: jax.Array, dynamic: dict[str, Any]) -> jax.Array:
        def update(before: Statistics) -> Statistics:
            def one(now: Statistics, step: jax.Array) -> tuple[Statistics, None]:
                return training.step(flat, now, dynamic, step)[1], None

            return jax.lax.scan(one, before, _last_steps(problem, batches))[0]

        now = settled(update, training.statistics) if problem.has_statistics else None
        return fitted_loss(problem, training.model(flat, now), {**dynamic, **dict(static)}, without)

    gradients: tuple[jax.Array, dict[str, Any]] = jax.grad(fitted, argnums=(0, 1))(training.flat, dynamic)
    return gradients


@compiled(static=3)
def _hessian_product(
    problem: TrainingProblem,
    static: Static,
    batches: int,
    dynamic: dict[str, Any],
    model: Trained,
    key: jax.Array,
    vector: jax.Array,
) -> jax.Array:
    """Return the product of the training loss's Hessian by the weights with a vector."""
    training = _at_its_end(problem, static, model, key)

    def of_step(total: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        slope = jax.grad(lambda flat: training.step(flat, training.statistics, dynamic, step)[0])
        return total + jax.jvp(slope, (training.flat,), (vector,))[1], None

    total, _ = jax.lax.scan(of_step, jnp.zeros_like(vector), _last_steps(problem, batches))
    mean: jax.Array = total / batches
    return mean


@compiled(static=3)
def _mixed_product(
    problem: TrainingProblem,
    static: Static,
    batches: int,
    dynamic: dict[str, Any],
    model: Trained,
    key: jax.Array,
    vector: jax.Array,
) -> tuple[dict[str, Any], jax.Array]:
    """Return the product of a vector with the derivative of the training loss's gradient by the hyperparameters.

    Return this gradient too.
    """
    training = _at_its_end(problem, static, model, key)

    def of_step(total: tuple[Any, jax.Array], step: jax.Array) -> tuple[tuple[Any, jax.Array], None]:
        def slope(dynamic: dict[str, Any]) -> jax.Array:
            slope: jax.Array
            slope = jax.grad(lambda flat: training.step(flat, training.statistics, dynamic, step)[0])(training.flat)
            return slope

        gradient, pull_back = jax.vjp(slope, dynamic)
        return jax.tree.map(jnp.add, total, (pull_back(vector)[0], gradient)), None

    start = jax.tree.map(jnp.zeros_like, (dynamic, vector))
    (product, gradient), _ = jax.lax.scan(of_step, start, _last_steps(problem, batches))
    return jax.tree.map(lambda x: x / batches, product), gradient / batches
