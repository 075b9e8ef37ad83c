"""Training that can be run backwards to the bit, and the gradient that is computed on the way back.

Forwards, each step adds to fixed-point numbers, and a decay keeps the bits that it would lose. Backwards, the same
steps are undone in the opposite order, the gradient is computed again from the recovered weights, and the adjoint of
the step is the ordinary one, taken at the recovered values (Maclaurin, Duvenaud and Adams 2015, algorithm 2). So the
memory does not grow with the number of steps, but for log2(1 / decay) bits a weight and step.

The functions here are the pieces: stretches of steps in either direction (`run_forward`, `run_backward`), and what
happens to the bits between them (`spill`, `unspill`). `training.train` puts them together as one program that JAX can
transform; `hypergradient.reversible` does so stretch by stretch, with no more memory than a run needs.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.problem import Params, TrainingProblem, initial_params, step_loss
from hypergrad_search.training import bit_buffer, fixed_point
from hypergrad_search.training.bit_buffer import Plan
from hypergrad_search.training.fixed_point import Fixed
from hypergrad_search.training.layout import Layout, arrange
from hypergrad_search.training.optimizers import Optimizer, float_step, resolve

WEIGHTS = "weights"

Numbers = dict[str, Fixed]  # the weights and the optimizer's slots of one array, by name
Planes = dict[str, list[jax.Array]]  # of what was spilled, by name and array


@dataclass(frozen=True)
class Run:
    """What a program is compiled for: a problem, its hyperparameters that are plain values, and the resolution.

    `isolated`: the gradient is compiled by itself in both directions, at the cost of one more on the way back. Among
    other operations a compiler may round it differently: XLA does for some losses, such as a layer normalisation's.
    """

    problem: TrainingProblem
    static: tuple[tuple[str, Any], ...]
    fraction_bits: tuple[tuple[str, int], ...]
    isolated: bool = False

    @property
    def optimizer(self) -> Optimizer:
        """The problem's."""
        return self.problem.optimizer

    @functools.cached_property
    def bits(self) -> dict[str, int]:
        """The fraction bits of the weights and each slot."""
        return dict(self.fraction_bits)


class State(NamedTuple):
    """Everything that a step changes.

    `numbers` for each array of the layout; `step` counts the steps done; `outside` says whether a number has left
    its range, which ends training.
    """

    numbers: list[Numbers]
    step: jax.Array
    outside: jax.Array


class Schedule(NamedTuple):
    """The settings, each `(steps, groups)`, and the plan of what decays, by name, likewise."""

    settings: dict[str, jax.Array]
    plans: dict[str, Plan]


class Adjoint(NamedTuple):
    """Gradients of the loss at the end, as far as the way back has come.

    With respect to the weights and slots as they were at that step, for each array; to the settings, each
    `(steps, groups)`; to the hyperparameters, through the training loss. `norms` has for each step the norm of the
    gradient with respect to all weights before it, and last the norm of that with respect to the final weights.
    """

    weights: list[jax.Array]
    slots: list[dict[str, jax.Array]]
    settings: dict[str, jax.Array]
    hyperparameters: dict[str, Any]
    norms: jax.Array


def prepare(run: Run, dynamic: dict[str, Any], key: jax.Array) -> tuple[Params, dict[str, jax.Array], tuple[int, ...]]:
    """Initial parameters and settings, through which hyperparameters act; and the group of each leaf."""
    hyperparameters = {**dynamic, **dict(run.static)}
    params = initial_params(run.problem, hyperparameters, key)
    if run.optimizer.irreversible:
        raise ValueError(f"optimizer: {run.optimizer.irreversible}; use method=Unrolled()")
    for path, weights in jax.tree_util.tree_leaves_with_path(params):
        if weights.dtype != jnp.float32:
            raise ValueError(
                f"init: params{jax.tree_util.keystr(path)} must be float32 to train reversibly, "
                f"got {weights.dtype}; cast it, or use method=Unrolled()"
            )
    with jax.ensure_compile_time_eval():  # settings that do not depend on what is traced keep their values
        return params, *resolve(run.optimizer, hyperparameters, params, run.problem.steps)


