import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search.training import bit_buffer, fixed_point
from hypergrad_search.training.fixed_point import SLOT_TAIL, WEIGHT_TAIL, Fixed

DIVISORS = [2, 3, 7, 255, 256, 257, 1000, 32768, 58982, 65470, 65535, 65536]
N = 20_000


def integers(x: Fixed) -> np.ndarray:
    """The numbers as Python integers, in units of the last bit."""
    bits = jnp.iinfo(x.low.dtype).bits
    return np.asarray(x.high).astype(object) * 2**bits + np.asarray(x.low).astype(object)


def some_numbers(seed: int, tail: object) -> Fixed:
    rng = np.random.default_rng(seed)
    high = rng.integers(-(2**31), 2**31, N).astype(np.int32)
    high[:3] = [-(2**31), 2**31 - 1, -1]
    low = rng.integers(0, jnp.iinfo(tail).max, N, dtype=np.uint64, endpoint=True)
    return Fixed(jnp.asarray(high), jnp.asarray(low.astype(np.dtype(tail))))


@pytest.mark.parametrize("divisor", DIVISORS)
def test_division_by_a_scalar_is_exact(divisor: int) -> None:
    rng = np.random.default_rng(divisor)
    x = rng.integers(0, 2**32, N, dtype=np.uint32)
    multiples = (rng.integers(0, 2**32 // divisor, N, dtype=np.uint64) * divisor).astype(np.uint32)
    x = np.concatenate([x, multiples, multiples - 1, np.array([0, 1, 2**32 - 1], np.uint32)])
    quotient, remainder = jax.jit(fixed_point.divide_by_scalar)(x, jnp.uint32(divisor))
    np.testing.assert_array_equal(quotient, x // np.uint32(divisor))
    np.testing.assert_array_equal(remainder, x % np.uint32(divisor))


@pytest.mark.parametrize("numerator", DIVISORS)
def test_divide_undoes_multiply_to_the_bit(numerator: int) -> None:
    x = some_numbers(numerator, SLOT_TAIL)
    store = jnp.asarray(np.random.default_rng(1).integers(0, 2**16, N, dtype=np.uint32))
    product, stored = jax.jit(fixed_point.multiply)(x, store, jnp.uint32(numerator))
    back, store_back = jax.jit(fixed_point.divide)(product, stored, jnp.uint32(numerator))
    assert (integers(back) == integers(x)).all()
    np.testing.assert_array_equal(store_back, store)


@pytest.mark.parametrize("numerator", DIVISORS)
def test_multiply_is_right_but_for_the_last_16_bits(numerator: int) -> None:
    x = some_numbers(numerator, SLOT_TAIL)
    product, _ = fixed_point.multiply(x, jnp.zeros(N, jnp.uint32), jnp.uint32(numerator))
    error = integers(product) * 2**16 - integers(x) * numerator
    assert (abs(error) < 2**32).all()


@pytest.mark.parametrize("tail", [WEIGHT_TAIL, SLOT_TAIL])
def test_subtract_undoes_add_even_across_the_range(tail: object) -> None:
    x, y = some_numbers(1, tail), some_numbers(2, tail)
    total = fixed_point.add(x, y)
    modulus = 2 ** (32 + jnp.iinfo(tail).bits)
    assert ((integers(total) - integers(x) - integers(y)) % modulus == 0).all()
    assert (integers(fixed_point.subtract(total, y)) == integers(x)).all()


@pytest.mark.parametrize("tail", [WEIGHT_TAIL, SLOT_TAIL])
def test_floats_are_rounded_towards_zero(tail: object) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=N) * 10.0 ** rng.uniform(-13, 1, N)).clip(-127, 127).astype(np.float32)
    scale = 2.0 ** (24 + jnp.iinfo(tail).bits)
    fixed = jax.jit(lambda x: fixed_point.from_float(x, tail))(x)
    assert (integers(fixed) == np.array([int(float(v) * scale) for v in x], dtype=object)).all()
    np.testing.assert_allclose(fixed_point.to_float(fixed), x, rtol=2.0**-23, atol=2.0**-48 + 1 / scale)


def test_what_fits_survives_the_round_trip() -> None:
    x = jnp.asarray([0.0, 1.0, -1.0, 0.15625, -63.5, 2.0**-40, -(2.0**-40)], jnp.float32)
    for tail in (WEIGHT_TAIL, SLOT_TAIL):
        np.testing.assert_array_equal(fixed_point.to_float(fixed_point.from_float(x, tail)), x)


def test_not_a_number_becomes_zero_bits() -> None:
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 1e9], jnp.float32)
    assert fixed_point.equal(fixed_point.from_float(x, WEIGHT_TAIL), fixed_point.zeros((4,), WEIGHT_TAIL))


@pytest.mark.parametrize("decay", [0.004, 0.5, 0.9, 0.98, 0.999])
def test_scales_take_up_the_rounding_of_decays(decay: float) -> None:
    plan, _ = bit_buffer.plan(jnp.full(1000, decay, jnp.float32))
    numerator, before, after = (np.asarray(x, np.float64) for x in plan[:3])
    computed = numerator / 2**16 * after / before
    np.testing.assert_allclose(computed, np.float32(decay), rtol=2e-7)
    np.testing.assert_allclose(after, 1, atol=2.0**-8)


@pytest.mark.parametrize("decay", [0.004, 0.5, 0.9, 0.98, 0.999, 1.0])
def test_a_buffer_survives_the_worst_content(decay: float) -> None:
    """All ones is what fills the stores fastest: every bit must come back, from as many planes as planned."""
    steps = 300
    plan, planes = bit_buffer.plan(jnp.full(steps, decay, jnp.float32))
    buffer = bit_buffer.empty((1,), max(int(planes), 1))
    ones = jnp.full((1,), 0xFFFF, jnp.uint32)
    x = Fixed(jnp.full((1,), 12345, jnp.int32), ones)

    def forward(carry: tuple, now: bit_buffer.Plan) -> tuple:
        x, buffer = bit_buffer.decay(*carry, now)
        return (Fixed(x.high, x.low | 0xFFFF), buffer), Fixed(x.high, x.low)

    (_, buffer), results = jax.lax.scan(forward, (x, buffer), plan)

    def backward(carry: tuple, scanned: tuple) -> tuple:
        buffer, exact = carry
        result, before, now = scanned
        recovered, buffer = bit_buffer.undo_decay(result, buffer, now)
        return (buffer, exact & fixed_point.equal(recovered, before)), None

    with_ones = Fixed(results.high, results.low | 0xFFFF)
    befores = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), x, with_ones)
    (buffer, exact), _ = jax.lax.scan(backward, (buffer, jnp.bool(True)), (results, befores, plan), reverse=True)
    assert bool(exact)
    assert (buffer.store == 0).all()
