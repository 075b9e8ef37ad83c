"""`Forward`: hypergradients by forward-mode differentiation of training, for few hyperparameters."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import HESSIAN_VECTOR_PRODUCT, TRAINING_STEP
from hypergrad_search.hypergradient.base import Evaluation, Method, Request
from hypergrad_search.hypergradient.in_floats import Derived, after_training, trained
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import LeftOut, fitted_loss, left_out
from hypergrad_search.parameters import split_statistics
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training.floats import train_in_floats


@dataclass(frozen=True)
class Forward(Method):
    """Train in plain floats, and carry the derivative of the state by each hyperparameter along (Franceschi 2017).

    Each number among the hyperparameters, an element of an array too, has a tangent: the derivative by it of the
    weights and of all that the optimizer keeps. One batched program moves all tangents on with each step.

    Cost: the value takes one training run. The gradient takes one more, and two for each number, since a tangent takes
    a Hessian-vector product a step. Memory is that of `1 + numbers` copies of the weights and slots, and does not grow
    with the number of steps, but for the settings, which are a schedule for each tangent.

    - `at_once`: so many tangents share memory and a training run; all by default. With fewer, training is repeated for
      each batch of them.

    It is exact up to rounding, as `Unrolled` is, for every hyperparameter, optimizer and type of parameters, and it
    sees all hyperparameters, those of `init` and the optimizer too. Use it for about ten numbers and long training; for
    more, `Reversible` takes four training runs for any number. To share rates over stretches of steps, as FDS does
    (Micaelli and Storkey 2021), shape the hyperparameter so: with `rates` of shape `(10,)` for ten stretches,
    `sgd(lambda h, step: h["rates"][step * 10 // steps], 0.9)`. Functions with a `jax.custom_vjp` of their own have no
    forward mode, except in the losses. Training is one program, so `report` is never called. Raises `ValueError`
    where a setting does not fit.

    Example:
        >>> from hypergrad_search import Forward, evaluate
        >>> round(float(evaluate(problem, point, key=key, method=Forward()).gradient["rate"]), 1)
        2.5
    """

    _: KW_ONLY
    at_once: int | None = None
    reports = False

    def __post_init__(self) -> None:
        if self.at_once is not None:
            object.__setattr__(self, "at_once", whole_number("Forward: at_once", self.at_once, 1))

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        dynamic, static = split(hyperparameters, request.space)
        numbers = sum(x.size for x in jax.tree.leaves(dynamic))
        runs = -(-numbers // (self.at_once or max(numbers, 1)))

        def differentiate(model: Trained) -> Derived:
            gradient = _gradient(problem, static, self.at_once, dynamic, model, key, left_out(request.fold))
            return Derived(gradient, (TRAINING_STEP * runs + HESSIAN_VECTOR_PRODUCT * numbers) * problem.steps, {})

        return after_training(problem, request, lambda: trained(problem, static, dynamic, key), differentiate)


@compiled(static=3)
def _gradient(
    problem: TrainingProblem,
    static: Static,
    at_once: int | None,
    dynamic: dict[str, Any],
    model: Trained,
    key: jax.Array,
    without: LeftOut,
) -> dict[str, Any]:
    """Return the gradient of the loss that is fitted; `model` is where training ends."""
    flat, unravel = ravel_pytree(dynamic)

    def fitted(model: list[jax.Array], dynamic: dict[str, Any]) -> jax.Array:
        return fitted_loss(problem, put(model), {**dynamic, **dict(static)}, without)

    def train(flat: jax.Array) -> list[jax.Array]:
        return split_statistics(train_in_floats(problem, {**unravel(flat), **dict(static)}, key))[0]

    # The loss after training is differentiated in reverse, once for all tangents.
    floats, put = split_statistics(model)
    of_model, direct = jax.grad(fitted, argnums=(0, 1))(floats, dynamic)

    def along(direction: jax.Array) -> jax.Array:
        tangents = jax.jvp(train, (flat,), (direction,))[1]
        pairs = [(x.astype(flat.dtype), y.astype(flat.dtype)) for x, y in zip(tangents, of_model, strict=True)]
        return jnp.sum(jnp.stack([jnp.sum(x * y) for x, y in pairs]))

    directions = jnp.eye(flat.size, dtype=flat.dtype)
    through_training = jax.lax.map(along, directions, batch_size=at_once or max(flat.size, 1))
    gradient: dict[str, Any] = jax.tree.map(jnp.add, direct, unravel(through_training))
    return gradient