def layout_of(run: Run, dynamic: dict[str, Any], key: jax.Array) -> Layout:
    """The layout, which follows from shapes and from the structure of the settings alone."""
    groups: list[tuple[int, ...]] = []

    def trace() -> Params:
        params, _, of_leaves = prepare(run, dynamic, key)
        groups.append(of_leaves)
        return params

    shapes = jax.eval_shape(trace)
    return arrange(shapes, groups[0])


def resolution(optimizer: Optimizer, chosen: Mapping[str, int] | None) -> tuple[tuple[str, int], ...]:
    """The optimizer's fraction bits, but for those that the user chose; `ValueError` where these make no sense."""
    for name, bits in (chosen or {}).items():
        if name not in optimizer.fraction_bits:
            raise ValueError(f"fraction_bits: {name!r} is not among {sorted(optimizer.fraction_bits)}")
        most = fixed_point.MOST_FRACTION_BITS
        if isinstance(bits, bool) or not isinstance(bits, int) or not 16 <= bits <= most:
            raise ValueError(f"fraction_bits: {name} must be a whole number from 16 to {most}, got {bits!r}")
    return tuple({**optimizer.fraction_bits, **(chosen or {})}.items())


def log_decays(optimizer: Optimizer, settings: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The logarithm of every decay, by the name of what decays, each of the settings' shape."""
    logs = {slot: jnp.log(settings[setting]) for slot, setting in optimizer.decays.items()}
    weight_decay = optimizer.weight_decay(settings)
    return logs if weight_decay is None else {**logs, WEIGHTS: jnp.log1p(-weight_decay)}


def plan_schedule(
    optimizer: Optimizer, settings: dict[str, jax.Array], stretch: jax.Array | int
) -> tuple[Schedule, dict[str, jax.Array]]:
    """The settings with the plan of what decays; also the number of planes that each name fills at most."""
    plans, planes = plan_decays(log_decays(optimizer, jax.lax.stop_gradient(settings)), stretch)
    return Schedule(settings, plans), planes


def plan_decays(logs: dict[str, jax.Array], stretch: jax.Array | int) -> tuple[dict[str, Plan], dict[str, jax.Array]]:
    """The plan of what decays, and the number of planes that it fills at most, by name."""
    over_groups = jax.vmap(bit_buffer.plan, in_axes=(1, None), out_axes=(1, 0))
    plans = {name: over_groups(log, stretch) for name, log in logs.items()}
    return {name: plan for name, (plan, _) in plans.items()}, {name: jnp.max(n) for name, (_, n) in plans.items()}


def start(run: Run, weights: list[jax.Array]) -> State:
    """The state before the first step."""
    numbers = [
        {
            WEIGHTS: fixed_point.from_float(x, run.bits[WEIGHTS]),
            **{slot: fixed_point.zeros(x.shape, run.bits[slot]) for slot in run.optimizer.decays},
        }
        for x in weights
    ]
    return State(numbers, jnp.int32(0), _outside(numbers))


def weights_of(run: Run, layout: Layout, state: State, schedule: Schedule) -> list[jax.Array]:
    """The weights as float32 arrays, after what was due to be spilled."""
    weights = [fixed_point.to_float(numbers[WEIGHTS], run.bits[WEIGHTS]) for numbers in state.numbers]
    if WEIGHTS not in schedule.plans:
        return weights
    plan = schedule.plans[WEIGHTS]
    next_step = jnp.minimum(state.step, run.problem.steps - 1)
    scales = jnp.where(state.step < run.problem.steps, plan.scale_before[next_step], plan.scale_after[-1])
    return [scales[group] * x for group, x in zip(layout.groups, weights, strict=True)]


def run_forward(
    run: Run,
    layout: Layout,
    state: State,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
    stop: jax.Array | int,
    *,
    early: bool,
) -> State:
    """Train until `stop` steps are done; if `early`, end where a number has left its range (as NaN does).

    No spill may be due in between. Not to end early is for `jax.vmap`, under which each would wait for all, and
    choosing between old and new state would copy both.
    """

    def going(state: State) -> jax.Array:
        return (state.step < stop) & ~state.outside if early else state.step < stop

    def forward(state: State) -> State:
        nows = _at(layout, schedule, state.step)
        weights = [_weights(run, numbers, now) for numbers, now in zip(state.numbers, nows, strict=True)]
        gradient_of = _isolated if run.isolated else _gradient
        gradient = gradient_of(run, layout, weights, dynamic, key, state.step)
        numbers = [_advance(run, *array, state.step) for array in zip(state.numbers, gradient, nows, strict=True)]
        return State(numbers, state.step + 1, state.outside | _outside(numbers))

    return jax.lax.while_loop(going, forward, state)


def run_backward(
    run: Run,
    layout: Layout,
    state: State,
    adjoint: Adjoint,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
    stop: jax.Array | int,
) -> tuple[State, Adjoint]:
    """Undo the steps of `state` until `stop` of them are left, and carry `adjoint` back; no spill in between."""

    def backward(carry: tuple[State, Adjoint]) -> tuple[State, Adjoint]:
        (numbers, step, outside), adjoint = carry
        step -= 1
        nows = _at(layout, schedule, step)
        numbers = [_retreat_weights(run, *array, step) for array in zip(numbers, nows, strict=True)]
        weights = [_weights(run, *array) for array in zip(numbers, nows, strict=True)]
        # the gradient is that of the forward pass, and pulling back through it is the Hessian-vector product
        gradient, pull_back = jax.vjp(
            lambda weights, dynamic: _gradient(run, layout, weights, dynamic, key, step), weights, dynamic
        )
        if run.isolated:
            gradient = _isolated(run, layout, weights, dynamic, key, step)
        numbers = [_retreat_slots(run, *array) for array in zip(numbers, gradient, nows, strict=True)]
        adjoints = [
            _step_adjoint(run, x, w, g, now, dw, ds, step)
            for x, w, g, now, dw, ds in zip(
                numbers, weights, gradient, nows, adjoint.weights, adjoint.slots, strict=True
            )
        ]
        for_weights, for_slots, for_gradient, for_settings = map(list, zip(*adjoints, strict=True))
        through_gradient, for_dynamic = pull_back(for_gradient)
        for_weights = jax.tree.map(jnp.add, for_weights, through_gradient)
        settings = {
            name: x.at[step, jnp.asarray(layout.groups)].add(jnp.stack([settings[name] for settings in for_settings]))
            for name, x in adjoint.settings.items()
        }
        hyperparameters = jax.tree.map(jnp.add, adjoint.hyperparameters, for_dynamic)
        norms = adjoint.norms.at[step].set(norm(for_weights))
        return State(numbers, step, outside), Adjoint(for_weights, for_slots, settings, hyperparameters, norms)

    return jax.lax.while_loop(lambda carry: carry[0].step > stop, backward, (state, adjoint))


def spill(layout: Layout, state: State, name: str, really: jax.Array) -> tuple[State, list[jax.Array]]:
    """Shift the contents of one name in the groups where `really` is true, and the plane for each array."""
    spilled = [bit_buffer.spill(x[name], really[group]) for x, group in zip(state.numbers, layout.groups, strict=True)]
    return _replace(state, name, [content for content, _ in spilled]), [plane for _, plane in spilled]


def unspill(layout: Layout, state: State, name: str, really: jax.Array, planes: list[jax.Array]) -> State:
    """Undo `spill`."""
    spilled = zip(state.numbers, planes, layout.groups, strict=True)
    return _replace(state, name, [bit_buffer.unspill(x[name], plane, really[group]) for x, plane, group in spilled])


def start_adjoint(run: Run, schedule: Schedule, dynamic: dict[str, Any], weights: list[jax.Array]) -> Adjoint:
    """The adjoint at the end of training, where `weights` is the gradient with respect to the final weights."""
    return Adjoint(
        weights,
        [{slot: jnp.zeros_like(w) for slot in run.optimizer.decays} for w in weights],
        jax.tree.map(jnp.zeros_like, schedule.settings),
        jax.tree.map(jnp.zeros_like, dynamic),
        jnp.zeros(run.problem.steps + 1, jnp.float32).at[-1].set(norm(weights)),
    )


def equal(numbers: list[Numbers], others: list[Numbers]) -> jax.Array:
    """Whether all weights and slots agree in every bit."""
    pairs = zip(numbers, others, strict=True)
    return jnp.all(jnp.stack([fixed_point.equal(x, other[name]) for leaf, other in pairs for name, x in leaf.items()]))


def norm(arrays: list[jax.Array]) -> jax.Array:
    """The Euclidean norm of all arrays together."""
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in arrays))


