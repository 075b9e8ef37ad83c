"""Fixed-point numbers in limbs of 32 bits, and the operations on them that can be undone to the bit.

A number with F fraction bits is an integer, of 64 or 96 bits, times 2**-F. Addition is modular and therefore always
undone by subtraction. The caller must check after every addition whether a value left the range (`outside`).

Everything runs in JAX's default 32-bit configuration. The floating-point steps are exact or rounded once, so that
no fusion or contraction by the compiler can change their bits.
"""

import functools

import jax
import jax.numpy as jnp

#: the limbs of an array of numbers, each of the array's shape: int32 with the sign, then one or two of uint32
Fixed = tuple[jax.Array, ...]

LIMB_BITS = 32
MOST_FRACTION_BITS = 84

_RANGE_BITS = 29  # of the first limb; the two left keep one addition of anything that `from_float` gives from wrapping
_MOST_FRACTION_BITS_IN_TWO_LIMBS = 52


def limbs(fraction_bits: int) -> int:
    """Return how many limbs a number has: two where they leave a range of 2**9 or more, else three."""
    return 2 if fraction_bits <= _MOST_FRACTION_BITS_IN_TWO_LIMBS else 3


def limit(fraction_bits: int) -> float:
    """Return the smallest magnitude that is out of range."""
    return 2.0 ** (_RANGE_BITS - _first_fraction_bits(fraction_bits))


def zeros(shape: tuple[int, ...], fraction_bits: int) -> Fixed:
    """Return zeros of this shape."""
    return jnp.zeros(shape, jnp.int32), *(jnp.zeros(shape, jnp.uint32) for _ in range(limbs(fraction_bits) - 1))


def from_float(x: jax.Array, fraction_bits: int) -> Fixed:
    """Return float32 numbers rounded to the nearest fixed-point numbers.

    Where a number is too large, or NaN, the sum of the result and any number in range is `outside`.
    """
    saturated = 2.0 ** (_RANGE_BITS + 1)
    scaled = x * 2.0 ** _first_fraction_bits(fraction_bits)
    scaled = jnp.where(jnp.abs(scaled) < saturated, scaled, saturated)  # NaN too
    digits = [jnp.round(scaled)]
    rest = scaled - digits[0]  # exact, and the rest of the same significand
    for _ in range(limbs(fraction_bits) - 1):
        rest = jnp.minimum(rest, 0.5 - 2.0**-25) * 2.0**LIMB_BITS  # a digit of 2**31 would not fit
        digits.append(jnp.round(rest))
        rest = rest - digits[-1]
    high, *lows = (digit.astype(jnp.int32) for digit in digits)
    # The conversion from signed digits to two's complement: a negative digit borrows one from the digit before it.
    for i in reversed(range(len(lows))):
        borrowed = lows[i] >> (LIMB_BITS - 1)
        if i:
            lows[i - 1] += borrowed
        else:
            high += borrowed
    return high, *(low.astype(jnp.uint32) for low in lows)


def to_float(x: Fixed, fraction_bits: int) -> jax.Array:
    """Return the float32 nearest to each number, up to one more rounding of the last bit."""
    high, *lows = x
    unit = 2.0 ** -_first_fraction_bits(fraction_bits)
    # The conversion from two's complement to signed digits keeps small negative numbers from cancelling.
    digits, carry = [], jnp.zeros_like(lows[-1])
    for low in reversed(lows):
        digit = low + carry
        digits.append(digit.astype(jnp.int32))
        carry = (digit >> (LIMB_BITS - 1)) | (digit < carry).astype(jnp.uint32)
    digits.append(high + carry.astype(jnp.int32))
    terms = [d.astype(jnp.float32) * (unit * 2.0 ** (-LIMB_BITS * i)) for i, d in enumerate(reversed(digits))]
    result = terms[-1]
    for term in reversed(terms[:-1]):
        result = term + result
    return result


def add(x: Fixed, y: Fixed) -> Fixed:
    """Return x + y, modulo the range; `subtract(_, y)` undoes it."""
    total, carry = [], None
    for a, b in zip(reversed(x[1:]), reversed(y[1:]), strict=True):
        low = a + b
        overflowed = low < b
        if carry is not None:
            low = low + carry
            overflowed |= low < carry
        total.append(low)
        carry = overflowed.astype(jnp.uint32)
    assert carry is not None
    return x[0] + y[0] + carry.astype(jnp.int32), *reversed(total)


def subtract(x: Fixed, y: Fixed) -> Fixed:
    """Return x - y, modulo the range; `add(_, y)` undoes it."""
    total, borrow = [], None
    for a, b in zip(reversed(x[1:]), reversed(y[1:]), strict=True):
        low = a - b
        overflowed = low > ~b
        if borrow is not None:
            low = low - borrow
            overflowed |= low > ~borrow
        total.append(low)
        borrow = overflowed.astype(jnp.uint32)
    assert borrow is not None
    return x[0] - y[0] - borrow.astype(jnp.int32), *reversed(total)


def shift_right(x: Fixed, bits: jax.Array) -> Fixed:
    """Return floor(x / 2**bits), for a uint32 scalar below 32; the last `bits` bits of the last limb are lost."""
    high, *lows = x
    above = [high.astype(jnp.uint32), *lows[:-1]]
    # A shift by all 32 bits gives 0 in XLA, as it must where `bits` is 0.
    shifted = [low >> bits | before << (LIMB_BITS - bits) for low, before in zip(lows, above, strict=True)]
    return high >> bits.astype(jnp.int32), *shifted


def shift_left(x: Fixed, bits: jax.Array, lost: jax.Array) -> Fixed:
    """Return the numbers before `shift_right`, given the bits that were lost (uint32, below 2**bits)."""
    high, *lows = x
    below = [*(low >> (LIMB_BITS - bits) for low in lows), lost]
    return (
        high << bits.astype(jnp.int32) | below[0].astype(jnp.int32),
        *(low << bits | after for low, after in zip(lows, below[1:], strict=True)),
    )


def outside(*xs: Fixed) -> jax.Array:
    """Return one boolean: whether any number of these arrays, which have one shape, is out of range."""
    # This takes the bitwise or of all magnitudes, since compilers vectorise it, unlike a maximum of floats.
    either = functools.reduce(jax.lax.bitwise_or, map(_magnitude, xs))
    rows = jax.lax.reduce(either, 0, jax.lax.bitwise_or, range(either.ndim - 1))
    return jnp.any(rows >= 1 << _RANGE_BITS)


def is_outside(x: Fixed) -> jax.Array:
    """Return for each number whether it is out of range."""
    return _magnitude(x) >= 1 << _RANGE_BITS


def equal(x: Fixed, y: Fixed) -> jax.Array:
    """Return one boolean: whether two arrays agree in every bit."""
    return jnp.all(jnp.stack([jnp.all(a == b) for a, b in zip(x, y, strict=True)]))


def _magnitude(x: Fixed) -> jax.Array:
    return x[0] ^ (x[0] >> (LIMB_BITS - 1))


def _first_fraction_bits(fraction_bits: int) -> int:
    return fraction_bits - LIMB_BITS * (limbs(fraction_bits) - 1)
