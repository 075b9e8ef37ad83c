"""Exact training, which can be run backwards to the bit, and the gradient that is computed on the way back.

Forwards, each step adds to fixed-point numbers, and a decay keeps the bits that it would lose. Backwards, the same
steps are undone in the opposite order, the gradient is computed again from the recovered weights, and the ordinary
adjoint of the step is taken at the recovered values (Maclaurin, Duvenaud and Adams 2015, algorithm 2). So the
memory does not grow with the number of steps, but for log2(1 / decay) bits a weight and step.

The functions here are the pieces: stretches of steps in either direction (`run_forward`, `run_backward`), and shifts of
bits between them (`spill`, `unspill`). Each takes a `Program`, which is known at compile time, and `Inputs`, which are
arrays. `training.train` puts the pieces together as one program that JAX can transform;
`hypergradient.reversible` does so stretch by stretch, with no more memory than a run needs.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters import partial_eval

from hypergrad_search import optax_optimizers
from hypergrad_search.checks import whole_number
from hypergrad_search.custom_derivatives import has_custom_derivatives
from hypergrad_search.hyperparameters import Static
from hypergrad_search.losses import step_loss, transformed
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers import AdditiveOptimizer, Optimizer, resolve
from hypergrad_search.optimizers.base import rounded
from hypergrad_search.parameters import initial, split_statistics
from hypergrad_search.problem import Params, Statistics, TrainingProblem
from hypergrad_search.training import bit_buffer, fixed_point
from hypergrad_search.training.bit_buffer import Plan
from hypergrad_search.training.fixed_point import Fixed
from hypergrad_search.training.layout import Layout, arrange
from hypergrad_search.trouble import see

WEIGHTS = "weights"
FEWEST_FRACTION_BITS = 16

Numbers = dict[str, Fixed]  # the weights and the optimizer's slots of one array, by name
Planes = dict[str, list[jax.Array]]  # the bits that were spilled, by name and array


class IrreversibleError(ValueError):
    """No training of this problem can be run backwards: its optimizer or its parameters do not allow it."""


class IrreversibleDecayError(IrreversibleError):
    """A decay has a value with which training cannot be run backwards."""


@dataclass(frozen=True)
class Program:
    """All that is known when training is compiled, and that no input changes.

    `static` are the hyperparameters that are plain values, `fraction_bits` is the resolution of the weights and each
    slot, and `layout` is the arrangement of the parameters in arrays. `recorded` are the places of the statistics that
    the way back reads, among their leaves. If `isolated`, the gradient is compiled by itself
    in both directions, at the cost of one more gradient for each step back. Otherwise the compiler mixes it with other
    operations, and may round it differently in the two directions: XLA does so for some losses, such as those of models
    with layer normalisation.
    """

    problem: TrainingProblem
    optimizer: AdditiveOptimizer
    static: Static
    fraction_bits: tuple[tuple[str, int], ...]
    isolated: bool
    layout: Layout
    recorded: tuple[int, ...]

    @functools.cached_property
    def bits(self) -> dict[str, int]:
        """The fraction bits of the weights and each slot."""
        return dict(self.fraction_bits)


class Schedule(NamedTuple):
    """The settings, each of shape `(steps, groups)`, and by name the plan of what decays, of the same shape."""

    settings: dict[str, jax.Array]
    plans: dict[str, Plan]


class Inputs(NamedTuple):
    """All that steps read and never change.

    They are the traced hyperparameters, the key of the steps, the schedule, and the statistics before training.
    """

    dynamic: dict[str, Any]
    key: jax.Array
    schedule: Schedule
    statistics: Statistics


class State(NamedTuple):
    """Everything that a step changes.

    `numbers` has an entry for each array of the layout, `step` counts the steps done, and `outside` tells whether a
    number has left its range, which ends training. `statistics` are those after the steps done; on the way back they
    mean nothing. `record` has for each statistic that is recorded its values before all steps, shape
    `(steps, *shape)`.
    """

    numbers: list[Numbers]
    step: jax.Array
    outside: jax.Array
    statistics: Statistics
    record: list[jax.Array]


class Adjoint(NamedTuple):
    """Gradients of the loss at the end, as far as the way back has come.

    `weights` and `slots` are gradients with respect to the weights and slots of each array as they were at that step,
    and `statistics` are those with respect to the floating-point statistics.
    `settings` are gradients with respect to the settings, each of shape `(steps, groups)`. `hyperparameters` are
    gradients with respect to the hyperparameters on which training and outer losses depend directly. `norms` has for
    each step the norm of the gradient with respect to all weights before it, and last the norm of the gradient with
    respect to the final weights. Where the optimizer keeps an average, it is taken to change as the weights do.
    """

    weights: list[jax.Array]
    slots: list[dict[str, jax.Array]]
    statistics: list[jax.Array]
    settings: dict[str, jax.Array]
    hyperparameters: dict[str, Any]
    norms: jax.Array


def bind(
    problem: TrainingProblem,
    static: Static,
    dynamic: dict[str, Any],
    fraction_bits: Mapping[str, int],
    *,
    isolated: bool = False,
) -> Program:
    """Return the program for hyperparameters like these, of which `dynamic` gives the shapes alone.

    Raises `IrreversibleError` where the optimizer cannot be reversed or the parameters are not float32, and another
    `ValueError` where a setting does not fit, or `fraction_bits` name what the optimizer does not keep.
    """
    optimizer = problem.optimizer
    if not isinstance(optimizer, Optimizer):
        raise IrreversibleError(
            f"optimizer: {_of_optax(optimizer, static, dynamic)}; or use method=Unrolled(){see('irreversible')}"
        )
    if not isinstance(optimizer, AdditiveOptimizer):
        raise IrreversibleError(
            f"optimizer: {optimizer.name} loses bits that no reverse pass can recover; use method=Unrolled()"
            f"{see('irreversible')}"
        )
    bits = _resolution(optimizer, fraction_bits)
    leaves, structure = jax.tree.flatten(dynamic)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    layout = _layout(problem, static, shapes, structure)
    recorded = _recorded(problem, optimizer, static, layout, shapes, structure) if problem.has_statistics else ()
    return Program(problem, optimizer, static, bits, isolated, layout, recorded)


def _of_optax(optimizer: OptaxOptimizer, static: Static, dynamic: dict[str, Any]) -> str:
    """Return why a transformation of optax cannot be reversed, and which exact optimizer comes nearest."""
    made: list[optax.GradientTransformation] = []
    jax.eval_shape(lambda h: made.append(optax_optimizers.made(optimizer, {**h, **dict(static)})), dynamic)
    nearest = optax_optimizers.nearest_exact(made[0])
    advice = "no exact optimizer is near" if nearest is None else f"the nearest that can is hypergrad_search.{nearest}"
    return f"{optax_optimizers.name_of(made[0])} cannot be run backwards; {advice}"


@functools.lru_cache(maxsize=256)
def _layout(problem: TrainingProblem, static: Static, shapes: tuple[Any, ...], structure: Any) -> Layout:
    """Return the layout, which depends on shapes and on the structure of the settings alone."""
    groups: list[tuple[int, ...]] = []

    def trace(*leaves: jax.Array) -> Params:
        dynamic = jax.tree.unflatten(structure, leaves)
        params, _, _, of_leaves = prepare(problem, static, dynamic, jax.random.key(0))
        groups.append(of_leaves)
        return params

    params = jax.eval_shape(trace, *_like(shapes))
    assert isinstance(problem.optimizer, Optimizer)  # `bind` has refused all others
    return arrange(params, groups[0], share=not problem.optimizer.whole_leaves)


def _like(shapes: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    return [np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in shapes]


@functools.lru_cache(maxsize=256)
def _recorded(
    problem: TrainingProblem,
    optimizer: AdditiveOptimizer,
    static: Static,
    layout: Layout,
    shapes: tuple[Any, ...],
    structure: Any,
) -> tuple[int, ...]:
    """Return the places of the statistics that the way back reads, for hyperparameters of these shapes."""
    program = Program(problem, optimizer, static, (), False, layout, ())
    dynamic, key, step = jax.tree.unflatten(structure, _like(shapes)), jax.random.key(0), jnp.int32(0)

    def start(dynamic: dict[str, Any]) -> tuple[list[jax.Array], Statistics]:
        params, statistics, _, _ = prepare(problem, static, dynamic, key)
        return layout.pack(params), statistics

    weights, statistics = jax.eval_shape(start, dynamic)
    floats, _ = split_statistics(statistics)

    def back(statistics: Statistics, weights: list[jax.Array], dynamic: dict[str, Any], *adjoint: Any) -> Any:
        gradient, pull_back = _pull_back(program, dynamic, key, weights, statistics, step)
        return gradient, pull_back(adjoint)

    program_back = jax.make_jaxpr(back)(statistics, weights, dynamic, weights, floats).jaxpr
    _, used = partial_eval.dce_jaxpr(program_back, [True] * len(program_back.outvars))
    return tuple(i for i in range(len(jax.tree.leaves(statistics))) if used[i])


def prepare(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[Params, Statistics, dict[str, jax.Array], tuple[int, ...]]:
    """Return the initial parameters and statistics, the settings in float32, and the group of each leaf."""
    assert isinstance(problem.optimizer, Optimizer)  # `bind` has refused all others
    hyperparameters = {**dynamic, **dict(static)}
    params, statistics = initial(problem, hyperparameters, key)
    for path, weights in jax.tree_util.tree_leaves_with_path(params):
        if weights.dtype != jnp.float32:
            raise IrreversibleError(
                f"init: params{jax.tree_util.keystr(path)} must be float32 to train reversibly, "
                f"got {weights.dtype}; cast it, or use method=Unrolled(){see('irreversible')}"
            )
    with jax.ensure_compile_time_eval():  # so that settings that are not traced keep their values
        settings, groups = resolve(problem.optimizer, hyperparameters, params, problem.steps)
        return params, statistics, {name: x.astype(jnp.float32) for name, x in settings.items()}, groups


def _resolution(optimizer: AdditiveOptimizer, chosen: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return the optimizer's fraction bits, except for those that the user chose."""
    for name in chosen:
        if name not in optimizer.fraction_bits:
            raise ValueError(f"fraction_bits: {name!r} is not among {sorted(optimizer.fraction_bits)}")
    return tuple({**optimizer.fraction_bits, **chosen}.items())