def _loss(
    run: Run, layout: Layout, weights: list[jax.Array], dynamic: dict[str, Any], key: jax.Array, step: jax.Array
) -> jax.Array:
    return step_loss(run.problem, layout.unpack(weights), {**dynamic, **dict(run.static)}, key, step)


def _gradient(
    run: Run, layout: Layout, weights: list[jax.Array], dynamic: dict[str, Any], key: jax.Array, step: jax.Array
) -> list[jax.Array]:
    return jax.grad(_loss, argnums=2)(run, layout, weights, dynamic, key, step)


def _isolated(
    run: Run, layout: Layout, weights: list[jax.Array], dynamic: dict[str, Any], key: jax.Array, step: jax.Array
) -> list[jax.Array]:
    """The gradient as a branch, which compilers neither merge with what is around it nor know to be always taken."""
    return jax.lax.cond(
        step >= 0,
        lambda weights: _gradient(run, layout, weights, dynamic, key, step),
        lambda weights: [jnp.zeros_like(x) for x in weights],
        weights,
    )


def _at(layout: Layout, schedule: Schedule, step: jax.Array) -> list[Schedule]:
    """What holds at one step, for each array."""
    now = jax.tree.map(lambda x: x[step], schedule)
    return [jax.tree.map(lambda x, group=group: x[group], now) for group in layout.groups]


