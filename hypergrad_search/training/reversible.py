"""Training that can be run backwards to the bit, and the gradient that is computed on the way back.

Forwards, each step adds to fixed-point numbers and trades the bits that a decay would lose with a buffer.
Backwards, the same steps are undone in the opposite order, the gradient is computed again from the recovered
weights, and the adjoint of the step is the ordinary one, taken at the recovered values (Maclaurin, Duvenaud and
Adams 2015, algorithm 2). So the memory does not grow with the number of steps, but for the buffer's
log2(1 / decay) bits a weight and step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.problem import Params, TrainingProblem, initial_params, split, step_gradient
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training import bit_buffer, fixed_point
from hypergrad_search.training.bit_buffer import BitBuffer, Plan
from hypergrad_search.training.fixed_point import SLOT_TAIL, WEIGHT_TAIL, Fixed
from hypergrad_search.training.optimizers import Optimizer, float_step, resolve

#: what stopped training, as it stands in `State.failure`
FINE, NOT_A_NUMBER, OUT_OF_RANGE = 0, 1, 2


class Leaf(NamedTuple):
    """One array of weights with its slots, and a bit buffer for each slot."""

    weights: Fixed
    slots: dict[str, Fixed]
    buffers: dict[str, BitBuffer]


class State(NamedTuple):
    """Everything that a step changes; `step` counts those done, `failure` says why training stopped early."""

    leaves: list[Leaf]
    step: jax.Array
    failure: jax.Array


class Schedule(NamedTuple):
    """The settings, each `(steps, leaves)`, and for each slot the plan of its buffers, likewise."""

    settings: dict[str, jax.Array]
    plans: dict[str, Plan]


class Reversal(NamedTuple):
    """What the way back gives: the adjoints, the recovered leaves, and whether these have the bits of the start."""

    params: list[jax.Array]
    settings: dict[str, jax.Array]
    hyperparameters: dict[str, Any]
    leaves: list[Leaf]
    exact: jax.Array


def plan_schedule(optimizer: Optimizer, settings: dict[str, jax.Array]) -> tuple[Schedule, jax.Array]:
    """The settings with the plan of the buffers; also the number of planes that the fullest buffer needs."""
    plans, planes = {}, [jnp.int32(0)]
    for slot, decay in optimizer.decays.items():
        plans[slot], filled = jax.vmap(bit_buffer.plan, in_axes=1, out_axes=(1, 0))(
            jax.lax.stop_gradient(settings[decay])
        )
        planes.append(jnp.max(filled))
    return Schedule(settings, plans), functools.reduce(jnp.maximum, planes)


def start(optimizer: Optimizer, params: Params, capacity: int) -> State:
    """The state before the first step; `capacity` is the number of planes a buffer has room for."""
    leaves, worst = [], jnp.float32(0)
    for path, weights in jax.tree_util.tree_leaves_with_path(params):
        if weights.dtype != jnp.float32:
            raise ValueError(
                f"init: params{jax.tree_util.keystr(path)} must be float32 to train reversibly, "
                f"got {weights.dtype}; cast it, or use method=Unrolled()"
            )
        leaves.append(
            Leaf(
                fixed_point.from_float(weights, WEIGHT_TAIL),
                {slot: fixed_point.zeros(weights.shape, SLOT_TAIL) for slot in optimizer.decays},
                {slot: bit_buffer.empty(weights.shape, capacity) for slot in optimizer.decays},
            )
        )
        worst = jnp.maximum(worst, _largest(weights))
    return State(leaves, jnp.int32(0), _failure(worst))


def weights_of(state: State) -> list[jax.Array]:
    """The weights as float32 leaves."""
    return [fixed_point.to_float(leaf.weights) for leaf in state.leaves]


def run_forward(
    problem: TrainingProblem,
    treedef: Any,
    state: State,
    schedule: Schedule,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    stop: jax.Array | int,
) -> State:
    """Train until `stop` steps are done, or a number leaves the fixed-point range (NaN included)."""

    def going(state: State) -> jax.Array:
        return (state.step < stop) & (state.failure == FINE)

    def forward(state: State) -> State:
        params = jax.tree.unflatten(treedef, weights_of(state))
        gradient = jax.tree.leaves(step_gradient(problem, params, hyperparameters, key, state.step))
        now = jax.tree.map(lambda x: x[state.step], schedule)
        leaves, worst = [], jnp.float32(0)
        for i, (leaf, g) in enumerate(zip(state.leaves, gradient, strict=True)):
            leaf, largest = _advance(problem.optimizer, leaf, g, jax.tree.map(lambda x, i=i: x[i], now))
            leaves.append(leaf)
            worst = jnp.maximum(worst, largest)
        return State(leaves, state.step + 1, _failure(worst))

    return jax.lax.while_loop(going, forward, state)


def run_backward(
    problem: TrainingProblem,
    treedef: Any,
    state: State,
    schedule: Schedule,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    initial: list[jax.Array],
    adjoint: list[jax.Array],
) -> Reversal:
    """Undo every step of `state`, carrying back `adjoint`, the gradient with respect to the final weights.

    `initial` are the true initial weights as float32 leaves, to compare the recovered ones with.
    """
    optimizer = problem.optimizer
    dynamic, static = split(hyperparameters)

    def gradient_at(weights: list[jax.Array], dynamic: dict[str, Any], step: jax.Array) -> list[jax.Array]:
        params = jax.tree.unflatten(treedef, weights)
        return jax.tree.leaves(step_gradient(problem, params, {**dynamic, **dict(static)}, key, step))

    def backward(carry: tuple) -> tuple:
        leaves, step, adjoint, slot_adjoints, d_settings, d_dynamic = carry
        step -= 1
        now = jax.tree.map(lambda x: x[step], schedule)
        nows = [jax.tree.map(lambda x, i=i: x[i], now) for i in range(len(leaves))]
        leaves = [_retreat_weights(optimizer, *pair) for pair in zip(leaves, nows, strict=True)]
        weights = [fixed_point.to_float(leaf.weights) for leaf in leaves]
        gradient, pull_back = jax.vjp(lambda w, d: gradient_at(w, d, step), weights, dynamic)
        leaves = [_retreat_slots(optimizer, *triple) for triple in zip(leaves, gradient, nows, strict=True)]

        weight_adjoints: list[jax.Array] = []
        new_slot_adjoints: list[dict[str, jax.Array]] = []
        gradient_adjoints: list[jax.Array] = []
        setting_adjoints: list[dict[str, jax.Array]] = []
        for leaf, w, g, scheduled, dw, ds in zip(leaves, weights, gradient, nows, adjoint, slot_adjoints, strict=True):
            slots = {
                name: scheduled.plans[name].scale_before * fixed_point.to_float(slot)
                for name, slot in leaf.slots.items()
            }
            _, step_adjoint = jax.vjp(functools.partial(float_step, optimizer), w, slots, g, scheduled.settings)
            for_weights, for_slots, for_gradient, for_settings = step_adjoint((dw, ds))
            weight_adjoints.append(for_weights)
            new_slot_adjoints.append(for_slots)
            gradient_adjoints.append(for_gradient)
            setting_adjoints.append(for_settings)
        through_gradient, d_dynamic_now = pull_back(gradient_adjoints)
        return (
            leaves,
            step,
            jax.tree.map(jnp.add, weight_adjoints, through_gradient),
            new_slot_adjoints,
            {n: x.at[step].set(jnp.stack([s[n] for s in setting_adjoints])) for n, x in d_settings.items()},
            jax.tree.map(jnp.add, d_dynamic, d_dynamic_now),
        )

    leaves, _, adjoint, _, d_settings, d_dynamic = jax.lax.while_loop(
        lambda carry: carry[1] > 0,
        backward,
        (
            state.leaves,
            state.step,
            adjoint,
            [dict.fromkeys(optimizer.decays, jnp.zeros_like(w)) for w in adjoint],
            jax.tree.map(jnp.zeros_like, schedule.settings),
            jax.tree.map(jnp.zeros_like, dynamic),
        ),
    )
    return Reversal(adjoint, d_settings, d_dynamic, leaves, _is_start(leaves, initial))


def _advance(optimizer: Optimizer, leaf: Leaf, gradient: jax.Array, now: Schedule) -> tuple[Leaf, jax.Array]:
    """One exact step of one leaf, and the largest magnitude met on the way (NaN where there was one)."""
    increments = optimizer.increments(gradient, now.settings)
    slots, buffers = {}, {}
    for name, increment in increments.items():
        decayed, buffers[name] = bit_buffer.decay(leaf.slots[name], leaf.buffers[name], now.plans[name])
        slots[name] = fixed_point.add(decayed, _slot_increment(increment, now.plans[name]))
    step = _weight_step(optimizer, slots, now)
    weights = fixed_point.add(leaf.weights, fixed_point.from_float(step, WEIGHT_TAIL))
    met = [fixed_point.to_float(x) for x in (weights, *slots.values())] + [step, *increments.values()]
    return Leaf(weights, slots, buffers), _largest(functools.reduce(jnp.maximum, map(jnp.abs, met)))


def _retreat_weights(optimizer: Optimizer, leaf: Leaf, now: Schedule) -> Leaf:
    step = fixed_point.from_float(_weight_step(optimizer, leaf.slots, now), WEIGHT_TAIL)
    return leaf._replace(weights=fixed_point.subtract(leaf.weights, step))


def _retreat_slots(optimizer: Optimizer, leaf: Leaf, gradient: jax.Array, now: Schedule) -> Leaf:
    slots, buffers = {}, {}
    for name, increment in optimizer.increments(gradient, now.settings).items():
        decayed = fixed_point.subtract(leaf.slots[name], _slot_increment(increment, now.plans[name]))
        slots[name], buffers[name] = bit_buffer.undo_decay(decayed, leaf.buffers[name], now.plans[name])
    return Leaf(leaf.weights, slots, buffers)


def _weight_step(optimizer: Optimizer, slots: dict[str, Fixed], now: Schedule) -> jax.Array:
    floats = {name: now.plans[name].scale_after * fixed_point.to_float(slot) for name, slot in slots.items()}
    return optimizer.step(floats, now.settings)


def _slot_increment(increment: jax.Array, plan: Plan) -> Fixed:
    return fixed_point.from_float(increment * (1 / plan.scale_after), SLOT_TAIL)


def _is_start(leaves: list[Leaf], initial: list[jax.Array]) -> jax.Array:
    """Whether every weight is the initial one, and every slot and store empty, in every bit."""
    agreements = []
    for leaf, weights in zip(leaves, initial, strict=True):
        agreements.append(fixed_point.equal(leaf.weights, fixed_point.from_float(weights, WEIGHT_TAIL)))
        agreements += [fixed_point.equal(x, fixed_point.zeros(weights.shape, SLOT_TAIL)) for x in leaf.slots.values()]
        agreements += [jnp.all(buffer.store == 0) for buffer in leaf.buffers.values()]
    return jnp.all(jnp.stack(agreements))


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0.0)  # NaN wins


def _failure(worst: jax.Array) -> jax.Array:
    outside = jnp.where(worst < fixed_point.LIMIT, FINE, OUT_OF_RANGE)
    return jnp.where(jnp.isnan(worst), NOT_A_NUMBER, outside).astype(jnp.int32)


def train(
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    *,
    smallest_momentum: float = 0.5,
) -> Params:
    """Train exactly reversibly, and return the final parameters, as a function that JAX can transform.

    `jax.grad` of it runs training backwards in constant memory; it composes with `jax.jit` and `jax.vmap`.
    Where momenta are traced, so that their values are not known when the program is built, the bit buffer is sized
    for `smallest_momentum` at every step; a run that needs more has NaN for a gradient. Parameters are NaN where
    training left the fixed-point range or met NaN, and gradients where the reversal was not exact: for a status
    that says which, use `evaluate`.
    """
    dynamic, static = split(hyperparameters)
    init_key, step_key = jax.random.split(key)
    params = initial_params(problem, hyperparameters, init_key)
    settings = resolve(problem.optimizer, hyperparameters, params, problem.steps)
    _, planes = plan_schedule(problem.optimizer, settings)
    try:
        capacity = int(planes)
    except jax.errors.ConcretizationTypeError:
        with jax.ensure_compile_time_eval():
            capacity = int(bit_buffer.plan(jnp.full((problem.steps,), smallest_momentum, jnp.float32))[1])
    capacity = bit_buffer.roomy_capacity(capacity)
    leaves, treedef = jax.tree.flatten(params)
    trained = _jitted_train(problem, (treedef, static, capacity), leaves, settings, dynamic, step_key)
    return jax.tree.unflatten(treedef, trained)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _train(
    problem: TrainingProblem,
    static: tuple[Any, tuple, int],
    leaves: list[jax.Array],
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> list[jax.Array]:
    return _train_forward(problem, (*static[:2], 0), leaves, settings, dynamic, key)[0]


def _train_forward(
    problem: TrainingProblem,
    static: tuple[Any, tuple, int],
    leaves: list[jax.Array],
    settings: dict[str, jax.Array],
    dynamic: dict[str, Any],
    key: jax.Array,
) -> tuple[list[jax.Array], tuple]:
    treedef, others, capacity = static
    schedule, planes = plan_schedule(problem.optimizer, settings)
    state = start(problem.optimizer, jax.tree.unflatten(treedef, leaves), capacity)
    state = run_forward(problem, treedef, state, schedule, {**dynamic, **dict(others)}, key, problem.steps)
    weights = [jnp.where(state.failure == FINE, w, jnp.nan) for w in weights_of(state)]
    return weights, (state, schedule, planes <= capacity, leaves, dynamic, key)


def _train_backward(
    problem: TrainingProblem, static: tuple[Any, tuple, int], residuals: tuple, adjoint: list[jax.Array]
) -> tuple:
    treedef, others, _ = static
    state, schedule, fits, leaves, dynamic, key = residuals
    result = run_backward(problem, treedef, state, schedule, {**dynamic, **dict(others)}, key, leaves, adjoint)
    trusted = fits & result.exact & (state.failure == FINE)
    gradients = jax.tree.map(lambda x: jnp.where(trusted, x, jnp.nan), result[:3])
    return (*gradients, None)


_train.defvjp(_train_forward, _train_backward)
_jitted_train = jax.jit(_train, static_argnums=(0, 1))