def check_fraction_bits(chosen: Mapping[str, int]) -> dict[str, int]:
    """Return the fraction bits as ints; raise `ValueError` where one is not a whole number from 16 to 84."""
    if not isinstance(chosen, Mapping):
        raise ValueError(f"fraction_bits must be a dict from names to whole numbers, got {chosen!r}")
    return {
        name: whole_number(f"fraction_bits: {name}", bits, FEWEST_FRACTION_BITS, fixed_point.MOST_FRACTION_BITS)
        for name, bits in chosen.items()
    }


def log_decays(optimizer: AdditiveOptimizer, settings: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the logarithm of each decay, by the name of what decays; each has the shape of the settings."""
    logs = {slot: jnp.log(settings[setting]) for slot, setting in optimizer.decays.items()}
    weight_decay = optimizer.weight_decay(settings)
    return logs if weight_decay is None else {**logs, WEIGHTS: jnp.log1p(-weight_decay)}


def plan_schedule(
    optimizer: AdditiveOptimizer, settings: dict[str, jax.Array], stretch: jax.Array | int
) -> tuple[Schedule, dict[str, jax.Array]]:
    """Return the schedule, and by name the most planes that an array fills."""
    plans, planes = plan_decays(log_decays(optimizer, jax.lax.stop_gradient(settings)), stretch)
    return Schedule(settings, plans), planes


def plan_decays(logs: dict[str, jax.Array], stretch: jax.Array | int) -> tuple[dict[str, Plan], dict[str, jax.Array]]:
    """Return by name the plan of what decays, and the most planes that an array fills."""
    over_groups = jax.vmap(bit_buffer.plan, in_axes=(1, None), out_axes=(1, 0))
    plans = {name: over_groups(log, stretch) for name, log in logs.items()}
    return {name: plan for name, (plan, _) in plans.items()}, {name: jnp.max(n) for name, (_, n) in plans.items()}


def start(program: Program, weights: list[jax.Array], statistics: Statistics) -> State:
    """Return the state before the first step."""
    optimizer, bits = program.optimizer, program.bits
    copies = (WEIGHTS,) if optimizer.average is None else (WEIGHTS, optimizer.average)
    numbers = [
        {name: fixed_point.from_float(x, bits[name]) for name in copies}
        | {slot: fixed_point.zeros(x.shape, bits[slot]) for slot in optimizer.own_slots}
        for x in weights
    ]
    leaves = jax.tree.leaves(statistics)
    record = [jnp.zeros((program.problem.steps, *leaves[i].shape), leaves[i].dtype) for i in program.recorded]
    return State(numbers, jnp.int32(0), _outside(numbers), statistics, record)


def weights_of(program: Program, inputs: Inputs, state: State) -> list[jax.Array]:
    """Return the weights as float32 arrays; call it after all contents that were due have been spilled."""
    return _values_of(program, inputs, state, WEIGHTS)


def judged_weights(program: Program, inputs: Inputs, state: State) -> list[jax.Array]:
    """Return what outer losses see: the optimizer's average of the weights, or else the weights; see `weights_of`."""
    return _values_of(program, inputs, state, program.optimizer.average or WEIGHTS)


def _values_of(program: Program, inputs: Inputs, state: State, name: str) -> list[jax.Array]:
    values = [fixed_point.to_float(numbers[name], program.bits[name]) for numbers in state.numbers]
    if name not in inputs.schedule.plans:
        return values
    scales = scales_of(program, inputs, state, name)
    return [scales[group] * x for group, x in zip(program.layout.groups, values, strict=True)]


def scales_of(program: Program, inputs: Inputs, state: State, name: str) -> jax.Array:
    """Return for each group the scale of a number, 1 where it never decays; call it where `weights_of` may be."""
    if name not in inputs.schedule.plans:
        return jnp.ones(1 + max(program.layout.groups), jnp.float32)
    plan = inputs.schedule.plans[name]
    next_step = jnp.minimum(state.step, program.problem.steps - 1)
    return jnp.where(state.step < program.problem.steps, plan.scale_before[next_step], plan.scale_after[-1])


def run_forward(program: Program, inputs: Inputs, state: State, stop: jax.Array | int, *, early: bool) -> State:
    """Train until `stop` steps are done; if `early`, end where a number has left its range (as NaN does).

    No spill may be due in between. Under `jax.vmap` set `early` to False: there all runs would wait for the last one,
    and choosing between old and new states would copy both.
    """

    def going(state: State) -> jax.Array:
        return (state.step < stop) & ~state.outside if early else state.step < stop

    def forward(state: State) -> State:
        nows = _at(program, inputs, state.step)
        weights = [_weights(program, numbers, now) for numbers, now in zip(state.numbers, nows, strict=True)]
        differentiate = _isolated if program.isolated else gradient_of
        leaves = jax.tree.leaves(state.statistics)
        record = [x.at[state.step].set(leaves[i]) for x, i in zip(state.record, program.recorded, strict=True)]
        gradient, statistics = differentiate(program, inputs.dynamic, inputs.key, weights, state.statistics, state.step)
        numbers = [_advance(program, *array, state.step) for array in zip(state.numbers, gradient, nows, strict=True)]
        return State(numbers, state.step + 1, state.outside | _outside(numbers), statistics, record)

    return jax.lax.while_loop(going, forward, state)


def run_backward(
    program: Program, inputs: Inputs, state: State, adjoint: Adjoint, stop: jax.Array | int
) -> tuple[State, Adjoint]:
    """Undo steps until `stop` of them are left, and carry `adjoint` back; no spill may lie in between."""

    def backward(carry: tuple[State, Adjoint]) -> tuple[State, Adjoint]:
        state, adjoint = carry
        step, numbers = state.step - 1, state.numbers
        nows = _at(program, inputs, step)
        numbers = [_retreat_weights(program, *array, step) for array in zip(numbers, nows, strict=True)]
        weights = [_weights(program, *array) for array in zip(numbers, nows, strict=True)]
        statistics = statistics_before(program, inputs, state, step)
        gradient, pull_back = _pull_back(program, inputs.dynamic, inputs.key, weights, statistics, step)
        new = state.statistics
        if program.isolated:  # the new statistics are kept, so that the branch is that of the forward pass
            gradient, new = _isolated(program, inputs.dynamic, inputs.key, weights, statistics, step)
        numbers = [_retreat_slots(program, *array, step) for array in zip(numbers, gradient, nows, strict=True)]
        adjoints = [
            _step_adjoint(program, x, w, g, now, dw, ds, step)
            for x, w, g, now, dw, ds in zip(
                numbers, weights, gradient, nows, adjoint.weights, adjoint.slots, strict=True
            )
        ]
        for_weights, for_slots, for_gradient, for_settings = map(list, zip(*adjoints, strict=True))
        through_gradient, for_dynamic, for_statistics = pull_back((for_gradient, adjoint.statistics))
        for_weights = jax.tree.map(jnp.add, for_weights, through_gradient)
        settings = {
            name: x.at[step, jnp.asarray(program.layout.groups)].add(
                jnp.stack([settings[name] for settings in for_settings])
            )
            for name, x in adjoint.settings.items()
        }
        hyperparameters = jax.tree.map(jnp.add, adjoint.hyperparameters, for_dynamic)
        norms = adjoint.norms.at[step].set(norm(_of_common_change(program, for_weights, for_slots)))
        adjoint = Adjoint(for_weights, for_slots, for_statistics, settings, hyperparameters, norms)
        return state._replace(numbers=numbers, step=step, statistics=new), adjoint

    return jax.lax.while_loop(lambda carry: carry[0].step > stop, backward, (state, adjoint))


def spill(program: Program, state: State, name: str, due: jax.Array) -> tuple[State, list[jax.Array]]:
    """Shift the contents of one name in the groups that are due; return the state, and the plane for each array."""
    arrays = zip(state.numbers, program.layout.groups, strict=True)
    spilled = [bit_buffer.spill(x[name], due[group]) for x, group in arrays]
    return _replace(state, name, [content for content, _ in spilled]), [plane for _, plane in spilled]


def unspill(program: Program, state: State, name: str, due: jax.Array, planes: list[jax.Array]) -> State:
    """Return the state as it was before `spill`."""
    spilled = zip(state.numbers, planes, program.layout.groups, strict=True)
    return _replace(state, name, [bit_buffer.unspill(x[name], plane, due[group]) for x, plane, group in spilled])


def start_adjoint(
    program: Program,
    inputs: Inputs,
    weights: list[jax.Array],
    statistics: list[jax.Array],
    hyperparameters: dict[str, Any],
) -> Adjoint:
    """Return the adjoint at the end of training, given three gradients of the outer loss.

    `weights` is the gradient with respect to what `judged_weights` returns, `statistics` that with respect to the final
    statistics that are floats, and `hyperparameters` that with respect to the hyperparameters on which the loss depends
    directly.
    """
    average, zeros = program.optimizer.average, [jnp.zeros_like(w) for w in weights]
    slots = [dict.fromkeys(program.optimizer.slots, zero) for zero in zeros]
    if average is not None:
        slots = [{**of_array, average: w} for of_array, w in zip(slots, weights, strict=True)]
    return Adjoint(
        weights if average is None else zeros,
        slots,
        statistics,
        jax.tree.map(jnp.zeros_like, inputs.schedule.settings),
        hyperparameters,
        jnp.zeros(program.problem.steps + 1, jnp.float32).at[-1].set(norm(weights)),
    )


def initial_adjoint(program: Program, adjoint: Adjoint) -> list[jax.Array]:
    """Return the gradients with respect to the initial weights, given the adjoint before the first step."""
    return _of_common_change(program, adjoint.weights, adjoint.slots)


def _of_common_change(program: Program, weights: list[jax.Array], slots: list[dict[str, jax.Array]]) -> list[jax.Array]:
    """Return the gradients with respect to a change of the weights that their average, if there is one, shares."""
    average = program.optimizer.average
    if average is None:
        return weights
    return [w + of_array[average] for w, of_array in zip(weights, slots, strict=True)]


def equal(numbers: list[Numbers], others: list[Numbers]) -> jax.Array:
    """Return whether all weights and slots agree in every bit."""
    pairs = zip(numbers, others, strict=True)
    return jnp.all(jnp.stack([fixed_point.equal(x, other[name]) for leaf, other in pairs for name, x in leaf.items()]))


def norm(arrays: list[jax.Array]) -> jax.Array:
    """Return the Euclidean norm of all arrays together."""
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in arrays))


