"""Training in plain floats, which `Unrolled` differentiates, and with which exact training is compared."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search import optax_optimizers
from hypergrad_search.losses import step_gradient
from hypergrad_search.optimizers import Optimizer, finest, resolve
from hypergrad_search.parameters import as_returned, initial
from hypergrad_search.problem import Params, Statistics, Trained, TrainingProblem
from hypergrad_search.space import Hyperparameters


class FloatState(NamedTuple):
    """The weights, all that the optimizer keeps beside them, and the statistics, as pytrees of arrays."""

    params: Params
    kept: Any
    statistics: Statistics


class _Rule(NamedTuple):
    """An optimizer at given hyperparameters.

    `kept` is what it keeps before the first step. `settings` has each setting that changes from step to step, of shape
    `(steps, groups)`. `update` takes the parameters, what is kept, the gradient, the loss, the settings of the step,
    and its number, which is 1 for the first; it returns the new parameters and what is kept then.
    """

    kept: Any
    settings: dict[str, jax.Array]
    update: Callable[[Params, Any, Params, jax.Array, dict[str, jax.Array], jax.Array], tuple[Params, Any]]


Scanned = tuple[jax.Array, dict[str, jax.Array]]
Body = Callable[[FloatState, Scanned], tuple[FloatState, None]]


def float_training(
    problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array
) -> tuple[Body, FloatState, Scanned]:
    """Return one step, the state before the first step, and what each step needs: the arguments of `jax.lax.scan`."""
    init_key, step_key = jax.random.split(key)
    params, statistics = initial(problem, hyperparameters, init_key)
    rule = _rule(problem, hyperparameters, params)

    def one_step(state: FloatState, scanned: Scanned) -> tuple[FloatState, None]:
        (params, kept, statistics), (step, now) = state, scanned
        loss, gradient, statistics = step_gradient(problem, params, statistics, hyperparameters, step_key, step)
        return FloatState(*rule.update(params, kept, gradient, loss, now, step + 1), statistics), None

    steps = jnp.arange(problem.steps, dtype=jnp.int32)
    return one_step, FloatState(params, rule.kept, statistics), (steps, rule.settings)


def _rule(problem: TrainingProblem, hyperparameters: Hyperparameters, params: Params) -> _Rule:
    optimizer = problem.optimizer
    if isinstance(optimizer, Optimizer):
        return _rule_of_leaves(optimizer, hyperparameters, params, problem.steps)
    transformation = optax_optimizers.made(optimizer, hyperparameters)

    def update(
        params: Params, kept: Any, gradient: Params, loss: jax.Array, _: Any, __: jax.Array
    ) -> tuple[Params, Any]:
        return optax_optimizers.step(transformation, gradient, kept, params, loss)

    return _Rule(optax_optimizers.start(transformation, params), {}, update)


def _rule_of_leaves(optimizer: Optimizer, hyperparameters: Hyperparameters, params: Params, steps: int) -> _Rule:
    settings, groups = resolve(optimizer, hyperparameters, params, steps)
    leaves, treedef = jax.tree.flatten(params)

    def update(
        params: Params, kept: Any, gradient: Params, _: jax.Array, now: dict[str, jax.Array], count: jax.Array
    ) -> tuple[Params, Any]:
        results = [
            _step(optimizer, w, slots, g, {name: value[group] for name, value in now.items()}, count)
            for w, slots, g, group in zip(jax.tree.leaves(params), kept, jax.tree.leaves(gradient), groups, strict=True)
        ]
        weights, slots = zip(*results, strict=True)
        return jax.tree.unflatten(treedef, weights), list(slots)

    return _Rule([_first_slots(optimizer, w) for w in leaves], settings, update)


def _first_slots(optimizer: Optimizer, weights: jax.Array) -> dict[str, jax.Array]:
    """Return the slots of a leaf before the first step; an average is float32 at least, or it would never move."""
    slots = dict.fromkeys(optimizer.slots, jnp.zeros_like(weights))
    return slots if optimizer.average is None else {**slots, optimizer.average: weights.astype(finest(weights.dtype))}


def _step(
    optimizer: Optimizer,
    weights: jax.Array,
    slots: dict[str, jax.Array],
    gradient: jax.Array,
    settings: dict[str, jax.Array],
    count: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Take a step of one leaf in the type of the settings, and round the results to the types that they had."""
    dtype = finest(weights.dtype, *(x.dtype for x in settings.values()))
    wide, wide_slots, wide_gradient = jax.tree.map(lambda x: x.astype(dtype), (weights, slots, gradient))
    stepped = optimizer.float_step(wide, wide_slots, wide_gradient, settings, count)
    rounded: tuple[jax.Array, dict[str, jax.Array]] = jax.tree.map(
        lambda x, before: x.astype(before.dtype), stepped, (weights, slots)
    )
    return rounded


def judged_model(problem: TrainingProblem, state: FloatState) -> Trained:
    """Return what outer losses see: the parameters, or the optimizer's average of them, and statistics if there are."""
    average = problem.optimizer.average if isinstance(problem.optimizer, Optimizer) else None
    if average is None:
        return as_returned(problem, state.params, state.statistics)
    leaves, treedef = jax.tree.flatten(state.params)
    averages = [slots[average].astype(w.dtype) for w, slots in zip(leaves, state.kept, strict=True)]
    return as_returned(problem, jax.tree.unflatten(treedef, averages), state.statistics)


def train_in_floats(
    problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, checkpoints: int | None = None
) -> Trained:
    """Train in floats, and return the final parameters, or their average where the optimizer keeps one (`ema`).

    Where the problem has statistics, they come as a pair with these.

    Weights and slots are of each leaf's own type. A step is computed in float32 at least, and then rounded to it.

    JAX can differentiate it. Checkpoints are kept every sqrt(steps), so the memory of a gradient is of the order of
    sqrt(steps) copies of the weights and slots, and its time includes one more training run. With a number of
    `checkpoints`, no more states than these are kept, by equinox's binomial checkpointing.

    Example:
        >>> from hypergrad_search.training import train_in_floats
        >>> train_in_floats(problem, point, key).shape
        (3,)
    """
    problem = problem.at(hyperparameters)
    return judged_model(problem, last_state(problem, hyperparameters, key, checkpoints))


def last_state(
    problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, checkpoints: int | None = None
) -> FloatState:
    """Return the state at which `train_in_floats` ends; the number of steps is known."""
    one_step, state, scanned = float_training(problem, hyperparameters, key)
    if checkpoints is not None:
        return binomial_scan(one_step, state, scanned, checkpoints)[0]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def segment(state: FloatState, scanned: Scanned) -> tuple[FloatState, None]:
        return jax.lax.scan(one_step, state, scanned)

    length = math.isqrt(problem.steps)
    whole = problem.steps // length * length
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), scanned)
    state, _ = jax.lax.scan(segment, state, segments)
    if whole < problem.steps:
        state, _ = segment(state, jax.tree.map(lambda x: x[whole:], scanned))
    return state


def binomial_scan(body: Body, state: FloatState, scanned: Scanned, checkpoints: int) -> tuple[FloatState, None]:
    """Scan as `jax.lax.scan` does, with at most so many states in memory for a gradient (Griewank and Walther 2000).

    Raises `ImportError` where equinox is not installed.
    """
    try:
        from equinox import internal
    except ImportError as error:
        raise ImportError(
            "Unrolled: checkpoints needs equinox; pip install equinox, or leave checkpoints out"
        ) from error
    result: tuple[FloatState, None] = internal.scan(body, state, scanned, kind="checkpointed", checkpoints=checkpoints)
    return result