def _replace(state: State, name: str, contents: Any) -> State:
    return state._replace(numbers=[{**x, name: content} for x, content in zip(state.numbers, contents, strict=True)])


def _weights(run: Run, numbers: Numbers, now: Schedule) -> jax.Array:
    """The weights before a step, in float32."""
    weights = fixed_point.to_float(numbers[WEIGHTS], run.bits[WEIGHTS])
    return now.plans[WEIGHTS].scale_before * weights if WEIGHTS in now.plans else weights


def _advance(run: Run, numbers: Numbers, gradient: jax.Array, now: Schedule, step: jax.Array) -> Numbers:
    """One exact step of one array."""
    numbers = {**numbers}
    for name, increment in _increments(run, gradient, now).items():
        numbers[name] = fixed_point.add(numbers[name], increment)
    numbers[WEIGHTS] = fixed_point.add(numbers[WEIGHTS], _weight_step(run, numbers, now, step))
    return numbers


def _retreat_weights(run: Run, numbers: Numbers, now: Schedule, step: jax.Array) -> Numbers:
    return {**numbers, WEIGHTS: fixed_point.subtract(numbers[WEIGHTS], _weight_step(run, numbers, now, step))}


def _slots(run: Run, numbers: Numbers, now: Schedule, *, after: bool) -> dict[str, jax.Array]:
    """The slots in float32, before the step or after it."""
    return {
        name: (now.plans[name].scale_after if after else now.plans[name].scale_before)
        * fixed_point.to_float(numbers[name], run.bits[name])
        for name in run.optimizer.decays
    }


def _retreat_slots(run: Run, numbers: Numbers, gradient: jax.Array, now: Schedule) -> Numbers:
    increments = _increments(run, gradient, now)
    return {**numbers, **{name: fixed_point.subtract(numbers[name], x) for name, x in increments.items()}}


