"""Where the bits go that a multiplication by a decay would lose, and how much room they take.

Each weight has a store of 16 bits, which a decay of n / 2**16 makes grow by log2(2**16 / n) bits a step. How large
its content can be follows from the decays alone (`plan`), the same for all weights: when it may pass 16 bits, the
low 8 bits of all stores move to a plane at once. So the planes are dense, their number is known before training
starts, and no weight needs a pointer. (Moving all 16 bits would waste more: the bound is rounded up at each step,
which costs much where a store is nearly empty, and little where 8 bits stay behind.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.training import fixed_point
from hypergrad_search.training.fixed_point import Fixed

DENOMINATOR = 1 << 16
PLANE_BITS = 8
SMALLEST_DECAY = 2.0**-PLANE_BITS  # a smaller one could fill more than one plane a step
LARGEST_DECAY = 1.0


class Plan(NamedTuple):
    """What happens at each step to a slot that decays, and to its buffer; all of shape `(steps,)`.

    The slot is multiplied by `numerator` (uint32) / 2**16, and stands for `scale_before` times its content before
    the step, `scale_after` times it after; `spill` says whether a plane is filled after the step, and `filled`
    (int32) how many were filled before it.
    """

    numerator: jax.Array
    scale_before: jax.Array
    scale_after: jax.Array
    spill: jax.Array
    filled: jax.Array


Carry = tuple[jax.Array, jax.Array, jax.Array]


class BitBuffer(NamedTuple):
    """`store` is uint16 of the weights' shape, `planes` uint8 of shape `(capacity, *shape)`."""

    store: jax.Array
    planes: jax.Array


def plan(decay: jax.Array) -> tuple[Plan, jax.Array]:
    """Turn decays (float32, shape `(steps,)`) into multiples of 2**-16 and scales, and find when the stores overflow.

    The slot is kept divided by a scale, one number for all weights, that takes up the rounding of its decays:
    `scale_after = scale_before * decay * 2**16 / numerator`. The numerator is rounded so as to bring the scale back
    to 1, so that it stays within 2**-8 of it and what is computed is the decay asked for, not its rounding.
    Returns the plan and the number of planes that it fills.
    """

    def step(state: Carry, decay: jax.Array) -> tuple[Carry, Plan]:
        excess, largest, filled = state  # the scale less 1, which floats hold more precisely
        wanted = decay * DENOMINATOR  # exact
        numerator = jnp.clip(jnp.round(wanted + wanted * excess), SMALLEST_DECAY * DENOMINATOR, DENOMINATOR)
        excess_after = ((wanted - numerator) + wanted * excess) / numerator
        numerator = numerator.astype(jnp.uint32)
        # the largest content of a store: multiply() with the largest store and the largest last 16 bits
        largest, _ = fixed_point.divide_by_scalar(largest << 16 | jnp.uint32(0xFFFF), numerator)
        spill = largest > 0xFFFF
        planned = Plan(numerator, 1 + excess, 1 + excess_after, spill, filled)
        return (excess_after, jnp.where(spill, largest >> PLANE_BITS, largest), filled + spill), planned

    start = (jnp.float32(0), jnp.uint32(0), jnp.int32(0))
    (_, _, filled), planned = jax.lax.scan(step, start, decay)
    return planned, filled


def roomy_capacity(planes: int) -> int:
    """A capacity of at least `planes` from a coarse ladder, 16 and then eight to the octave: few programs compile."""
    rung = max(16, 1 << (max(planes, 1) - 1).bit_length()) // 16
    return max(16, -(-planes // rung) * rung)


def empty(shape: tuple[int, ...], capacity: int) -> BitBuffer:
    """A buffer with nothing in it; with `capacity` 0 the bits are dropped, for training that is never reversed."""
    return BitBuffer(jnp.zeros(shape, jnp.uint16), jnp.zeros((capacity, *shape), jnp.uint8))


def decay(x: Fixed, buffer: BitBuffer, plan: Plan) -> tuple[Fixed, BitBuffer]:
    """Multiply by the decay of one step (a `Plan` of scalars), keeping the lost bits."""
    x, store = fixed_point.multiply(x, buffer.store.astype(jnp.uint32), plan.numerator)
    planes = buffer.planes
    if len(planes):
        # always written, never branched on: a branch would copy the planes
        index = jnp.minimum(plan.filled, len(planes) - 1)
        planes = planes.at[index].set(jnp.where(plan.spill, store.astype(jnp.uint8), planes[index]))
    return x, BitBuffer(jnp.where(plan.spill, store >> PLANE_BITS, store).astype(jnp.uint16), planes)


def undo_decay(x: Fixed, buffer: BitBuffer, plan: Plan) -> tuple[Fixed, BitBuffer]:
    """The inverse of `decay`."""
    store = buffer.store.astype(jnp.uint32)
    if len(buffer.planes):
        index = jnp.minimum(plan.filled, len(buffer.planes) - 1)
        store = jnp.where(plan.spill, store << PLANE_BITS | buffer.planes[index], store)
    x, store = fixed_point.divide(x, store, plan.numerator)
    return x, BitBuffer(store.astype(jnp.uint16), buffer.planes)
