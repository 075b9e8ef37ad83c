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
from hypergrad_search.parameters import initial_params
from hypergrad_search.problem import Params, TrainingProblem
from hypergrad_search.space import Hyperparameters


class FloatState(NamedTuple):
    """The weights, and all that the optimizer keeps beside them, as pytrees of arrays."""

    params: Params
    kept: Any


class _Rule(NamedTuple):
    """An optimizer at given hyperparameters.

    `kept` is what it keeps before the first step. `settings` has each setting that changes from step to step, of shape
    `(steps, groups)`. `update` is called with the state, the gradient, the loss, the settings of the step, and its
    number, which is 1 for the first.
    """

    kept: Any
    settings: dict[str, jax.Array]
    update: Callable[[FloatState, Params, jax.Array, dict[str, jax.Array], jax.Array], FloatState]


Scanned = tuple[jax.Array, dict[str, jax.Array]]
Body = Callable[[FloatState, Scanned], tuple[FloatState, None]]


def float_training(
    problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array
) -> tuple[Body, FloatState, Scanned]:
    """Return one step, the state before the first step, and what each step needs: the arguments of `jax.lax.scan`."""
    init_key, step_key = jax.random.split(key)
    params = initial_params(problem, hyperparameters, init_key)
    rule = _rule(problem, hyperparameters, params)

    def one_step(state: FloatState, scanned: Scanned) -> tuple[FloatState, None]:
        step, now = scanned
        loss, gradient = step_gradient(problem, state.params, hyperparameters, step_key, step)
        return rule.update(state, gradient, loss, now, step + 1), None

    steps = jnp.arange(problem.steps, dtype=jnp.int32)
    return one_step, FloatState(params, rule.kept), (steps, rule.settings)


def _rule(problem: TrainingProblem, hyperparameters: Hyperparameters, params: Params) -> _Rule:
    optimizer = problem.optimizer
    if isinstance(optimizer, Optimizer):
        return _rule_of_leaves(optimizer, hyperparameters, params, problem.steps)
    transformation = optax_optimizers.made(optimizer, hyperparameters)

    def update(state: FloatState, gradient: Params, loss: jax.Array, _: Any, __: jax.Array) -> FloatState:
        return FloatState(*optax_optimizers.step(transformation, gradient, state.kept, state.params, loss))

    return _Rule(optax_optimizers.start(transformation, params), {}, update)


def _rule_of_leaves(optimizer: Optimizer, hyperparameters: Hyperparameters, params: Params, steps: int) -> _Rule:
    settings, groups = resolve(optimizer, hyperparameters, params, steps)
    leaves, treedef = jax.tree.flatten(params)

    def update(
        state: FloatState, gradient: Params, _: jax.Array, now: dict[str, jax.Array], count: jax.Array
    ) -> FloatState:
        results = [
            _step(optimizer, w, slots, g, {name: value[group] for name, value in now.items()}, count)
            for w, slots, g, group in zip(
                jax.tree.leaves(state.params), state.kept, jax.tree.leaves(gradient), groups, strict=True
            )
        ]
        weights, slots = zip(*results, strict=True)
        return FloatState(jax.tree.unflatten(treedef, weights), list(slots))

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


def _judged_params(problem: TrainingProblem, state: FloatState) -> Params:
    """Return what outer losses see: the optimizer's average of the parameters, or else the parameters."""
    average = problem.optimizer.average if isinstance(problem.optimizer, Optimizer) else None
    if average is None:
        return state.params
    leaves, treedef = jax.tree.flatten(state.params)
    averages = [slots[average].astype(w.dtype) for w, slots in zip(leaves, state.kept, strict=True)]
    return jax.tree.unflatten(treedef, averages)


def train_in_floats(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> Params:
    """Train in floats, and return the final parameters, or their average where the optimizer keeps one (`ema`).

    Weights and slots are of each leaf's own type. A step is computed in float32 at least, and then rounded to it.

    JAX can differentiate it. Checkpoints are kept every sqrt(steps), so the memory of a gradient is of the order of
    sqrt(steps) copies of the weights and slots, and its time includes one more training run.
    """
    one_step, state, scanned = float_training(problem, hyperparameters, key)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def segment(state: FloatState, scanned: Scanned) -> tuple[FloatState, None]:
        return jax.lax.scan(one_step, state, scanned)

    length = math.isqrt(problem.steps)
    whole = problem.steps // length * length
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), scanned)
    state, _ = jax.lax.scan(segment, state, segments)
    if whole < problem.steps:
        state, _ = segment(state, jax.tree.map(lambda x: x[whole:], scanned))
    return _judged_params(problem, state)
