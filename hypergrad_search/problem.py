"""What a user states: a training run, as plain functions of pytrees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.space import Hyperparameters, Space, check_space
from hypergrad_search.training.optimizers import Optimizer

Params = Any  # a pytree of float arrays


@dataclass(frozen=True, eq=False)
class TrainingProblem:
    """A training run from hyperparameters to a validation loss.

    - `init(key, hyperparameters) -> params`: a pytree of float32 arrays; initial scales may be hyperparameters.
    - `train_loss(params, hyperparameters, batch, key) -> scalar`: what training descends; `key` is new each step.
    - `valid_loss(params) -> scalar`: what the search minimises.
    - `valid_batch_loss(params, step) -> scalar`, optional: the validation loss on a minibatch, as deterministic as
      `batches`; what methods descend that take one validation step for each training step (`Hypernet`), in place of
      the whole `valid_loss`. The value is always that of `valid_loss`. Where there is a `fitted_loss`, take the
      minibatches from its part.
    - `batches(step) -> batch`: deterministic, and traceable by JAX: `step` is an int32 scalar array, so slice
      with `jax.lax.dynamic_slice_in_dim` or index with an array.
    - `optimizer`: `sgd(...)`, `adam(...)` or `adamw(...)`, whose settings may name hyperparameters.
    - `steps`: the length of the training run.
    - `fitted_loss(params) -> scalar` and `held_back_loss(params) -> scalar`, optional, both or neither: the losses on
      two parts of the validation set. The hypergradient is of the first in place of `valid_loss`, and a step along it
      is kept only if it lowers the second too, which no gradient has seen: for searches that could fit the validation
      set, with as many hyperparameters as it has examples.
    - `test_loss(params) -> scalar`, optional: reported beside the validation loss, never seen by a search.

    `hyperparameters` is a dict from names to float arrays (numbers too) and, where the space has them, the plain
    values of integers and categoricals. A problem is compared by identity: build it once and evaluate it often,
    so that its functions compile once.

    Raises `ValueError` where a part is missing or of the wrong kind.
    """

    init: Callable[[jax.Array, Any], Params]
    train_loss: Callable[[Params, Any, Any, jax.Array], jax.Array]
    valid_loss: Callable[[Params], jax.Array]
    batches: Callable[[jax.Array], Any]
    optimizer: Optimizer
    steps: int
    fitted_loss: Callable[[Params], jax.Array] | None = None
    held_back_loss: Callable[[Params], jax.Array] | None = None
    test_loss: Callable[[Params], jax.Array] | None = None
    valid_batch_loss: Callable[[Params, jax.Array], jax.Array] | None = None

    def __post_init__(self) -> None:
        for name in ("init", "train_loss", "valid_loss", "batches"):
            if not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function, got {getattr(self, name)!r}")
        for name in ("fitted_loss", "held_back_loss", "test_loss", "valid_batch_loss"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function or None, got {getattr(self, name)!r}")
        if (self.fitted_loss is None) != (self.held_back_loss is None):
            missing = "fitted_loss" if self.fitted_loss is None else "held_back_loss"
            raise ValueError(
                f"TrainingProblem: {missing} is missing; fitted_loss and held_back_loss are the losses on two parts of "
                "the validation set, so give both or neither"
            )
        if not isinstance(self.optimizer, Optimizer):
            raise ValueError(
                "TrainingProblem: optimizer must come from sgd, adam or adamw of hypergrad_search, "
                f"got {self.optimizer!r}"
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"TrainingProblem: steps must be a whole number above 0, got {self.steps!r}")


def check_problem(problem: TrainingProblem, space: Space) -> None:
    """Raise `ValueError` unless `space` is one, and holds every hyperparameter that the optimizer names."""
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"problem must be a TrainingProblem, got {problem!r}")
    check_space(space)
    problem.optimizer.check_names(space)


def step_loss(
    problem: TrainingProblem,
    params: Params,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """The training loss at one step, with that step's batch and key."""
    value = problem.train_loss(params, hyperparameters, problem.batches(step), jax.random.fold_in(key, step))
    return check_scalar("train_loss", value)


def initial_params(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> Params:
    """`problem.init`, checked: at least one array, all of them floating-point, and no running statistics."""
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


_ARRAYS_ALONE = (
    "return the trained arrays alone: eqx.partition(model, eqx.is_inexact_array)[0] of an Equinox module, "
    'nnx.state(model, nnx.Param) of a Flax NNX module, variables["params"] of a Flax Linen one'
)

# By name, since the engine imports neither: Flax NNX's running statistics, and what Equinox keeps its own in.
_STATISTICS = {("flax", "BatchStat"), ("equinox", "State"), ("equinox", "StateIndex")}


def _holds_statistics(node: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(node).__mro__}
    # Equinox's index without a value is a mere name: of statistics that the loss holds fixed, perhaps
    return not kinds.isdisjoint(_STATISTICS) and bool(jax.tree.leaves(node))


def losses(problem: TrainingProblem, params: Params) -> dict[str, jax.Array]:
    """The validation loss, with the gradient of the fitted one, the held-back and the test loss, of what there is."""
    result = {"valid_loss": check_scalar("valid_loss", problem.valid_loss(params))}
    if problem.fitted_loss is not None:
        fitted = check_scalar("fitted_loss", problem.fitted_loss(params))
        result["valid_loss"] = _with_gradient_of(fitted, result["valid_loss"])
    for name in ("held_back_loss", "test_loss"):
        if getattr(problem, name) is not None:
            result[name] = check_scalar(name, getattr(problem, name)(params))
    return result


@jax.custom_jvp
def _with_gradient_of(other: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, to the bit, with the derivative of `other`."""
    return value


@_with_gradient_of.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0].astype(primals[1].dtype)


def check_scalar(name: str, value: Any) -> jax.Array:
    """`value`, or a `ValueError` where it is not one floating-point number."""
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"{name} must return a floating-point scalar alone, got {jax.tree.structure(value)}; if the rest are "
            "running statistics, which are overwritten at each step: the reverse pass cannot undo that, so use layer "
            "or group normalisation, or the statistics of the current batch alone"
        )
    value = jnp.asarray(value)
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} must return a floating-point scalar, got shape {value.shape} and dtype {value.dtype}; "
            "take its mean or sum"
        )
    return value


def split(hyperparameters: Hyperparameters) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Hyperparameters as (floating-point arrays, which can be traced and differentiated; the rest, hashable)."""
    if not isinstance(hyperparameters, Mapping):
        raise ValueError(f"hyperparameters must be a dict from names to values, got {hyperparameters!r}")
    dynamic, static = {}, []
    for name, value in hyperparameters.items():
        leaves = jax.tree.leaves(value)
        if leaves and all(_is_floating(leaf) for leaf in leaves):
            # with its type spelled out: a Python number and an array of the same value share a compiled program
            dynamic[name] = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), value)
        elif isinstance(value, jax.Array) or getattr(value, "__hash__", None) is None:
            raise ValueError(
                f"hyperparameter {name!r} must be floating-point or a plain value (int, str, bool), got {value!r}; "
                "integer arrays belong in batches"
            )
        else:
            static.append((name, value))
    return dynamic, tuple(static)


def _is_floating(leaf: Any) -> bool:
    return not isinstance(leaf, str | bool | int) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
