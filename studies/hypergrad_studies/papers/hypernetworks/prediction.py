"""The validation loss that a hypernetwork predicts for settings that were never trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypergrad_search import Hypernet, Space, TrainingProblem


def predicted(
    problem: TrainingProblem, space: Space, method: Hypernet, checkpoint: bytes, key: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """A function from log penalties, shape `(n, *shape)`, to the validation losses that the hypernetwork predicts.

    The `space` has one name, and its value has shape `shape`.
    """
    (name,) = space

    def loss(log_l2: jax.Array) -> jax.Array:
        l2 = {name: jnp.exp(log_l2)}
        return problem.valid_loss(method.params(problem, l2, space=space, key=key, checkpoint=checkpoint), l2)

    return jax.jit(lambda points: jax.lax.map(loss, points))
