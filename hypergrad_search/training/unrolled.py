"""The same training in plain floats: what `Unrolled` differentiates, and what exact training is held against."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.problem import Params, TrainingProblem, initial_params, step_gradient
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training.optimizers import float_step, resolve


class FloatState(NamedTuple):
    """The weights' leaves, and one dict of slots for each."""

    weights: list[jax.Array]
    slots: list[dict[str, jax.Array]]


def train_unrolled(problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array) -> Params:
    """Train in floats of the parameters' own type; differentiable by JAX, with checkpoints every sqrt(steps).

    Memory is of the order of sqrt(steps) copies of the weights and slots; time, one more training run.
    """
    init_key, step_key = jax.random.split(key)
    params = initial_params(problem, hyperparameters, init_key)
    settings = resolve(problem.optimizer, hyperparameters, params, problem.steps)
    treedef = jax.tree.structure(params)

    def one_step(state: FloatState, scanned: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[FloatState, None]:
        step, now = scanned
        gradient = step_gradient(problem, jax.tree.unflatten(treedef, state.weights), hyperparameters, step_key, step)
        results = [
            float_step(problem.optimizer, w, s, g, {name: value[i] for name, value in now.items()})
            for i, (w, s, g) in enumerate(zip(*state, jax.tree.leaves(gradient), strict=True))
        ]
        weights, slots = zip(*results, strict=True)
        return FloatState(list(weights), list(slots)), None

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def segment(state: FloatState, scanned: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[FloatState, None]:
        return jax.lax.scan(one_step, state, scanned)

    leaves = jax.tree.leaves(params)
    state = FloatState(leaves, [dict.fromkeys(problem.optimizer.decays, jnp.zeros_like(w)) for w in leaves])
    length = math.isqrt(problem.steps)
    whole = problem.steps // length * length
    scanned = (jnp.arange(problem.steps), settings)
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), scanned)
    state, _ = jax.lax.scan(segment, state, segments)
    state, _ = segment(state, jax.tree.map(lambda x: x[whole:], scanned))
    return jax.tree.unflatten(treedef, state.weights)
