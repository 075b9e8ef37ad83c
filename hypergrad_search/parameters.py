"""The model's initial parameters, as `init` returns them, and the checks that they must pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.problem import Params, TrainingProblem
from hypergrad_search.space import Hyperparameters

_ARRAYS_ALONE = (
    "return the trained arrays alone: eqx.partition(model, eqx.is_inexact_array)[0] of an Equinox module, "
    'nnx.state(model, nnx.Param) of a Flax NNX module, variables["params"] of a Flax Linen one'
)

# The types in which Flax NNX and Equinox keep running statistics. They are known by name, since the engine imports
# neither package.
_STATISTICS = {("flax", "BatchStat"), ("equinox", "State"), ("equinox", "StateIndex")}


def initial_params(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> Params:
    """Return the parameters that `problem.init` returns, as JAX arrays.

    Raises `ValueError` unless there is at least one array, all of them are floating-point, and none holds running
    statistics.
    """
    params = problem.init(key, hyperparameters)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_holds_statistics)
    if not leaves:
        raise ValueError("init must return a pytree with at least one array, got none")
    for path, leaf in leaves:
        _check_leaf(path, leaf)
    return jax.tree.map(jnp.asarray, params)


def _check_leaf(path: tuple[Any, ...], leaf: Any) -> None:
    name = f"params{jax.tree_util.keystr(path)}"
    if _holds_statistics(leaf) or any(jax.tree_util.keystr((part,), simple=True) == "batch_stats" for part in path):
        raise ValueError(
            f"init: {name} holds running statistics; these are overwritten at each step rather than trained, a change "
            "that the reverse pass cannot undo: use layer or group normalisation, or the statistics of the current "
            "batch alone"
        )
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
        raise ValueError(f"init: {name} must be an array, got {leaf!r}; {_ARRAYS_ALONE}")
    dtype = jnp.asarray(leaf).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"init: {name} must be floating-point, got {dtype}; {_ARRAYS_ALONE}")


def _holds_statistics(node: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(node).__mro__}
    # Equinox's index without a value is only a name, for example of statistics that the loss holds fixed.
    return not kinds.isdisjoint(_STATISTICS) and bool(jax.tree.leaves(node))
