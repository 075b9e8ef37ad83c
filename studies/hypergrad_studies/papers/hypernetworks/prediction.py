"""Hypernetworks that predict the validation loss of settings that were never trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hypergrad_search import Hypernet, Space, TrainingProblem

RATE = 3e-3


def fading_adam(steps: int) -> optax.GradientTransformation:
    """Return Adam for a hypernetwork that predicts; its rate falls to 0 within `steps` steps, along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


def predicted(
    problem: TrainingProblem, space: Space, method: Hypernet, checkpoint: bytes, key: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Return a function from log penalties to the validation losses that the hypernetwork predicts.

    The `space` must have one name. Where its value has shape `shape`, log penalties have shape `(n, *shape)`.
    """
    (name,) = space

    def loss(log_l2: jax.Array) -> jax.Array:
        l2 = {name: jnp.exp(log_l2)}
        return problem.valid_loss(method.params(problem, l2, space=space, key=key, checkpoint=checkpoint), l2)

    return jax.jit(lambda points: jax.lax.map(loss, points))
