"""Adam as it is in the code that the authors of reversible learning released."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

FORGETTING = 1e-4  # b1 is multiplied by this at each step


class _State(NamedTuple):
    steps: jax.Array
    mean: Any
    square: Any


def released_adam(step: float, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-4) -> optax.GradientTransformation:
    """Return Adam as in the authors' code, where b1 is almost 0 after the first step.

    The bias is corrected as if b1 had stayed the same. So there is no momentum, and early steps are up to five times as
    long.
    """

    def init(params: Any) -> _State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _State(jnp.zeros(()), zeros, zeros)

    def update(gradient: Any, state: _State, params: Any = None) -> tuple[Any, _State]:
        decay = b1 * FORGETTING**state.steps
        mean = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.mean, gradient)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g**2, state.square, gradient)
        count = state.steps + 1
        updates = jax.tree.map(
            lambda m, s: -step * (m / (1 - b1**count)) / (jnp.sqrt(s / (1 - b2**count)) + eps), mean, square
        )
        return updates, _State(count, mean, square)

    return optax.GradientTransformation(init, update)