def statistics_before(program: Program, inputs: Inputs, state: State, step: jax.Array) -> Statistics:
    """Return the statistics before a step that has been done; those that are not recorded are the initial ones."""
    leaves, structure = jax.tree.flatten(inputs.statistics)
    for i, x in zip(program.recorded, state.record, strict=True):
        leaves[i] = x[step]
    return jax.tree.unflatten(structure, leaves)


def gradient_of(
    program: Program,
    dynamic: dict[str, Any],
    key: jax.Array,
    weights: list[jax.Array],
    statistics: Statistics,
    step: jax.Array,
) -> tuple[list[jax.Array], Statistics]:
    """Return the gradient of the training loss at one step, as the optimizer gets it, and the new statistics."""

    hyperparameters = {**dynamic, **dict(program.static)}

    def loss(weights: list[jax.Array]) -> tuple[jax.Array, Statistics]:
        params = program.layout.unpack(weights)
        return step_loss(program.problem, params, statistics, hyperparameters, key, step)

    gradient, new = jax.grad(loss, has_aux=True)(weights)
    return _transformed(program, dynamic, key, gradient, weights, step), new


def _transformed(
    program: Program,
    dynamic: dict[str, Any],
    key: jax.Array,
    gradient: list[jax.Array],
    weights: list[jax.Array],
    step: jax.Array,
) -> list[jax.Array]:
    if program.optimizer.transform is None:
        return gradient
    hyperparameters, layout = {**dynamic, **dict(program.static)}, program.layout
    of_params, params = layout.unpack(gradient), layout.unpack(weights)
    return layout.pack(transformed(program.problem, of_params, params, hyperparameters, key, step))


