import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search.training import bit_buffer, fixed_point
from hypergrad_search.training.bit_buffer import PLANE_BITS, Plan

Array = np.ndarray[Any, Any]


def plan(decays: Array) -> tuple[Plan, int, int]:
    logs = jnp.log(jnp.asarray(decays, jnp.float32))
    stretch = int(bit_buffer.stretch(logs))
    planned, planes = jax.jit(bit_buffer.plan)(logs, stretch)
    return jax.device_get(planned), int(planes), stretch


SCHEDULES = {
    "0.5": np.full(4000, 0.5),
    "0.9": np.full(4000, 0.9),
    "0.98": np.full(4000, 0.98),
    "0.999": np.full(20_000, 0.999),
    "warm-up": np.linspace(0.5, 0.999, 4000),
    "random": np.random.default_rng(0).uniform(0.3, 0.999, 4000),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_planes_hold_what_entropy_demands(name: str) -> None:
    """Never more than was lost, and less only by what still fits into the numbers: at most 12 bits."""
    decays = SCHEDULES[name]
    _, planes, _ = plan(decays)
    entropy = float(np.sum(np.log2(1 / decays)))
    assert entropy - 12 <= planes * PLANE_BITS <= entropy
    assert planes * PLANE_BITS >= 0.95 * entropy or entropy < 240


@pytest.mark.parametrize("name", SCHEDULES)
def test_scales_follow_the_decays_however_long(name: str) -> None:
    decays = SCHEDULES[name].astype(np.float32).astype(float)
    planned, planes, stretch = plan(decays)
    before, after = planned.scale_before.astype(float), planned.scale_after.astype(float)
    np.testing.assert_allclose(after / before, decays, rtol=3e-7)
    # 2**8 for each plane; as if decays were wrong by less than a tenth of a float's last bit
    true = np.exp2(np.sum(np.log2(decays)) + PLANE_BITS * planes)
    assert after[-1] == pytest.approx(true, rel=1e-8 * len(decays) + 1e-6)
    assert (after <= 1).all()
    assert (after > 2.0**-12).all()
    assert stretch == max(1, int(bit_buffer.STRETCH_BITS / np.max(-np.log2(decays))))


def test_planes_are_filled_between_stretches_only() -> None:
    planned, planes, stretch = plan(SCHEDULES["random"])
    at = np.flatnonzero(planned.spill)
    assert len(at) == planes
    assert (at % stretch == 0).all()
    np.testing.assert_array_equal(planned.filled, np.cumsum(planned.spill) - planned.spill)


@pytest.mark.parametrize("decay", [bit_buffer.SMALLEST_DECAY, 1.0])
def test_the_extremes(decay: float) -> None:
    planned, planes, _ = plan(np.full(1000, decay))
    assert abs(planes - 1000 * math.log2(1 / decay) / PLANE_BITS) <= 1
    assert (planned.scale_after > 2.0**-17).all()


def test_a_decay_that_a_float_cannot_tell_from_1() -> None:
    rate = 1e-8
    planned, _ = bit_buffer.plan(jnp.full(100_000, jnp.log1p(-jnp.float32(rate))), 1000)
    assert 1 - float(planned.scale_after[-1]) == pytest.approx(1e-3, rel=1e-3)


def test_what_is_not_due_stays() -> None:
    x = fixed_point.from_float(jnp.linspace(-3, 3, 7, dtype=jnp.float32), 44)
    for really in (False, True):
        shifted, plane = bit_buffer.spill(x, jnp.bool(really))
        assert bool(fixed_point.equal(shifted, x)) != really
        assert bool(fixed_point.equal(bit_buffer.unspill(shifted, plane, jnp.bool(really)), x))
