"""Exactly reversible training as one function that JAX can differentiate, compile and batch."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.problem import Params, TrainingProblem, split
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training import bit_buffer
from hypergrad_search.training.layout import Layout
from hypergrad_search.training.reversible import (
    Adjoint,
    Planes,
    Run,
    State,
    equal,
    layout_of,
    log_decays,
    plan_decays,
    plan_schedule,
    prepare,
    resolution,
    run_backward,
    run_forward,
    spill,
    start,
    start_adjoint,
    unspill,
    weights_of,
)


def train(
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    *,
    fraction_bits: Mapping[str, int] | None = None,
    smallest_decays: Mapping[str, float] | None = None,
) -> Params:
    """Train exactly reversibly, and return the final parameters, as a function that JAX can transform.

    `jax.grad` of it runs training backwards in constant memory; it composes with `jax.jit` and `jax.vmap`.
    Parameters are NaN where training left the fixed-point range or met NaN, and gradients where the reversal was not
    exact: for a status that says which, use `evaluate`.

    Args:
        problem: what to train.
        hyperparameters: a dict from names to values, in natural units.
        key: decides the initial parameters and each step's randomness.
        fraction_bits: see `Reversible`.
        smallest_decays: the room for the bits that decays lose is allocated when the program is built. Where decays
            are traced, so that their values are not known then, it suffices for these at every step, by the name of
            what decays ("velocity"; "mu", "nu"; "weights"); 0.5, and 0.9 for "nu", 0.99 for "weights", unless given.
            A run that needs more has NaN for a gradient.
    """
    dynamic, static = split(hyperparameters)
    run = Run(problem, static, resolution(problem.optimizer, fraction_bits))
    init_key, step_key = jax.random.split(key)
    params, settings, _ = prepare(run, dynamic, init_key)
    layout = layout_of(run, dynamic, init_key)
    room = _room(run, settings, {**problem.optimizer.smallest_decays, **(smallest_decays or {})})
    return layout.unpack(_jitted_train(run, layout, room, layout.pack(params), settings, dynamic, step_key))


@dataclass(frozen=True)
class _Room:
    """The planes that there is room for, by name, and the steps from one chance to fill one to the next."""

    planes: tuple[tuple[str, int], ...]
    stretch: int


def _room(run: Run, settings: dict[str, jax.Array], smallest_decays: dict[str, float]) -> _Room:
    steps = run.problem.steps
    with jax.ensure_compile_time_eval():
        logs = {
            name: jnp.full((steps, 1), math.log(smallest_decays[name])) if isinstance(log, jax.core.Tracer) else log
            for name, log in log_decays(run.optimizer, settings).items()
        }
        stretch = min(int(min(bit_buffer.stretch(log) for log in logs.values())), steps)
        _, planes = plan_decays(logs, stretch)
    return _Room(tuple((name, int(n)) for name, n in planes.items()), stretch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _train(
    run: Run,
    layout: Layout,
    room: _Room,
    weights: list[jax.Array],
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> list[jax.Array]:
    return _train_forward(run, layout, room, weights, settings, dynamic, key)[0]


def _train_forward(
    run: Run,
    layout: Layout,
    room: _Room,
    weights: list[jax.Array],
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> tuple[list[jax.Array], tuple]:
    schedule, filled = plan_schedule(run.optimizer, settings, room.stretch)
    # one plane more than can be filled, to write to where none is due: a branch would copy them all
    planes = {name: [jnp.zeros((n + 1, *x.shape), jnp.uint8) for x in weights] for name, n in room.planes}

    def stretch(i: jax.Array, carry: tuple[State, Planes]) -> tuple[State, Planes]:
        state, planes = carry
        now = jax.tree.map(lambda x: x[i * room.stretch], schedule.plans)
        for name, n in room.planes:
            state, new = spill(layout, state, name, now[name].spill)
            at = jnp.where(now[name].spill, jnp.minimum(now[name].filled, n), n)
            written = zip(planes[name], new, layout.groups, strict=True)
            planes = {**planes, name: [x.at[at[group]].set(plane) for x, plane, group in written]}
        stop = jnp.minimum((i + 1) * room.stretch, run.problem.steps)
        return run_forward(run, layout, state, schedule, dynamic, key, stop, early=False), planes

    stretches = -(-run.problem.steps // room.stretch)
    state, planes = jax.lax.fori_loop(0, stretches, stretch, (start(run, weights), planes))
    trained = [jnp.where(state.outside, jnp.nan, w) for w in weights_of(run, layout, state, schedule)]
    fits = jnp.all(jnp.stack([filled[name] <= n for name, n in room.planes]))
    return trained, (state, planes, schedule, fits & ~state.outside, weights, dynamic, key)


def _train_backward(run: Run, layout: Layout, room: _Room, residuals: tuple, adjoint: list[jax.Array]) -> tuple:
    state, planes, schedule, trusted, weights, dynamic, key = residuals
    stretches = -(-run.problem.steps // room.stretch)

    def stretch(i: jax.Array, carry: tuple[State, Adjoint]) -> tuple[State, Adjoint]:
        first = (stretches - 1 - i) * room.stretch
        state, adjoint = run_backward(run, layout, *carry, schedule, dynamic, key, first)
        now = jax.tree.map(lambda x: x[first], schedule.plans)
        for name, n in room.planes:
            at = jnp.minimum(now[name].filled, n)
            tops = [x[at[group]] for x, group in zip(planes[name], layout.groups, strict=True)]
            state = unspill(layout, state, name, now[name].spill, tops)
        return state, adjoint

    final = start_adjoint(run, schedule, dynamic, adjoint)
    state, result = jax.lax.fori_loop(0, stretches, stretch, (state, final))
    trusted &= equal(state.numbers, start(run, weights).numbers)
    gradients = (result.weights, result.settings, result.hyperparameters)
    return (*jax.tree.map(lambda x: jnp.where(trusted, x, jnp.nan), gradients), None)


_train.defvjp(_train_forward, _train_backward)
_jitted_train = jax.jit(_train, static_argnums=(0, 1, 2))
