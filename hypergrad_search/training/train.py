"""Exactly reversible training as one function that JAX can differentiate, compile and batch."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.checks import number, random_key
from hypergrad_search.determinism import check_device
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.nesting import flat
from hypergrad_search.parameters import as_returned
from hypergrad_search.problem import Params, Statistics, Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.repeatable import checked_split
from hypergrad_search.space import Hyperparameters, NestedSpace, Space
from hypergrad_search.training import bit_buffer
from hypergrad_search.training.exact import (
    Adjoint,
    Inputs,
    IrreversibleDecayError,
    Planes,
    Program,
    State,
    bind,
    check_fraction_bits,
    equal,
    initial_adjoint,
    judged_weights,
    log_decays,
    plan_decays,
    plan_schedule,
    prepare,
    run_backward,
    run_forward,
    spill,
    start,
    start_adjoint,
    unspill,
    weights_of,
)
from hypergrad_search.training.resolution import largest_weights, probe, unresolved
from hypergrad_search.trouble import see

_LOG_SMALLEST_DECAY = math.log(bit_buffer.SMALLEST_DECAY) - 1e-6  # a float32 logarithm may be a little too low


@with_errors_of_load
def train(
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    *,
    fraction_bits: Mapping[str, int] | None = None,
    smallest_decays: Mapping[str, float] | None = None,
    space: NestedSpace | None = None,
) -> Trained:
    """Train exactly reversibly, and return the final parameters, or their average (`ema`); JAX can transform this.

    Where the problem has statistics, it returns a pair of parameters and statistics, as `init` does. `jax.grad` of it
    runs training backwards, without a stored trajectory; it composes with `jax.jit` and `jax.vmap`. Parameters are NaN
    where training met NaN, left the fixed-point range, or fell below its resolution. Gradients are NaN where the
    reversal was not exact. Use `evaluate` for a status that says what went wrong.

    Args:
        problem: the training run.
        hyperparameters: a dict from names to values, in natural units.
        key: the source of the initial parameters and of each step's randomness.
        fraction_bits: the same as that of `Reversible`.
        smallest_decays: by the name of what decays ("velocity"; "mu", "nu"; "nu", "trace"; "ema"; "weights"), the
            smallest decay for which buffers have room, if all steps have it. It matters only where decays are traced:
            buffers get their size when the program is compiled, and the values of traced decays are not known then. The
            defaults are 0.5, 0.9 for "nu" (0.5 with RMSProp) and "ema", and 0.99 for "weights". The gradient of a run
            that needs more room is NaN.
        space: what each hyperparameter is, as for `evaluate`.

    Raises:
        ValueError: the optimizer cannot be reversed, the parameters are not float32, a decay that is known when the
            program is compiled is not from 1/256 to 1, or another argument does not fit.
        RuntimeError: the device is a GPU, and XLA_FLAGS do not have `--xla_gpu_deterministic_ops=true`.

    Example:
        >>> from hypergrad_search import train
        >>> weights = train(problem, point, key)
        >>> round(float(problem.valid_loss(weights, point).mean()), 2)
        0.74
    """
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"train: problem must be a TrainingProblem, got {problem!r}")
    random_key("train: key", key)
    check_device(key)
    box: Space | None = flat(space)
    if box is not space:
        hyperparameters = flat(hyperparameters, box)
    problem, dynamic, static = checked_split(problem, hyperparameters, box)
    program = bind(problem, static, dynamic, check_fraction_bits(fraction_bits or {}))
    init_key, step_key = jax.random.split(key)
    params, statistics, settings, _ = prepare(problem, static, dynamic, init_key)
    room = room_of(program, settings, smallest_decays_of(program, smallest_decays or {}))
    weights = program.layout.pack(params)
    weights, statistics = _compiled_train(program, room, weights, statistics, settings, dynamic, step_key)
    return as_returned(problem, program.layout.unpack(weights), statistics)


@dataclass(frozen=True)
class Room:
    """The number of planes that buffers hold, by name, and the number of steps between two chances to fill one."""

    planes: tuple[tuple[str, int], ...]
    stretch: int


def smallest_decays_of(program: Program, chosen: Mapping[str, float]) -> dict[str, float]:
    """Return the optimizer's smallest decays, except for those that the user chose."""
    defaults = program.optimizer.smallest_decays
    if not isinstance(chosen, Mapping):
        raise ValueError(f"train: smallest_decays must be a dict from names to numbers, got {chosen!r}")
    for name, decay in chosen.items():
        if name not in defaults:
            raise ValueError(f"train: smallest_decays: {name!r} is not among {sorted(defaults)}")
        number(f"train: smallest_decays: {name}", decay, bit_buffer.SMALLEST_DECAY, 1)
    return {**defaults, **chosen}