def _increments(run: Run, gradient: jax.Array, now: Schedule) -> dict[str, Fixed]:
    return {
        name: fixed_point.from_float(increment * (1 / now.plans[name].scale_after), run.bits[name])
        for name, increment in run.optimizer.increments(gradient, now.settings).items()
    }


def _weight_step(run: Run, numbers: Numbers, now: Schedule, step: jax.Array) -> Fixed:
    change = _change(run, numbers, now, step)
    if WEIGHTS in now.plans:
        change = change * (1 / now.plans[WEIGHTS].scale_after)
    return fixed_point.from_float(change, run.bits[WEIGHTS])


def _change(run: Run, numbers: Numbers, now: Schedule, step: jax.Array) -> jax.Array:
    return run.optimizer.step(_slots(run, numbers, now, after=True), now.settings, step + 1)


def _step_adjoint(
    run: Run,
    numbers: Numbers,
    weights: jax.Array,
    gradient: jax.Array,
    now: Schedule,
    adjoint: jax.Array,
    slot_adjoints: dict[str, jax.Array],
    step: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """Through one step of one array: the adjoints of weights, slots, gradient and settings before it."""
    slots = _slots(run, numbers, now, after=False)
    # a setting for each weight, so that all of its uses are added up before they are summed over the weights
    settings = {name: jnp.broadcast_to(value, weights.shape) for name, value in now.settings.items()}

    def one_step(
        weights: jax.Array, slots: dict[str, jax.Array], gradient: jax.Array, settings: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return float_step(run.optimizer, weights, slots, gradient, settings, step + 1)

    _, pull_back = jax.vjp(one_step, weights, slots, gradient, settings)
    for_weights, for_slots, for_gradient, for_settings = pull_back((adjoint, slot_adjoints))
    return for_weights, for_slots, for_gradient, jax.tree.map(jnp.sum, for_settings)


def _outside(numbers: list[Numbers]) -> jax.Array:
    return jnp.any(jnp.stack([fixed_point.outside(*leaf.values()) for leaf in numbers]))


class Diagnosis(NamedTuple):
    """What went wrong at the last step done, for each leaf of the parameters, as pytrees of their structure.

    `nan`: whether its update has NaN. `outside`: by name, whether a number is out of range. `reach`: by name, the
    magnitude from which on it is.
    """

    nan: Params
    outside: dict[str, Params]
    reach: dict[str, Params]


def diagnose(
    run: Run, layout: Layout, state: State, schedule: Schedule, dynamic: dict[str, Any], key: jax.Array
) -> Diagnosis:
    """Why training ended early: undoes the weights' part of the last step, and takes its gradient again."""
    step = jnp.maximum(state.step - 1, 0)
    nows = _at(layout, schedule, step)
    before = [_retreat_weights(run, *array, step) for array in zip(state.numbers, nows, strict=True)]
    weights = [_weights(run, *array) for array in zip(before, nows, strict=True)]
    gradient = _gradient(run, layout, weights, dynamic, key, step)
    nan = []
    for numbers, g, now in zip(state.numbers, gradient, nows, strict=True):
        added = [*run.optimizer.increments(g, now.settings).values(), _change(run, numbers, now, step)]
        nan.append(functools.reduce(jnp.logical_or, map(jnp.isnan, added)))

    def by_leaf(arrays: list[jax.Array]) -> Params:
        return jax.tree.map(jnp.any, layout.unpack(arrays))

    outside, reach = {}, {}
    for name in state.numbers[0]:
        outside[name] = by_leaf([fixed_point.is_outside(numbers[name]) for numbers in state.numbers])
        scales = [now.plans[name].scale_after if name in now.plans else jnp.float32(1) for now in nows]
        limit = fixed_point.limit(run.bits[name])
        limits = [jnp.full_like(w, scale * limit) for w, scale in zip(weights, scales, strict=True)]
        reach[name] = jax.tree.map(lambda x: jnp.max(x, initial=0.0), layout.unpack(limits))
    return Diagnosis(by_leaf(nan), outside, reach)
