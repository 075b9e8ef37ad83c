"""The losses of a problem, with checks: the loss of one training step, and the losses of trained parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import fold, optax_optimizers
from hypergrad_search.checks import shown
from hypergrad_search.fold import Fold
from hypergrad_search.optimizers import Optimizer
from hypergrad_search.problem import Params, Statistics, Trained, TrainingProblem
from hypergrad_search.space import Hyperparameters

_SCALAR = "a floating-point scalar"
_LOSSES = f"{_SCALAR} or one loss for each example, shape (n,)"
_STATISTICS = (
    "if the rest are running statistics, let train_loss take (params, statistics, hyperparameters, batch, key), as "
    "TrainingProblem describes"
)


class OuterLosses(NamedTuple):
    """The losses of trained parameters.

    `valid` and `test` are as the problem returns them: a scalar, or one loss for each example, shape `(n,)`. `value`
    and `test_value` are their means. `test` and `test_value` are None where the problem has no test loss.
    """

    value: jax.Array
    valid: jax.Array
    test_value: jax.Array | None
    test: jax.Array | None


class LeftOut(NamedTuple):
    """A fold as numbers that JAX can trace, so that all folds share one compiled program.

    `part` is the index of the fold, or -1 where nothing is left out; `of` is the number of parts.
    """

    part: jax.Array
    of: jax.Array


def left_out(held_back: Fold | None) -> LeftOut:
    """Return a fold in the form that programs take; with None they leave nothing out.

    Example:
        >>> from hypergrad_search import Fold
        >>> from hypergrad_search.hypergradient import fitted_loss, left_out
        >>> whole, without = (fitted_loss(problem, jnp.ones(3), point, left_out(f)) for f in (None, Fold(0, of=4)))
        >>> bool(whole != without)
        True
    """
    part, of = (-1, 1) if held_back is None else (held_back.index, held_back.of)
    return LeftOut(jnp.int32(part), jnp.int32(of))


def step_loss(
    problem: TrainingProblem,
    params: Params,
    statistics: Statistics,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, Statistics]:
    """Return the training loss at one step, with that step's batch and key, and the new statistics.

    Example:
        >>> from hypergrad_search.hypergradient import step_loss
        >>> loss, statistics = step_loss(problem, jnp.zeros(3), None, point, key, jnp.int32(0))
        >>> loss.shape, statistics
        ((), None)
    """
    of_step = problem.batch(step, hyperparameters), jax.random.fold_in(key, step)
    if not problem.has_statistics:
        return _scalar(problem.train_loss(params, hyperparameters, *of_step)), None
    # A copy, since some libraries forbid that a state is used twice.
    result = problem.train_loss(params, jax.tree.map(lambda x: x, statistics), hyperparameters, *of_step)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            "train_loss must return a pair (scalar, statistics), since it takes statistics, "
            f"got {shown(jax.tree.structure(result))}"
        )
    loss, new = result
    return _scalar(loss), _like(new, statistics)


def step_gradient(
    problem: TrainingProblem,
    params: Params,
    statistics: Statistics,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, Params, Statistics]:
    """Return the training loss at one step, its gradient as the optimizer gets it, and the new statistics."""
    (loss, new), gradient = jax.value_and_grad(
        lambda params: step_loss(problem, params, statistics, hyperparameters, key, step), has_aux=True
    )(params)
    return loss, transformed(problem, gradient, params, hyperparameters, key, step), new


def transformed(
    problem: TrainingProblem,
    gradient: Params,
    params: Params,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    step: jax.Array,
) -> Params:
    """Return the gradient of one step as the optimizer gets it: after its transformation, where it has one."""
    transform = problem.optimizer.transform if isinstance(problem.optimizer, Optimizer) else None
    if transform is None:
        return gradient
    of_step = jax.random.fold_in(key, step)
    return optax_optimizers.transformed(transform, hyperparameters, gradient, params, of_step)


def outer_losses(problem: TrainingProblem, trained: Trained, hyperparameters: Hyperparameters) -> OuterLosses:
    """Return the validation and test losses of a trained model, which is like what `init` returns. JAX can trace it.

    Example:
        >>> from hypergrad_search.hypergradient import outer_losses
        >>> outer_losses(problem, jnp.zeros(3), point).valid.shape
        (20,)
    """
    valid = _outer(problem, "valid_loss", trained, hyperparameters)
    if problem.test_loss is None:
        return OuterLosses(jnp.mean(valid), valid, None, None)
    test = _outer(problem, "test_loss", trained, hyperparameters)
    return OuterLosses(jnp.mean(valid), valid, jnp.mean(test), test)


def fitted_loss(
    problem: TrainingProblem, trained: Trained, hyperparameters: Hyperparameters, without: LeftOut
) -> jax.Array:
    """Return the scalar whose gradient a search follows: the mean validation loss of the examples not left out.

    Example:
        >>> from hypergrad_search.hypergradient import fitted_loss, left_out
        >>> jax.grad(lambda w: fitted_loss(problem, w, point, left_out(None)))(jnp.zeros(3)).shape
        (3,)
    """
    valid = _outer(problem, "valid_loss", trained, hyperparameters)
    if not valid.shape:
        return valid
    part_of = jnp.asarray(fold.order(valid.size)) % without.of
    # Losses in half precision are summed in float32, as a mean does it.
    weights = (part_of != without.part).astype(valid.dtype if valid.dtype.itemsize > 4 else jnp.float32)
    return (jnp.sum(weights * valid.astype(weights.dtype)) / jnp.sum(weights)).astype(valid.dtype)


def descended_loss(
    problem: TrainingProblem,
    trained: Trained,
    hyperparameters: Hyperparameters,
    step: jax.Array,
    without: LeftOut | None,
) -> jax.Array:
    """Return the scalar that a validation step descends: `valid_batch_loss` where there is one, else `fitted_loss`.

    Where examples are left out it is always `fitted_loss`, since a minibatch does not say which examples it holds.
    Nothing is left out of a `valid_loss` that is a scalar.
    """
    if not descends_minibatches(problem, trained, hyperparameters, without):
        return fitted_loss(problem, trained, hyperparameters, without or left_out(None))
    return jnp.mean(_outer(problem, "valid_batch_loss", trained, hyperparameters, step))


def descends_minibatches(
    problem: TrainingProblem, trained: Trained, hyperparameters: Hyperparameters, without: LeftOut | None
) -> bool:
    """Return whether `descended_loss` is that of minibatches; of `trained` the shapes are enough."""
    if problem.valid_batch_loss is None:
        return False
    return without is None or not examples(problem, trained, hyperparameters)


def mean_and_error(losses: Any) -> tuple[float, float | None]:
    """Return the mean of the examples' losses, and its standard error.

    The error is None for fewer than two losses, and where one of them is not finite.
    """
    array = np.asarray(losses, np.float64)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        mean = float(array.mean())
    if array.size < 2 or not np.isfinite(array).all():
        return mean, None
    return mean, float(array.std(ddof=1) / np.sqrt(array.size))


def examples(problem: TrainingProblem, trained: Trained, hyperparameters: Hyperparameters) -> int:
    """Return the number of examples whose losses `valid_loss` returns, 0 for a scalar; it is traced, not computed."""
    losses = jax.eval_shape(lambda trained: _outer(problem, "valid_loss", trained, hyperparameters), trained)
    return losses.size if losses.shape else 0


def _outer(
    problem: TrainingProblem, name: str, trained: Trained, hyperparameters: Hyperparameters, *step: jax.Array
) -> jax.Array:
    """Return an outer loss of a trained model."""
    if problem.has_statistics:
        params, statistics = trained
        copy = jax.tree.map(lambda x: x, statistics)  # as in `step_loss`
        return _of_examples(name, getattr(problem, name)(params, copy, hyperparameters, *step))
    return _of_examples(name, getattr(problem, name)(trained, hyperparameters, *step))


def _scalar(value: Any) -> jax.Array:
    """Return a training loss; raise `ValueError` where it is no floating-point scalar."""
    loss = _floating("train_loss", value, _SCALAR)
    if loss.shape:
        raise ValueError(
            f"train_loss must return {_SCALAR}, got shape {loss.shape} and dtype {loss.dtype}; take its mean or sum"
        )
    return loss


def _like(new: Statistics, old: Statistics) -> Statistics:
    """Return new statistics as arrays; raise `ValueError` where they differ from the old ones in structure or shape."""
    before: Any = jax.tree.structure(old)
    after: Any = jax.tree.structure(new)
    if before != after:
        raise ValueError(f"train_loss: the statistics were {shown(before)}, and are {shown(after)} after a step")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if jnp.shape(x) != jnp.shape(y) or jnp.result_type(x) != jnp.result_type(y):
            raise ValueError(
                f"train_loss: statistics{jax.tree_util.keystr(path)} had shape {jnp.shape(x)} and dtype "
                f"{jnp.result_type(x)}, and have shape {jnp.shape(y)} and dtype {jnp.result_type(y)} after a step"
            )
    return jax.tree.map(jnp.asarray, new)


def _of_examples(name: str, value: Any) -> jax.Array:
    """Return `value` where it is a floating-point scalar or one number for each example; else raise `ValueError`."""
    losses = _floating(name, value, _LOSSES)
    if losses.ndim > 1 or not losses.size:
        raise ValueError(
            f"{name} must return {_LOSSES}, got shape {losses.shape} and dtype {losses.dtype}; "
            "take the mean over all other axes"
        )
    return losses


def _floating(name: str, value: Any, wanted: str) -> jax.Array:
    if value is None:
        raise ValueError(f"{name} must return {wanted}, got None; does it lack a return?")
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"{name} must return {wanted} alone, got {jax.tree.structure(value)}; return the loss without auxiliary "
            f"outputs, or, {_STATISTICS}"
        )
    try:
        array = jnp.asarray(value)
    except TypeError as error:
        raise ValueError(f"{name} must return {wanted}, got {value!r}") from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must return {wanted}, got shape {array.shape} and dtype {array.dtype}; return a smooth loss, "
            "such as a cross-entropy, and no accuracy"
        )
    return array
