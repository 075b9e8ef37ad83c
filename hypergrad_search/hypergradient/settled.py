"""Statistics where they settle: with the slope of the implicit function theorem, by which they follow the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab

from hypergrad_search.parameters import split_statistics
from hypergrad_search.problem import Statistics


def settled(update: Callable[[Statistics], Statistics], statistics: Statistics) -> Statistics:
    """Return the statistics, with the slope of those where they settle for the weights and hyperparameters of `update`.

    `update` returns the statistics after a step from those before it. Where they settle it changes nothing, so the
    slope is that of the implicit function theorem.
    """
    floats, put = split_statistics(statistics)

    def of_floats(floats: list[jax.Array]) -> list[jax.Array]:
        return split_statistics(update(put(floats)))[0]

    after, push = jax.linearize(of_floats, floats)
    first = [x - jax.lax.stop_gradient(x) for x in after]  # 0, with the slope of a single update
    change, _ = bicgstab(  # type: ignore[no-untyped-call]  # JAX has no types here
        lambda x: jax.tree.map(jnp.subtract, x, push(x)), first
    )
    return put(jax.tree.map(jnp.add, floats, change))
