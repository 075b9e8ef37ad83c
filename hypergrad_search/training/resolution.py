"""Whether fixed-point numbers are fine enough: what falls below their resolution must not go unnoticed.

A number of F fraction bits is rounded to a multiple of 2**-F, times a scale where it decays. In most training this is
far below what floats resolve. But where gradients are of the order of this unit, slots stay 0, or are wrong by as much
as they are large, and so are the steps of the weights.

Two tests ask how far weights would step elsewhere if a slot were half a unit larger. Numbers are too coarse where that
is much beside the largest step in the leaf, and, if it is added up over all steps so far, much beside the largest
weight that the leaf ever had. A slot may act through the increments of another one: these are taken to be off by the
same share at all steps, and so is then what they add up to. An average of the weights is off by what its own rounding
adds up to.

`probe` costs next to nothing and takes everything at its worst. `unresolved` takes a gradient. By the gradient alone
can a weight that nothing moves be told from one whose every increment was rounded to 0. Errors are weighed by it, too,
or by that at the start, for it vanishes in the end: where the loss hardly depends on a leaf, gradients are tiny, and
nothing is spoilt.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.optimizers import AdditiveOptimizer
from hypergrad_search.problem import Params
from hypergrad_search.training import exact, fixed_point
from hypergrad_search.training.exact import WEIGHTS, Inputs, Program, State

#: An error of a step is much if it is above this share of the largest step in the leaf.
OF_THE_STEPS = 2.0**-13
#: The errors of all steps are much if they are above this share of the largest weight.
OF_THE_WEIGHTS = 2.0**-13
#: Where the decay of a divisor is nearer to 1 than this, its errors count for more, in inverse proportion to the gap.
#: The slope by this decay is then a small difference of large numbers: the bias is corrected by a number next to 0.
NEAR_1 = 0.01
SMALLEST_GAP = 1e-6
#: A slot that is 0 may in truth be this share of half a unit.
NEXT_TO_NOTHING = 2.0**-40


class Unresolved(NamedTuple):
    """By the name of a number and for each leaf: whether it is too coarse there, and its unit."""

    found: dict[str, Params]
    unit: dict[str, Params]


class _Rounding(NamedTuple):
    """What rounding does to each weight of an array.

    `weight` and `step` are the magnitudes of the weight, and of the step that the slots give now. `errors` tells by the
    name of a number how far this step may be off, and by that of an average how far this may be off.
    """

    weight: jax.Array
    step: jax.Array
    errors: dict[str, jax.Array]


def largest_weights(program: Program, weights: list[jax.Array]) -> Params:
    """Return for each leaf the largest magnitude of a weight."""
    return jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0.0), program.layout.unpack(weights))


def probe(program: Program, inputs: Inputs, state: State, largest: Params) -> tuple[Params, jax.Array]:
    """Return for each leaf the largest magnitude of a weight, now and in `largest`, and if a number may be too coarse.

    Call it where `weights_of` may be called.
    """
    most = _largest(program, _rounding(program, inputs, state, None))
    largest = jax.tree.map(jnp.maximum, largest, program.layout.treedef.unflatten([x.weight for x in most]))
    weights = jax.tree.leaves(largest)
    doubts = [
        _is_coarse(x, name) & (_sum(program, x, name, state.step) > OF_THE_WEIGHTS * weight)
        for x, weight in zip(most, weights, strict=True)
        for name in program.bits
    ]
    return largest, jnp.any(jnp.stack(doubts))


def unresolved(program: Program, inputs: Inputs, initial: list[jax.Array], state: State, largest: Params) -> Unresolved:
    """Return which numbers are too coarse, given the initial and the largest weights; it takes two gradients.

    If a number is out of its range, the weights before the last step count: a slot that was lost may be the cause.
    """
    before = exact.undo_weights(program, inputs, state)
    state = jax.tree.map(lambda x, y: jnp.where(state.outside, x, y), before, state)
    step = jnp.minimum(state.step, program.problem.steps - 1)
    weights = exact.weights_of(program, inputs, state)
    points = (weights, state.statistics, step), (initial, inputs.statistics, jnp.int32(0))
    gradient, first = (exact.gradient_of(program, inputs.dynamic, inputs.key, *point)[0] for point in points)
    rounding = _rounding(program, inputs, state, gradient)
    most = _largest(program, rounding)
    slopes = [jnp.maximum(jnp.abs(g), jnp.abs(g0)) for g, g0 in zip(gradient, first, strict=True)]
    steepest = jnp.max(jnp.stack([jnp.max(slope, initial=0.0) for slope in slopes]))
    slopes = [slope / jnp.where(steepest > 0, steepest, 1) for slope in slopes]  # so that no product underflows
    of_weights = jax.tree.map(lambda slope, weight: jnp.sum(slope) * weight, program.layout.unpack(slopes), largest)
    whole = jnp.sum(jnp.stack(jax.tree.leaves(of_weights)))
    found, unit, units = {}, {}, _usual(program, inputs, state).units
    for name in program.bits:
        effects = [slope * _sum(program, x, name, state.step) for slope, x in zip(slopes, rounding, strict=True)]
        found[name] = jax.tree.map(
            lambda x, effect, name=name: _is_coarse(x, name) & (jnp.sum(effect) > OF_THE_WEIGHTS * whole),
            program.layout.treedef.unflatten(most),
            program.layout.unpack(effects),
            is_leaf=lambda x: isinstance(x, _Rounding),
        )
        of_groups = zip(weights, program.layout.groups, strict=True)
        unit[name] = largest_weights(program, [jnp.full_like(x, units[name][group]) for x, group in of_groups])
    return Unresolved(found, unit)


def _is_coarse(x: _Rounding, name: str) -> jax.Array:
    return x.errors[name] > OF_THE_STEPS * x.step


def _sum(program: Program, x: _Rounding, name: str, done: jax.Array) -> jax.Array:
    """Return the errors of all steps so far, at their worst; a weight is off at the start, and by its step at most."""
    error, count = x.errors[name], done.astype(x.step.dtype)
    if name == program.optimizer.average:
        return error
    if name != WEIGHTS:
        return error * count
    return jnp.where(x.weight == 0, 0, error) + jnp.minimum(x.step, error) * count


def _largest(program: Program, rounding: list[_Rounding]) -> list[_Rounding]:
    """Return for each leaf the largest of everything."""
    rows = [jnp.stack([x.weight, x.step, *x.errors.values()]) for x in rounding]  # at once: fewer programs
    names = list(rounding[0].errors)
    most = [
        jnp.max(leaf.reshape(leaf.shape[0], -1), axis=1, initial=0.0)
        for leaf in jax.tree.leaves(jax.vmap(program.layout.unpack)(rows))
    ]
    return [_Rounding(x[0], x[1], {name: x[2 + i] for i, name in enumerate(names)}) for x in most]


class _Usual(NamedTuple):
    """Means over all steps so far: of the settings by name, and of the units of the numbers by name, for each group."""

    settings: dict[str, jax.Array]
    units: dict[str, jax.Array]


def _usual(program: Program, inputs: Inputs, state: State) -> _Usual:
    settings, plans = inputs.schedule
    of_steps = [*settings.values(), *(plan.scale_after for plan in plans.values())]
    is_done = jnp.arange(program.problem.steps, dtype=jnp.int32) < state.step
    means = list(jnp.mean(jnp.stack(of_steps), axis=1, where=is_done[None, :, None]))  # at once: fewer programs
    scales = dict(zip(plans, means[len(settings) :], strict=True))
    units = {name: scales.get(name, jnp.ones_like(means[0])) * 2.0**-bits for name, bits in program.fraction_bits}
    return _Usual(dict(zip(settings, means, strict=False)), units)


def _rounding(program: Program, inputs: Inputs, state: State, gradient: list[jax.Array] | None) -> list[_Rounding]:
    usual = _usual(program, inputs, state)
    scales = {name: exact.scales_of(program, inputs, state, name) for name in program.bits}
    results = []
    for i, (numbers, group) in enumerate(zip(state.numbers, program.layout.groups, strict=True)):
        values = {
            name: scales[name][group] * fixed_point.to_float(numbers[name], bits)
            for name, bits in program.fraction_bits
        }
        half = {name: unit[group] / 2 for name, unit in usual.units.items()}
        settings = {name: x[group] for name, x in usual.settings.items()}
        of_array = None if gradient is None else gradient[i]
        results.append(_of_array(program.optimizer, values, half, settings, state.step, of_array))
    return results


def _of_array(
    optimizer: AdditiveOptimizer,
    values: dict[str, jax.Array],
    half: dict[str, jax.Array],
    settings: dict[str, jax.Array],
    done: jax.Array,
    gradient: jax.Array | None,
) -> _Rounding:
    """Return what rounding does, given the numbers of an array, half of their units, and the usual settings.

    With a gradient, a weight whose slots are all 0 moves only as far as rounding may have taken from its increments.
    """
    slots = {name: values[name] for name in optimizer.own_slots}
    step = optimizer.step(slots, settings, done)

    def error(moved: dict[str, jax.Array]) -> jax.Array:
        return jnp.abs(optimizer.step({**slots, **moved}, settings, done) - step)

    errors = {name: error(_moved(optimizer, slots, name, half[name], settings, done)) for name in slots}
    if gradient is not None:
        lost, used = {}, {**slots, **{name: _not_0(slots[name], half[name]) for name in optimizer.divisors}}
        for name in slots:
            increment = optimizer.increment(name, gradient, _without(used, name), settings, done)
            most = jnp.clip(increment / (1 - settings[optimizer.decays[name]]), -half[name], half[name])
            lost[name] = jnp.where(increment == 0, 0, most)
        are_zero = functools.reduce(jnp.logical_and, [x == 0 for x in slots.values()])
        first, *others = slots
        errors = {first: jnp.where(are_zero, error(lost), errors[first])} | {
            name: jnp.where(are_zero, 0, errors[name]) for name in others
        }
    for name in optimizer.divisors:
        errors[name] *= jnp.maximum(1, NEAR_1 / jnp.maximum(1 - settings[optimizer.decays[name]], SMALLEST_GAP))
    errors[WEIGHTS] = jnp.full_like(step, half[WEIGHTS])
    if optimizer.average is not None:
        decay, average = settings[optimizer.decays[optimizer.average]], optimizer.average
        added_up = half[average] * jnp.minimum(1 + done.astype(step.dtype), 1 / (1 - decay))
        errors[average] = jnp.where((values[average] == 0) & (values[WEIGHTS] == 0), 0, added_up)
    return _Rounding(jnp.abs(values[WEIGHTS]), jnp.abs(step), errors)


def _moved(
    optimizer: AdditiveOptimizer,
    slots: dict[str, jax.Array],
    name: str,
    half: jax.Array,
    settings: dict[str, jax.Array],
    done: jax.Array,
) -> dict[str, jax.Array]:
    """Return a slot half a unit larger, and what others would then be whose increments divide by it."""
    moved = {name: slots[name] + half}
    if name in optimizer.divisors:
        # Where the slot is 0, it was taken for half a unit, and is in truth any number between.
        true = jnp.where(slots[name] == 0, half * NEXT_TO_NOTHING, moved[name])
        for other in _without(slots, name):
            used, wanted = (
                optimizer.increment(other, jnp.ones_like(x), _without({**slots, name: x}, other), settings, done)
                for x in (_not_0(slots[name], half), true)
            )
            moved[other] = slots[other] * (wanted / used)
    return moved


def _not_0(divisor: jax.Array, half: jax.Array) -> jax.Array:
    """Return a divisor as exact training uses it: half a unit where it is 0."""
    return jnp.where(divisor == 0, half, divisor)


def _without(slots: dict[str, jax.Array], name: str) -> dict[str, jax.Array]:
    return {other: x for other, x in slots.items() if other != name}
