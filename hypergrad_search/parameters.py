"""The model before training, as `init` returns it, and the checks that it must pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import shown
from hypergrad_search.problem import Params, Statistics, Trained, TrainingProblem
from hypergrad_search.space import Hyperparameters

_ARRAYS_ALONE = (
    "return the trained arrays alone: eqx.partition(model, eqx.is_inexact_array)[0] of an Equinox module, "
    'nnx.state(model, nnx.Param) of a Flax NNX module, variables["params"] of a Flax Linen one'
)

_NUMBERS = jax.Array | np.ndarray | np.generic | float | int

# The types in which Flax NNX and Equinox keep running statistics. They are known by name, since the engine imports
# neither package.
_STATISTICS = {("flax", "BatchStat"), ("equinox", "State"), ("equinox", "StateIndex")}


def initial(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> tuple[Params, Statistics]:
    """Return the parameters and statistics that `problem.init` returns, as JAX arrays.

    The statistics are None where the problem has none. Raises `ValueError` unless there is at least one parameter, all
    of them are floating-point, and none holds running statistics.
    """
    params, statistics = problem.init(key, hyperparameters), None
    if problem.has_statistics:
        if not isinstance(params, tuple) or len(params) != 2:
            raise ValueError(
                "init must return a pair (params, statistics), since train_loss takes statistics, "
                f"got {shown(jax.tree.structure(params))}"
            )
        params, statistics = params
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_holds_statistics)
    if not leaves:
        raise ValueError("init must return a pytree with at least one array, got none")
    for path, leaf in leaves:
        _check_leaf(path, leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(statistics):
        if not isinstance(leaf, _NUMBERS):
            raise ValueError(f"init: statistics{jax.tree_util.keystr(path)} must be an array, got {shown(leaf)}")
    return jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, statistics)


def as_returned(problem: TrainingProblem, params: Params, statistics: Statistics) -> Trained:
    """Return a model as `problem.init` returns it: the parameters, or the pair."""
    return (params, statistics) if problem.has_statistics else params


def split_statistics(statistics: Statistics) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Statistics]]:
    """Return the floating-point statistics, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(statistics)
    are_floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def put(floats: list[jax.Array]) -> Statistics:
        rest = iter(floats)
        return jax.tree.unflatten(structure, [next(rest) if f else x for x, f in zip(leaves, are_floats, strict=True)])

    return [x for x, is_float in zip(leaves, are_floats, strict=True) if is_float], put


def _check_leaf(path: tuple[Any, ...], leaf: Any) -> None:
    name = f"params{jax.tree_util.keystr(path)}"
    if _holds_statistics(leaf) or any(jax.tree_util.keystr((part,), simple=True) == "batch_stats" for part in path):
        raise ValueError(
            f"init: {name} holds running statistics, which training carries along but does not descend: return "
            "(params, statistics), and give train_loss and valid_loss a second argument, as TrainingProblem describes"
        )
    if not isinstance(leaf, _NUMBERS):
        raise ValueError(f"init: {name} must be an array, got {leaf!r}; {_ARRAYS_ALONE}")
    dtype = jnp.asarray(leaf).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"init: {name} must be floating-point, got {dtype}; {_ARRAYS_ALONE}")


def _holds_statistics(node: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(node).__mro__}
    # Equinox's index without a value is only a name, for example of statistics that the loss holds fixed.
    return not kinds.isdisjoint(_STATISTICS) and bool(jax.tree.leaves(node))
