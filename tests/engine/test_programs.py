"""A process keeps a limited number of compiled programs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hypergrad_search.programs import MOST_KEPT, compiled, planned_memory


def test_the_last_programs_are_kept() -> None:
    traced: list[int] = []

    @compiled(static=1)
    def power(exponent: int, x: jax.Array) -> jax.Array:
        traced.append(exponent)
        return x**exponent

    for exponent in range(MOST_KEPT + 1):
        assert power(exponent, jnp.float32(2)) == 2.0**exponent
    power(MOST_KEPT, jnp.float32(3))
    assert traced == list(range(MOST_KEPT + 1))
    power(0, jnp.float32(3))
    assert traced[-1] == 0


def test_planned_memory_counts_arguments_results_and_all_in_between() -> None:
    @compiled(static=1)
    def spread(times: int, x: jax.Array) -> jax.Array:
        # A sum of a sort needs the sorted array in memory.
        return jnp.sum(jnp.sort(jnp.tile(x, (times, 1)), axis=0))

    with planned_memory() as planned:
        spread(1, jnp.zeros(1000))
        spread(100, jnp.zeros(1000))
    spread(2, jnp.zeros(1000))
    small, large = planned
    assert 4_000 <= small < 20_000
    assert 404_000 <= large < 1_300_000


@pytest.mark.slow
def test_memory_maps_do_not_grow_with_the_programs() -> None:
    """A process that runs out of memory maps dies; each compiled program takes some."""
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("this system does not tell a process's memory maps")

    @compiled(static=1)
    def shifted(by: int, x: jax.Array) -> jax.Array:
        shifted: jax.Array = jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y + by), x)
        return shifted

    def maps_after(numbers: range) -> int:
        for number in numbers:
            shifted(number, jnp.float32(0))
        return len(path.read_text().splitlines())

    full = maps_after(range(MOST_KEPT))
    assert maps_after(range(MOST_KEPT, 3 * MOST_KEPT)) - full < MOST_KEPT


def test_memory_is_donated_by_its_place_in_the_signature() -> None:
    @compiled(static=1, donate=(2,))
    def added(by: int, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y + by

    x, y = jnp.ones(3), jnp.ones(3)
    added(1, x, y)
    assert not x.is_deleted()
    assert y.is_deleted()