def _check_decays(logs: dict[str, jax.Array]) -> None:
    """Raise `IrreversibleDecayError` where a decay that is known is NaN or out of its range."""
    for name, log in logs.items():
        if not isinstance(log, jax.core.Tracer) and not ((log >= _LOG_SMALLEST_DECAY) & (log <= 0)).all():
            raise IrreversibleDecayError(
                f"train: the decay of {name} must be from {bit_buffer.SMALLEST_DECAY} to 1 at each step, got "
                f"{float(jnp.exp(jnp.min(log)))} to {float(jnp.exp(jnp.max(log)))}; "
                f"differentiate with evaluate(..., method=Unrolled()) instead{see('irreversible')}"
            )


def room_of(program: Program, settings: dict[str, jax.Array], smallest_decays: dict[str, float]) -> Room:
    """Return the room that buffers need, if no decay that is traced is below its smallest one."""
    steps = program.problem.steps
    with jax.ensure_compile_time_eval():
        known = log_decays(program.optimizer, settings)
        _check_decays(known)
        logs = {
            name: jnp.full((steps, 1), math.log(smallest_decays[name])) if isinstance(log, jax.core.Tracer) else log
            for name, log in known.items()
        }
        stretch = min(int(min(bit_buffer.stretch(log) for log in logs.values())), steps)
        _, planes = plan_decays(logs, stretch)
    return Room(tuple((name, int(n)) for name, n in planes.items()), stretch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _train(
    program: Program,
    room: Room,
    weights: list[jax.Array],
    statistics: Statistics,
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> tuple[list[jax.Array], Statistics]:
    return train_forward(program, room, weights, statistics, settings, dynamic, key)[0]


class Residuals(NamedTuple):
    """All that the way back needs.

    `failed` tells whether training left its range or fell below its resolution, and `fits` whether the planes had room.
    `weights` are the initial ones.
    """

    state: State
    planes: Planes
    inputs: Inputs
    failed: jax.Array
    fits: jax.Array
    weights: list[jax.Array]


@compiled(static=2)
def train_forward(
    program: Program,
    room: Room,
    weights: list[jax.Array],
    statistics: Statistics,
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> tuple[tuple[list[jax.Array], Statistics], Residuals]:
    """Return the trained weights and statistics, and what the way back needs."""
    schedule, filled = plan_schedule(program.optimizer, settings, room.stretch)
    inputs = Inputs(dynamic, key, schedule, statistics)
    # The last plane is written to where no plane is due, since a branch would copy all planes.
    planes = {name: [jnp.zeros((n + 1, *x.shape), jnp.uint8) for x in weights] for name, n in room.planes}

    def stretch(i: jax.Array, carry: tuple[State, Planes, Params]) -> tuple[State, Planes, Params]:
        state, planes, largest = carry
        now = jax.tree.map(lambda x: x[i * room.stretch], schedule.plans)
        for name, n in room.planes:
            state, new = spill(program, state, name, now[name].spill)
            at = jnp.where(now[name].spill, jnp.minimum(now[name].filled, n), n)
            written = zip(planes[name], new, program.layout.groups, strict=True)
            planes = {**planes, name: [x.at[at[group]].set(plane) for x, plane, group in written]}
        stop = jnp.minimum((i + 1) * room.stretch, program.problem.steps)
        largest = jax.tree.map(jnp.maximum, largest, largest_weights(program, weights_of(program, inputs, state)))
        return run_forward(program, inputs, state, stop, early=False), planes, largest

    stretches = -(-program.problem.steps // room.stretch)
    carry = start(program, weights, statistics), planes, largest_weights(program, weights)
    state, planes, largest = jax.lax.fori_loop(0, stretches, stretch, carry)
    failed = state.outside | _is_lost(program, inputs, weights, state, largest)
    trained = [jnp.where(failed, jnp.nan, w) for w in judged_weights(program, inputs, state)]
    fits = jnp.all(jnp.stack([filled[name] <= n for name, n in room.planes]))
    return (trained, state.statistics), Residuals(state, planes, inputs, failed, fits, weights)


def _is_lost(program: Program, inputs: Inputs, initial: list[jax.Array], state: State, largest: Params) -> jax.Array:
    """Return whether a number is too coarse at the end."""

    def examine(state: State) -> jax.Array:
        return jnp.any(jnp.stack(jax.tree.leaves(unresolved(program, inputs, initial, state, largest).found)))

    largest, doubtful = probe(program, inputs, state, largest)
    found: jax.Array = jax.lax.cond(doubtful, examine, lambda state: jnp.bool_(False), state)
    return found


@compiled(static=2)
def _train_backward(
    program: Program, room: Room, residuals: Residuals, adjoint: tuple[list[jax.Array], Statistics]
) -> tuple[Any, ...]:
    inputs = residuals.inputs
    of_weights, of_statistics = adjoint
    leaves, structure = jax.tree.flatten(inputs.statistics)
    are_floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    floats = [x for x, is_float in zip(jax.tree.leaves(of_statistics), are_floats, strict=True) if is_float]
    final = start_adjoint(program, inputs, of_weights, floats, jax.tree.map(jnp.zeros_like, inputs.dynamic))
    is_exact, result = run_back(program, room, residuals, final)
    trusted = is_exact & residuals.fits & ~residuals.failed
    gradients = initial_adjoint(program, result), result.statistics, result.settings, result.hyperparameters
    of_weights, floats, *rest = jax.tree.map(lambda x: jnp.where(trusted, x, jnp.nan), gradients)
    remaining = iter(floats)
    of_statistics = jax.tree.unflatten(structure, [next(remaining) if is_float else None for is_float in are_floats])
    return of_weights, of_statistics, *rest, None


def run_back(program: Program, room: Room, residuals: Residuals, final: Adjoint) -> tuple[jax.Array, Adjoint]:
    """Return whether the way back ended at the state that training began with, and the adjoint there.

    `final` is the adjoint at the end of training.
    """
    state, planes, inputs, *_, weights = residuals
    stretches = -(-program.problem.steps // room.stretch)

    def stretch(i: jax.Array, carry: tuple[State, Adjoint]) -> tuple[State, Adjoint]:
        first = (stretches - 1 - i) * room.stretch
        state, adjoint = run_backward(program, inputs, *carry, first)
        now = jax.tree.map(lambda x: x[first], inputs.schedule.plans)
        for name, n in room.planes:
            at = jnp.minimum(now[name].filled, n)
            tops = [x[at[group]] for x, group in zip(planes[name], program.layout.groups, strict=True)]
            state = unspill(program, state, name, now[name].spill, tops)
        return state, adjoint

    state, adjoint = jax.lax.fori_loop(0, stretches, stretch, (state, final))
    return equal(state.numbers, start(program, weights, inputs.statistics).numbers), adjoint


_train.defvjp(train_forward, _train_backward)
_compiled_train = compiled(static=2)(_train)
