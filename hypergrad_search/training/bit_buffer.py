"""Where the bits go that a decay would lose, and how much room they take.

What decays is kept divided by a scale, one float for all the numbers of an array, and a decay multiplies the scale
alone: `x = scale * content`, so `decay * x = (decay * scale) * content`, and no bit is lost. Once the scale has lost
8 bits, all contents are shifted right by 8, the scale is made larger for it, and the bits shifted out fill a plane
of one byte a number. So planes hold log2(1 / decay) bits a number and step, the entropy that a decay destroys, and
never more; what happens at which step follows from the decays alone (`plan`), and is known before training starts.

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
STRETCH_BITS = 4  # how many more may be lost before the next chance to fill a plane


class Plan(NamedTuple):
    """What happens at each step to an array that decays. All fields have shape `(steps,)`.

    The array stands for `scale_before` times its content before the step, `scale_after` times it after. Where
    `spill`, contents are shifted, and a plane is filled, before the step; `filled` (int32) planes are full before that.
    Scales are at most 1, and above 2**-12, or 2**-16 where a single decay is below 2**-4.
    """

    scale_before: jax.Array
    scale_after: jax.Array
    spill: jax.Array
    filled: jax.Array


#: the bits lost and not yet in a plane, the rounding error in them (Kahan), and the planes filled
Lost = tuple[jax.Array, jax.Array, jax.Array]


def stretch(log_decay: jax.Array) -> jax.Array:
    """Return the most steps (int32), at least 1, in which no array loses more than 4 bits; decays have any shape."""
    most = jnp.max(_lost_bits(log_decay), initial=0.0)
    return jnp.clip(STRETCH_BITS / most, 1, 2.0**30).astype(jnp.int32)


def plan(log_decay: jax.Array, stretch: jax.Array | int) -> tuple[Plan, jax.Array]:
    """Turn the natural logarithms of decays, shape `(steps,)`, into scales, and find when planes are filled.

    Logarithms, because 1 - decay can be too small for a float to tell the decay from 1. Planes are filled before
    multiples of `stretch` steps only. Returns the plan and the number of planes that it fills.
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
    now = (jnp.arange(log_decay.shape[0]), _lost_bits(log_decay))
    (_, _, filled), planned = jax.lax.scan(one_step, start, now)
    return planned, filled


def spill(content: Fixed, due: jax.Array) -> tuple[Fixed, jax.Array]:
    """Return the contents shifted right, and the plane (uint8) of bits shifted out; unless `due`, contents stay."""
    return fixed_point.shift_right(content, _bits(due)), content[-1].astype(jnp.uint8)


def unspill(content: Fixed, plane: jax.Array, due: jax.Array) -> Fixed:
    """Undo `spill`."""
    return fixed_point.shift_left(content, _bits(due), jnp.where(due, plane, 0).astype(jnp.uint32))


def _bits(due: jax.Array) -> jax.Array:
    return jnp.where(due, jnp.uint32(PLANE_BITS), jnp.uint32(0))


def _lost_bits(log_decay: jax.Array) -> jax.Array:
    bits: jax.Array = log_decay * jnp.float32(-1.4426950408889634)
    return bits


def _power(bits: jax.Array, error: jax.Array) -> jax.Array:
    """Return 2**(error - bits), right to about the last bit: an exponential of at most ln 2, halved exactly."""
    whole = jnp.floor(bits)
    halved = ((127 - whole).astype(jnp.int32) << 23).view(jnp.float32)
    power: jax.Array = jnp.exp(((whole - bits) + error) * jnp.float32(0.6931471805599453)) * halved
    return power
