"""The buffer for the bits that decays would lose.

What decays is kept divided by a scale, one float for all the numbers of an array, and a decay multiplies the scale
alone: `x = scale * content`, so `decay * x = (decay * scale) * content`, and no bit is lost. Once the scale has lost
8 bits, all contents are shifted right by 8, the scale grows by as much, and the bits that are shifted out fill a plane
of one byte a number. So planes hold log2(1 / decay) bits a number and step, the entropy that a decay destroys, and
never more. The decays alone determine what happens at each step (`plan`), so it is known before training starts.

(Maclaurin et al. 2015 multiply each number by a rational decay, algorithm 3, and trade the remainders with one
integer a weight. Here nothing is multiplied, so nothing is rounded either: neither the decays nor the contents.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad_search.training import fixed_point
from hypergrad_search.training.fixed_point import Fixed

PLANE_BITS = 8
SMALLEST_DECAY = 2.0**-PLANE_BITS  # a smaller one could fill more than one plane a step
STRETCH_BITS = 4  # at most so many more are lost before the next chance to fill a plane


class Plan(NamedTuple):
    """The scales and spills of an array that decays, at each step. All fields have shape `(steps,)`.

    The array's value is `scale_before` times its content before the step, and `scale_after` times its content after it.
    Where `spill` is true, contents are shifted and a plane is filled before the step. `filled` (int32) counts the
    planes that were filled earlier. Scales are at most 1, and above 2**-12, or 2**-16 where a single decay is below
    2**-4.
    """

    scale_before: jax.Array
    scale_after: jax.Array
    spill: jax.Array
    filled: jax.Array


#: the bits that are lost and not yet in a plane, the rounding error in them (Kahan), and the number of planes filled
Lost = tuple[jax.Array, jax.Array, jax.Array]


def stretch(log_decay: jax.Array) -> jax.Array:
    """Return the most steps (int32), at least 1, in which no array loses over 4 bits; `log_decay` has any shape."""
    most = jnp.max(_lost_bits(log_decay), initial=0.0)
    return jnp.clip(STRETCH_BITS / most, 1, 2.0**30).astype(jnp.int32)


def plan(log_decay: jax.Array, stretch: jax.Array | int) -> tuple[Plan, jax.Array]:
    """Return the plan for decays, whose natural logarithms have shape `(steps,)`, and how many planes it fills.

    It takes logarithms because 1 - decay can be too small for a float to tell the decay from 1. Planes are filled only
    before steps that are multiples of `stretch`.
    """

    def one_step(state: Lost, now: tuple[jax.Array, jax.Array]) -> tuple[Lost, Plan]:
        lost, error, filled = state
        step, bits = now
        spill = (step % stretch == 0) & (lost >= PLANE_BITS)
        before = jnp.where(spill, lost - PLANE_BITS, lost)  # exact
        compensated = bits - error
        after = before + compensated
        error_after = (after - before) - compensated
        planned = Plan(_power(before, error), _power(after, error_after), spill, filled)
        return (after, error_after, filled + spill.astype(jnp.int32)), planned

    start = (jnp.float32(0), jnp.float32(0), jnp.int32(0))
    now = (jnp.arange(log_decay.shape[0], dtype=jnp.int32), _lost_bits(log_decay))
    (_, _, filled), planned = jax.lax.scan(one_step, start, now)
    return planned, filled


def spill(content: Fixed, due: jax.Array) -> tuple[Fixed, jax.Array]:
    """Return the contents shifted right, if `due`, and the plane (uint8) of the bits that are shifted out."""
    return fixed_point.shift_right(content, _bits(due)), content[-1].astype(jnp.uint8)


def unspill(content: Fixed, plane: jax.Array, due: jax.Array) -> Fixed:
    """Return the contents as they were before `spill`."""
    return fixed_point.shift_left(content, _bits(due), jnp.where(due, plane, 0).astype(jnp.uint32))


def _bits(due: jax.Array) -> jax.Array:
    return jnp.where(due, jnp.uint32(PLANE_BITS), jnp.uint32(0))


def _lost_bits(log_decay: jax.Array) -> jax.Array:
    bits: jax.Array = log_decay * jnp.float32(-1.4426950408889634)
    return bits


def _power(bits: jax.Array, error: jax.Array) -> jax.Array:
    """Return 2**(error - bits), to about the last bit: an exponential of at most ln 2 is halved exactly."""
    whole = jnp.floor(bits)
    halved = ((127 - whole).astype(jnp.int32) << 23).view(jnp.float32)
    power: jax.Array = jnp.exp(((whole - bits) + error) * jnp.float32(0.6931471805599453)) * halved
    return power
