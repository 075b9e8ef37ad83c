"""What the methods share that train in plain floats, and move the hyperparameters on the way."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hypergrad_search.hypergradient.box import Box, box_of, check_start
from hypergrad_search.hypergradient.unseen import refuse_unseen, tuned
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import OuterLosses, fitted_loss, left_out, outer_losses
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.repeatable import reads
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.training.floats import FloatState, float_training, judged_model

#: It moves the hyperparameters in the unit box.
DEFAULT_OPTIMIZER = optax.adam(0.03)


def start_of(space: Space, hyperparameters: Hyperparameters) -> tuple[Box, jax.Array, dict[str, Any]]:
    """Return what `box_of` does, with a point that rounding has not carried out of the box."""
    box, point, fixed = box_of(space, hyperparameters)
    return box, jnp.clip(point, 0.0, 1.0), fixed


def update(
    problem: TrainingProblem, hyperparameters: Hyperparameters, training: FloatState, key: jax.Array, step: jax.Array
) -> FloatState:
    """Return the state of training after a step, the first of which is 0."""
    one_step, _, (_, settings) = float_training(problem, hyperparameters, key)
    at = jnp.minimum(step, problem.steps - 1)
    return one_step(training, (step, {name: x[at] for name, x in settings.items()}))[0]


@compiled(static=2)
def losses_at(
    problem: TrainingProblem, box: Box, training: FloatState, point: jax.Array, fixed: dict[str, Any]
) -> OuterLosses:
    """Return the losses of the weights that training has come to, at a point of the box."""
    return outer_losses(problem, judged_model(problem, training), box.within(point, fixed))


def moved(
    optimizer: optax.GradientTransformation, slope: jax.Array, slots: Any, point: jax.Array
) -> tuple[jax.Array, Any]:
    """Return the point of the unit box that follows along a slope, and the slots of what moves it.

    A number that moves to infinity is NaN, since the nearest one within the box would look like a success.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        updates, slots = optimizer.update(slope, slots, point)
        after = optax.apply_updates(point, updates)
    return jnp.where(jnp.isfinite(after), jnp.clip(after, 0.0, 1.0), jnp.full_like(after, jnp.nan)), slots


def check_acts(owner: str, problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space) -> None:
    """Raise `ValueError` where the arguments do not fit, or neither an update nor the loss reads a number."""
    check_start(owner, space, hyperparameters)
    why = "neither an update nor the validation loss depends on it, as where init alone reads it"
    instead = "give a constant there, or use Reversible()"
    seen = _seen(problem, hyperparameters, space)
    refuse_unseen(owner, tuned(hyperparameters, space), seen, f"{why}; {instead}")


def _seen(problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space) -> set[str]:
    """Return the hyperparameters that a training step or the validation loss reads, whatever the state is."""
    dynamic, static = split(hyperparameters, space)
    key, step = jax.random.key(0), jnp.int32(0)
    training = jax.eval_shape(lambda h: float_training(problem, {**h, **dict(static)}, key)[1], dynamic)

    def step_and_loss(h: dict[str, Any], training: FloatState, step: jax.Array) -> Any:
        after = update(problem, h, training, key, step)
        return after, fitted_loss(problem, judged_model(problem, training), h, left_out(None))

    return reads(step_and_loss, (dynamic, training, step), dynamic, static)
