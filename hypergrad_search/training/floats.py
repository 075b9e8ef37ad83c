"""Training in plain floats, which `Unrolled` differentiates, and with which exact training is compared."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.losses import step_loss
from hypergrad_search.optimizers import Optimizer, finest, resolve
from hypergrad_search.parameters import initial_params
from hypergrad_search.problem import Params, TrainingProblem
from hypergrad_search.space import Hyperparameters


class FloatState(NamedTuple):
    """The leaves of the weights, and for each of them its slots by name."""

    weights: list[jax.Array]
    slots: list[dict[str, jax.Array]]


Scanned = tuple[jax.Array, dict[str, jax.Array]]
Body = Callable[[FloatState, Scanned], tuple[FloatState, None]]


def float_training(
    problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array
) -> tuple[Body, FloatState, Scanned]:
    """Return one step, the state before the first step, and what each step needs: the arguments of `jax.lax.scan`."""
    optimizer = problem.optimizer
    init_key, step_key = jax.random.split(key)
    params = initial_params(problem, hyperparameters, init_key)
    settings, groups = resolve(optimizer, hyperparameters, params, problem.steps)
    leaves, treedef = jax.tree.flatten(params)

    def one_step(state: FloatState, scanned: Scanned) -> tuple[FloatState, None]:
        step, now = scanned

        def loss(weights: list[jax.Array]) -> jax.Array:
            return step_loss(problem, jax.tree.unflatten(treedef, weights), hyperparameters, step_key, step)

        results = [
            _step(optimizer, w, s, g, {name: value[group] for name, value in now.items()}, step + 1)
            for w, s, g, group in zip(*state, jax.grad(loss)(state.weights), groups, strict=True)
        ]
        weights, slots = zip(*results, strict=True)
        return FloatState(list(weights), list(slots)), None

    state = FloatState(leaves, [dict.fromkeys(optimizer.slots, jnp.zeros_like(w)) for w in leaves])
    return one_step, state, (jnp.arange(problem.steps, dtype=jnp.int32), settings)


def _step(
    optimizer: Optimizer,
    weights: jax.Array,
    slots: dict[str, jax.Array],
    gradient: jax.Array,
    settings: dict[str, jax.Array],
    count: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Take a step of one leaf in the type of the settings, and round the results to the leaf's own type."""
    dtype = finest(weights.dtype, *(x.dtype for x in settings.values()))
    wide, wide_slots, wide_gradient = jax.tree.map(lambda x: x.astype(dtype), (weights, slots, gradient))
    stepped = optimizer.float_step(wide, wide_slots, wide_gradient, settings, count)
    rounded: tuple[jax.Array, dict[str, jax.Array]] = jax.tree.map(lambda x: x.astype(weights.dtype), stepped)
    return rounded


def train_in_floats(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> Params:
    """Train in floats, and return the final parameters.

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
    structure = jax.tree.structure(jax.eval_shape(lambda: initial_params(problem, hyperparameters, key)))
    return jax.tree.unflatten(structure, state.weights)
