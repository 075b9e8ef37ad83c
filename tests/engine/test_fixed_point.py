import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search.training import fixed_point
from hypergrad_search.training.fixed_point import Fixed

Array = np.ndarray[Any, Any]

N = 5_000
FRACTION_BITS = [40, 44, 48, 52, 60, 76, 84]  # two limbs up to 52, three beyond


def integers(x: Fixed) -> Array:
    """The numbers as Python integers, in units of the last bit."""
    total: Array = np.asarray(x[0]).astype(object)
    for limb in x[1:]:
        total = total * 2**32 + np.asarray(limb).astype(object)
    return total


def some_numbers(seed: int, fraction_bits: int) -> Fixed:
    rng = np.random.default_rng(seed)
    high = rng.integers(-(2**31), 2**31, N).astype(np.int32)
    high[: N // 4] = rng.integers(-1, 1, N // 4)  # small ones, of both signs
    lows = [rng.integers(0, 2**32, N).astype(np.uint32) for _ in range(fixed_point.limbs(fraction_bits) - 1)]
    for low in lows:
        low[:8] = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 0, 2**32 - 1]
    return jnp.asarray(high), *map(jnp.asarray, lows)


def some_floats(fraction_bits: int) -> Array:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=N) * 10.0 ** rng.uniform(-20, 2, N), [0.0, 0.5, -0.5, 2**-17, -(2**-17)]])
    x = x.astype(np.float32)
    return np.asarray(x[np.abs(x) < fixed_point.limit(fraction_bits)])


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_subtract_undoes_add_even_across_the_range(fraction_bits: int) -> None:
    x, y = some_numbers(1, fraction_bits), some_numbers(2, fraction_bits)
    total = jax.jit(fixed_point.add)(x, y)
    modulus = 2 ** (32 * fixed_point.limbs(fraction_bits))
    assert ((integers(total) - integers(x) - integers(y)) % modulus == 0).all()
    assert (integers(jax.jit(fixed_point.subtract)(total, y)) == integers(x)).all()


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
@pytest.mark.parametrize("bits", [0, 8])
def test_a_shift_is_a_division_and_can_be_undone(fraction_bits: int, bits: int) -> None:
    x = some_numbers(3, fraction_bits)
    shifted = jax.jit(fixed_point.shift_right)(x, jnp.uint32(bits))
    assert (integers(shifted) == integers(x) // 2**bits).all()
    lost = x[-1] & jnp.uint32(2**bits - 1)
    assert bool(fixed_point.equal(jax.jit(fixed_point.shift_left)(shifted, jnp.uint32(bits), lost), x))


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_from_float_rounds_to_nearest(fraction_bits: int) -> None:
    x = some_floats(fraction_bits)
    ours = integers(jax.jit(fixed_point.from_float, static_argnums=1)(x, fraction_bits))
    for number, value in zip(ours, x.tolist(), strict=True):
        exact = Fraction(value) * 2**fraction_bits
        # half a bit, and where a digit would be just too large, no more than half of a float's last bit
        assert abs(number - exact) <= max(Fraction(1, 2), abs(exact) * Fraction(1, 2**24))


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_to_float_is_right_to_the_last_bit_for_either_sign(fraction_bits: int) -> None:
    x = some_numbers(4, fraction_bits)
    floats = np.asarray(jax.jit(fixed_point.to_float, static_argnums=1)(x, fraction_bits))
    for value, number in zip(floats.tolist(), integers(x), strict=True):
        exact = Fraction(int(number), 2**fraction_bits)
        assert abs(Fraction(value) - exact) <= abs(exact) * Fraction(2, 2**24)


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_what_does_not_fit_is_outside_whatever_it_is_added_to(fraction_bits: int, value: float) -> None:
    limit = fixed_point.limit(fraction_bits)
    within = fixed_point.from_float(jnp.array([-0.999, -0.5, 0.0, 0.5, 0.999], jnp.float32) * limit, fraction_bits)
    assert not bool(fixed_point.outside(within))
    for i in range(5):
        one = tuple(limb[i : i + 1] for limb in within)
        added = fixed_point.add(one, fixed_point.from_float(jnp.full(1, value, jnp.float32), fraction_bits))
        assert bool(fixed_point.outside(added))
        assert bool(fixed_point.outside(one, added))


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_the_limit_is_the_first_number_outside(fraction_bits: int) -> None:
    limit = fixed_point.limit(fraction_bits)
    for value, outside in [(limit, True), (limit * (1 - 2**-20), False), (-limit * (1 - 2**-20), False)]:
        x = fixed_point.from_float(jnp.full(3, value, jnp.float32), fraction_bits)
        assert bool(fixed_point.outside(x)) == outside
        assert np.asarray(fixed_point.is_outside(x)).tolist() == [outside] * 3


def test_a_changed_bit_is_noticed() -> None:
    x = some_numbers(5, 76)
    for limb in range(3):
        changed = list(x)
        changed[limb] = x[limb].at[17].set(x[limb][17] ^ 1)
        assert not bool(fixed_point.equal(x, tuple(changed)))
    assert bool(fixed_point.equal(x, x))
