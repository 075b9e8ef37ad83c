"""Fixed-point numbers in two limbs, and the operations on them that can be undone to the bit.

A number is `high * 2**-24` and a tail of further bits `low`, an unsigned integer: 16 of them for weights, 32 for
what is multiplied by a decay, because each multiplication replaces the last 16 by others. So both have a range of
+-128 and a resolution of 2**-40. Addition is modular and therefore always undone by subtraction; whether a value
left the range is the caller's to check (`LIMIT` leaves room for one addition of two numbers that are within it).

Everything runs in JAX's default 32-bit configuration. The floating-point steps are exact or rounded once, so that
no fusion or contraction by the compiler can change their bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FRACTION_BITS = 24
LIMIT = 64.0
WEIGHT_TAIL = jnp.uint16
SLOT_TAIL = jnp.uint32

_HALF = 16
_HALF_MASK = (1 << _HALF) - 1


class Fixed(NamedTuple):
    """An array of fixed-point numbers: `high` is int32, `low` uint16 or uint32, both of the array's shape."""

    high: jax.Array
    low: jax.Array


def from_float(x: jax.Array, tail: Any) -> Fixed:
    """Round float32 towards zero, to the bits of `tail`. Out of range, or NaN, gives 0: check the float."""
    scaled = jnp.where(jnp.abs(x) < 2 * LIMIT, x, 0.0) * 2.0**FRACTION_BITS
    whole = jnp.trunc(scaled)
    low = (jnp.abs(scaled - whole) * 2.0 ** _bits(tail)).astype(tail)  # exact: the end of the same significand
    high = whole.astype(jnp.int32)
    negative = x < 0
    return Fixed(high - (negative & (low != 0)), jnp.where(negative, -low, low))


def to_float(x: Fixed) -> jax.Array:
    """The float32 that is nearest, up to one more rounding, or 2**-48 for small negative numbers."""
    tail = x.low.astype(jnp.float32) * 2.0 ** -(FRACTION_BITS + _bits(x.low.dtype))
    return x.high.astype(jnp.float32) * 2.0**-FRACTION_BITS + tail


def zeros(shape: tuple[int, ...], tail: Any) -> Fixed:
    """Fixed-point zeros."""
    return Fixed(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, tail))


def add(x: Fixed, y: Fixed) -> Fixed:
    """x + y, modulo the range; undone by `subtract(_, y)`."""
    low = x.low + y.low
    return Fixed(x.high + y.high + (low < x.low), low)


def subtract(x: Fixed, y: Fixed) -> Fixed:
    """x - y, modulo the range; undone by `add(_, y)`."""
    return Fixed(x.high - y.high - (x.low < y.low), x.low - y.low)


def multiply(x: Fixed, store: jax.Array, numerator: jax.Array) -> tuple[Fixed, jax.Array]:
    """x * numerator / 2**16, the lost bits traded with `store`; undone by `divide`.

    The last 16 bits, which the multiplication would push out, go into `store` (uint32 below 2**16, one number for
    each weight), and log2(numerator) bits come back out of it to fill the room that the multiplication makes: a
    bijection (Maclaurin et al. 2015, algorithm 3, in limbs). `numerator` is one uint32 from 2 to 2**16, the same
    for all weights; the tail of `x` is 32 bits. Returns the product and the new store, of up to 32 bits.
    """
    store, filling = divide_by_scalar(store << _HALF | (x.low & _HALF_MASK), numerator)
    last = (x.low >> _HALF) * numerator + filling
    middle = (x.high & _HALF_MASK).astype(jnp.uint32) * numerator + (last >> _HALF)
    high = (x.high >> _HALF) * numerator.astype(jnp.int32) + (middle >> _HALF).astype(jnp.int32)
    return Fixed(high, middle << _HALF | (last & _HALF_MASK)), store


def divide(x: Fixed, store: jax.Array, numerator: jax.Array) -> tuple[Fixed, jax.Array]:
    """Undo `multiply`: the arguments are its results, and the results its arguments."""
    # long division, 16 bits a place; high may be negative: shift it by a multiple of the numerator
    shift = divide_by_scalar(jnp.uint32((1 << 31) - 1), numerator)[0] + 1
    first, rest = divide_by_scalar(x.high.astype(jnp.uint32) + shift * numerator, numerator)
    second, rest = divide_by_scalar(rest << _HALF | x.low >> _HALF, numerator)
    third, filling = divide_by_scalar(rest << _HALF | (x.low & _HALF_MASK), numerator)
    high = ((first - shift) << _HALF) + second
    store = store * numerator + filling
    return Fixed(high.astype(jnp.int32), third << _HALF | (store & _HALF_MASK)), store >> _HALF


def divide_by_scalar(x: jax.Array, divisor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of uint32 numbers by one uint32 divisor from 2 to 2**16, without integer division.

    Processors divide vectors of floats but not of integers. The float quotient is off by at most
    `3 * 2**-24 * x / divisor + 1`, so that the remainder it leaves is small enough for a second float quotient to
    be off by at most one, which a comparison settles: the result is exact.
    """
    signed_divisor = divisor.astype(jnp.int32)
    inverse = 1.0 / divisor.astype(jnp.float32)
    quotient = (x.astype(jnp.float32) * inverse).astype(jnp.uint32)
    remainder = (x - quotient * divisor).astype(jnp.int32)
    correction = jnp.floor(remainder.astype(jnp.float32) * inverse).astype(jnp.int32)
    remainder -= correction * signed_divisor
    last = (remainder >= signed_divisor).astype(jnp.int32) - (remainder < 0).astype(jnp.int32)
    quotient += (correction + last).astype(jnp.uint32)
    return quotient, (remainder - last * signed_divisor).astype(jnp.uint32)


def equal(x: Fixed, y: Fixed) -> jax.Array:
    """Whether two arrays agree in every bit: one boolean."""
    return jnp.all((x.high == y.high) & (x.low == y.low))


def _bits(tail: Any) -> int:
    return jnp.iinfo(tail).bits
