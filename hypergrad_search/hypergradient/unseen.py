"""The hyperparameters that a method cannot see, since they do not act where it looks; an error names them."""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import fitted_loss, left_out, step_loss
from hypergrad_search.optimizers import penalty_of
from hypergrad_search.parameters import as_returned, initial
from hypergrad_search.problem import Params, Statistics, TrainingProblem
from hypergrad_search.repeatable import reads
from hypergrad_search.space import Hyperparameters, Space, floats
from hypergrad_search.trouble import see

#: Why methods that look at the end of training alone cannot tune what acts on its way.
OF_TRAINING_RUNS = (
    "neither the training loss nor the validation loss depends on it, and hyperparameters of the optimizer or of init "
    "have no meaning without training runs; give constants there"
)


def tuned(hyperparameters: Hyperparameters, space: Space | None) -> list[str]:
    """Return the hyperparameters that a gradient is asked for: the floats of the space, or else all floats.

    Example:
        >>> from hypergrad_search.hypergradient import tuned
        >>> tuned(point, {"l2": space["l2"]}), tuned(point, None)
        (['l2'], ['rate', 'l2'])
    """
    return list(split(hyperparameters)[0] if space is None else floats(space))


def read_by_losses(problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None) -> set[str]:
    """Return the hyperparameters that the training loss of a step or the validation loss depends on directly.

    Example:
        >>> from hypergrad_search.hypergradient import read_by_losses
        >>> read_by_losses(problem, point, space)
        {'l2'}
    """
    key, step = jax.random.key(0), jnp.int32(0)

    def losses(h: dict[str, Any], params: Params, statistics: Statistics) -> list[jax.Array]:
        return [
            step_loss(problem, params, statistics, h, key, step)[0],
            fitted_loss(problem, as_returned(problem, params, statistics), h, left_out(None)),
        ]

    dynamic, static = split(hyperparameters, space)
    return reads(losses, (dynamic, *_model(problem, dynamic, static)), dynamic, static)


def read_by_penalty(problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None) -> set[str]:
    """Return the hyperparameters that the penalty of the optimizer's proximal steps depends on, if they are such."""
    problem = problem.at(hyperparameters)
    dynamic, static = split(hyperparameters, space)
    params, _ = _model(problem, dynamic, static)

    def penalty(h: dict[str, Any], params: Params, step: jax.Array) -> jax.Array:
        return penalty_of(problem.optimizer, h, params, problem.steps, step)

    return reads(penalty, (dynamic, params, jnp.int32(0)), dynamic, static)


def reads_the_step(problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None) -> bool:
    """Return whether the training loss differs from step to step, as with minibatches or dropout."""
    key, now = jax.random.key(0), {"step": jnp.int32(0)}
    dynamic, static = split(hyperparameters, space)

    def loss(now: dict[str, jax.Array], h: dict[str, Any], params: Params, statistics: Statistics) -> jax.Array:
        return step_loss(problem, params, statistics, {**h, **dict(static)}, key, now["step"])[0]

    return bool(reads(loss, (now, dynamic, *_model(problem, dynamic, static)), now, Static((), ())))


def refuse_unseen(owner: str, names: list[str], seen: set[str], why: str) -> None:
    """Raise `ValueError` where one of the names is not among those that are seen; `why` ends the sentence.

    Example:
        >>> from hypergrad_search.hypergradient import refuse_unseen
        >>> refuse_unseen("MyMethod", ["rate"], {"l2"}, "it sees losses alone")
        Traceback (most recent call last):
        ValueError: MyMethod cannot tune rate: it sees losses alone; more: python -m hypergrad_search unseen
    """
    unseen = [name for name in names if name not in seen]
    if unseen:
        raise ValueError(f"{owner} cannot tune {', '.join(unseen)}: {why}{see('unseen')}")


def _model(problem: TrainingProblem, dynamic: dict[str, Any], static: Static) -> tuple[Params, Statistics]:
    """Return the shapes of the parameters and the statistics."""
    model: tuple[Params, Statistics]
    model = jax.eval_shape(lambda h: initial(problem, {**h, **dict(static)}, jax.random.key(0)), dynamic)
    return model