def _pull_back(
    program: Program,
    dynamic: dict[str, Any],
    key: jax.Array,
    weights: list[jax.Array],
    statistics: Statistics,
    step: jax.Array,
) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """Return the gradient of the forward pass, and the function that pulls adjoints back through it.

    This function takes a pair, the adjoint of the gradient and that of the new statistics, and returns those of the
    weights, the hyperparameters and the statistics. The second derivatives of a function do not depend on the order in
    which they are taken, so the adjoint of the gradient is pulled back by moving the weights along it, and asking how
    all slopes of the loss change (Pearlmutter 1994). Reverse mode over reverse mode takes longer for networks with
    convolutions or attention, and as long for others. It is taken where a loss has derivatives of its own, whose order
    may matter.
    """
    floats, put = split_statistics(statistics)

    def loss(
        weights: list[jax.Array], dynamic: dict[str, Any], floats: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        params, hyperparameters = program.layout.unpack(weights), {**dynamic, **dict(program.static)}
        value, new = step_loss(program.problem, params, put(floats), hyperparameters, key, step)
        return value, split_statistics(new)[0]

    if has_custom_derivatives(loss, weights, dynamic, floats):

        def of_step(
            weights: list[jax.Array], dynamic: dict[str, Any], floats: list[jax.Array]
        ) -> tuple[list[jax.Array], list[jax.Array]]:
            gradient, new = gradient_of(program, dynamic, key, weights, put(floats), step)
            return gradient, split_statistics(new)[0]

        (gradient, _), pull_back = jax.vjp(of_step, weights, dynamic, floats)
        return gradient, pull_back

    def slopes(weights: list[jax.Array]) -> tuple[list[jax.Array], dict[str, Any], list[jax.Array]]:
        found: tuple[list[jax.Array], dict[str, Any], list[jax.Array]]
        found, _ = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(weights, dynamic, floats)
        return found

    def rest(
        plain: list[jax.Array], weights: list[jax.Array], dynamic: dict[str, Any], floats: list[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        return _transformed(program, dynamic, key, plain, weights, step), loss(weights, dynamic, floats)[1]

    (plain, _, _), change = jax.linearize(slopes, weights)
    (gradient, _), back = jax.vjp(rest, plain, weights, dynamic, floats)

    def pull_along(adjoint: tuple[list[jax.Array], list[jax.Array]]) -> Any:
        along, *directly = back(adjoint)
        return jax.tree.map(jnp.add, tuple(directly), change(along))

    return gradient, pull_along


def _isolated(
    program: Program,
    dynamic: dict[str, Any],
    key: jax.Array,
    weights: list[jax.Array],
    statistics: Statistics,
    step: jax.Array,
) -> tuple[list[jax.Array], Statistics]:
    """Return what `gradient_of` returns, computed in a branch.

    Compilers do not merge a branch with the code around it, and do not know that this one is always taken.
    """
    result: tuple[list[jax.Array], Statistics] = jax.lax.cond(
        step >= 0,
        lambda weights, statistics: gradient_of(program, dynamic, key, weights, statistics, step),
        lambda weights, statistics: ([jnp.zeros_like(x) for x in weights], statistics),
        weights,
        statistics,
    )
    return result


def _at(program: Program, inputs: Inputs, step: jax.Array) -> list[Schedule]:
    """Return for each array the settings and plans that hold at one step."""
    now = jax.tree.map(lambda x: x[step], inputs.schedule)
    return [jax.tree.map(lambda x, group=group: x[group], now) for group in program.layout.groups]


def _replace(state: State, name: str, contents: Any) -> State:
    return state._replace(numbers=[{**x, name: content} for x, content in zip(state.numbers, contents, strict=True)])


def _weights(program: Program, numbers: Numbers, now: Schedule) -> jax.Array:
    """Return the weights before a step, in float32."""
    weights = fixed_point.to_float(numbers[WEIGHTS], program.bits[WEIGHTS])
    return now.plans[WEIGHTS].scale_before * weights if WEIGHTS in now.plans else weights


def _advance(program: Program, numbers: Numbers, gradient: jax.Array, now: Schedule, step: jax.Array) -> Numbers:
    """Return the numbers of one array after one exact step."""
    for slot in program.optimizer.own_slots:
        increment = _slot_increment(program, numbers, slot, gradient, now, step)
        numbers = {**numbers, slot: fixed_point.add(numbers[slot], increment)}
    numbers = {**numbers, WEIGHTS: fixed_point.add(numbers[WEIGHTS], _weight_step(program, numbers, now, step))}
    average = program.optimizer.average
    if average is None:
        return numbers
    return {**numbers, average: fixed_point.add(numbers[average], _average_increment(program, numbers, average, now))}


def _retreat_weights(program: Program, numbers: Numbers, now: Schedule, step: jax.Array) -> Numbers:
    """Undo what `_advance` does last: the change of the average, if there is one, and that of the weights."""
    average = program.optimizer.average
    if average is not None:
        increment = _average_increment(program, numbers, average, now)
        numbers = {**numbers, average: fixed_point.subtract(numbers[average], increment)}
    return {**numbers, WEIGHTS: fixed_point.subtract(numbers[WEIGHTS], _weight_step(program, numbers, now, step))}


def _retreat_slots(program: Program, numbers: Numbers, gradient: jax.Array, now: Schedule, step: jax.Array) -> Numbers:
    """Undo what `_advance` does first, from the last slot to the first."""
    for slot in reversed(program.optimizer.own_slots):
        increment = _slot_increment(program, numbers, slot, gradient, now, step)
        numbers = {**numbers, slot: fixed_point.subtract(numbers[slot], increment)}
    return numbers


def _floats(program: Program, numbers: Numbers, scales: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return in float32 the numbers of these names, each with its scale."""
    return {name: scale * fixed_point.to_float(numbers[name], program.bits[name]) for name, scale in scales.items()}


def _others(program: Program, numbers: Numbers, slot: str, now: Schedule) -> dict[str, jax.Array]:
    """Return the other slots in float32 as they are when `slot` changes, forwards or backwards."""
    own = program.optimizer.own_slots
    changed = own[: own.index(slot)]
    scales = {
        name: now.plans[name].scale_after if name in changed else now.plans[name].scale_before
        for name in own
        if name != slot
    }
    values = {name: rounded(x) for name, x in _floats(program, numbers, scales).items()}
    return _without_zero_divisors(program, values, scales, now)


def _without_zero_divisors(
    program: Program, slots: dict[str, jax.Array], scales: dict[str, jax.Array], now: Schedule
) -> dict[str, jax.Array]:
    """Return slots of which those that may divide are half a unit where they are 0.

    There increments may have been rounded to 0, and what is divided by 0 would hide from `resolution` what was lost.
    """
    slots = {**slots}
    for name in program.optimizer.divisors:
        if name in slots:
            half = scales[name] * 2.0 ** -(program.bits[name] + 1)
            least = jnp.where(now.settings[program.optimizer.decays[name]] < 1, half, 0)
            slots[name] = jnp.where(slots[name] == 0, least, slots[name])
    return slots


def _slot_increment(
    program: Program, numbers: Numbers, slot: str, gradient: jax.Array, now: Schedule, step: jax.Array
) -> Fixed:
    """Return the increment of a slot, when those behind it have not changed yet, or are undone already."""
    others = _others(program, numbers, slot, now)
    increment = program.optimizer.increment(slot, gradient, others, now.settings, step + 1)
    return fixed_point.from_float(increment * (1 / now.plans[slot].scale_after), program.bits[slot])


def _average_increment(program: Program, numbers: Numbers, average: str, now: Schedule) -> Fixed:
    """Return the increment of the average of the weights, by the weights after the step."""
    weights = fixed_point.to_float(numbers[WEIGHTS], program.bits[WEIGHTS])
    if WEIGHTS in now.plans:
        weights = now.plans[WEIGHTS].scale_after * weights
    increment = (1 - now.settings[program.optimizer.decays[average]]) * weights
    return fixed_point.from_float(increment * (1 / now.plans[average].scale_after), program.bits[average])


def _weight_step(program: Program, numbers: Numbers, now: Schedule, step: jax.Array) -> Fixed:
    change = _change(program, numbers, now, step)
    if WEIGHTS in now.plans:
        change = change * (1 / now.plans[WEIGHTS].scale_after)
    return fixed_point.from_float(change, program.bits[WEIGHTS])


def _change(program: Program, numbers: Numbers, now: Schedule, step: jax.Array) -> jax.Array:
    scales = {slot: now.plans[slot].scale_after for slot in program.optimizer.own_slots}
    slots = _without_zero_divisors(program, _floats(program, numbers, scales), scales, now)
    return program.optimizer.step(slots, now.settings, step + 1)


def _step_adjoint(
    program: Program,
    numbers: Numbers,
    weights: jax.Array,
    gradient: jax.Array,
    now: Schedule,
    adjoint: jax.Array,
    slot_adjoints: dict[str, jax.Array],
    step: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """Carry adjoints back through one step of one array: return those of weights, slots, gradient and settings."""
    slots = _floats(program, numbers, {slot: now.plans[slot].scale_before for slot in program.optimizer.slots})
    # Each weight gets a setting of its own, so that all uses of it are added up before the sum over the weights.
    settings = {name: jnp.broadcast_to(value, weights.shape) for name, value in now.settings.items()}

    def one_step(
        weights: jax.Array, slots: dict[str, jax.Array], gradient: jax.Array, settings: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return program.optimizer.float_step(weights, slots, gradient, settings, step + 1)

    _, pull_back = jax.vjp(one_step, weights, slots, gradient, settings)
    for_weights, for_slots, for_gradient, for_settings = pull_back((adjoint, slot_adjoints))
    return for_weights, for_slots, for_gradient, jax.tree.map(jnp.sum, for_settings)


def _outside(numbers: list[Numbers]) -> jax.Array:
    return jnp.any(jnp.stack([fixed_point.outside(*leaf.values()) for leaf in numbers]))


class Diagnosis(NamedTuple):
    """The faults of the last step, for each leaf of the parameters, as pytrees of their structure.

    `nan` tells whether the update has NaN, and `gradient_nan` whether the gradient has. By name, `outside` tells
    whether a number is out of range, and `reach` is the smallest magnitude that is out of range.
    """

    nan: Params
    gradient_nan: Params
    outside: dict[str, Params]
    reach: dict[str, Params]


def undo_weights(program: Program, inputs: Inputs, state: State) -> State:
    """Return the state with the weights before the last step, which must have been done, and no spill after it."""
    step = jnp.maximum(state.step - 1, 0)
    nows = _at(program, inputs, step)
    return state._replace(
        numbers=[_retreat_weights(program, *array, step) for array in zip(state.numbers, nows, strict=True)]
    )


def diagnose(program: Program, inputs: Inputs, state: State) -> Diagnosis:
    """Return why training ended early: undo the weights' part of the last step, and take its gradient again."""
    step = jnp.maximum(state.step - 1, 0)
    nows = _at(program, inputs, step)
    before = undo_weights(program, inputs, state).numbers
    weights = [_weights(program, *array) for array in zip(before, nows, strict=True)]
    statistics = statistics_before(program, inputs, state, step)
    gradient, _ = gradient_of(program, inputs.dynamic, inputs.key, weights, statistics, step)
    nan = []
    for numbers, g, now in zip(state.numbers, gradient, nows, strict=True):
        added = [_change(program, numbers, now, step)]
        for slot in program.optimizer.own_slots:  # others are read as they are now, which makes no difference to NaN
            others = _others(program, numbers, slot, now)
            added.append(program.optimizer.increment(slot, g, others, now.settings, step + 1))
        nan.append(functools.reduce(jnp.logical_or, map(jnp.isnan, added)))

    def by_leaf(arrays: list[jax.Array]) -> Params:
        return jax.tree.map(jnp.any, program.layout.unpack(arrays))

    outside, reach = {}, {}
    for name in state.numbers[0]:
        outside[name] = by_leaf([fixed_point.is_outside(numbers[name]) for numbers in state.numbers])
        scales = [now.plans[name].scale_after if name in now.plans else jnp.float32(1) for now in nows]
        limit = fixed_point.limit(program.bits[name])
        limits = [jnp.full_like(w, scale * limit) for w, scale in zip(weights, scales, strict=True)]
        reach[name] = jax.tree.map(lambda x: jnp.max(x, initial=0.0), program.layout.unpack(limits))
    return Diagnosis(by_leaf(nan), by_leaf([jnp.isnan(g) for g in gradient]), outside, reach)
