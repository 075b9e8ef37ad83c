from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hypergrad_search.search import QuasiNewton, SignSteps, TrustRegion

Start = Callable[[np.ndarray, float, np.ndarray], TrustRegion]
QUASI_NEWTON, SIGN_STEPS = QuasiNewton(), SignSteps()
BOTH = pytest.mark.parametrize("start", [QUASI_NEWTON.around, SIGN_STEPS.around])


def test_a_first_step_goes_against_every_sign_and_stays_in_the_box() -> None:
    region = QUASI_NEWTON.around(np.array([0.5, 0.5, 0.05, 0.5]), 1.0, np.array([1e-9, -1e9, 1.0, 0.0]))
    r = QUASI_NEWTON.radii.start
    np.testing.assert_allclose(region.step(), [0.5 - r, 0.5 + r, 0.0, 0.5])


def test_signs_are_soft_and_stay_in_the_box() -> None:
    """A step is half of the radius where the gradient has its median size, more where it is larger, and else less."""
    gradient = np.array([1e-9, -1e9, 1.0, 0.0, -1.0, 3.0])
    region = SIGN_STEPS.around(np.array([0.5, 0.5, 0.02, 0.5, 0.5, 0.5]), 1.0, gradient)
    r = SIGN_STEPS.radii.start
    np.testing.assert_allclose(region.step(), [0.5, 0.5 + r, 0.0, 0.5, 0.5 + r / 2, 0.5 - 0.75 * r], rtol=1e-6)
    np.testing.assert_array_equal(SIGN_STEPS.around(region.point, 1.0, np.zeros(6)).step(), region.point)


def test_what_is_stuck_at_a_bound_does_not_count() -> None:
    """However large its gradient is, the others' steps are as long as without it, and so they are after a rejection."""
    free = SIGN_STEPS.around(np.full(2, 0.5), 1.0, np.array([1.0, -1.0]))
    among = SIGN_STEPS.around(np.array([0.5, 0.5, 0.0, 0.0, 1.0]), 1.0, np.array([1.0, -1.0, 1e3, 1e3, -1e3]))
    np.testing.assert_array_equal(among.step(), [*free.step(), 0.0, 0.0, 1.0])
    assert among.length(among.step()) == pytest.approx(1)
    assert among.reject(among.step()).reach == pytest.approx(free.reject(free.step()).reach)


def test_radii_grow_where_signs_stay_and_shrink_where_they_flip() -> None:
    region = SIGN_STEPS.around(np.full(3, 0.5), 1.0, np.array([1.0, 1.0, 1.0]))
    moved = region.accept(np.full(3, 0.4), 0.9, np.array([2.0, -2.0, 0.0]))
    np.testing.assert_allclose(moved.radii / region.radii, [SIGN_STEPS.growth, SIGN_STEPS.shrinkage, 1.0])
    assert moved.value == 0.9


@pytest.mark.parametrize(("value", "grows"), [(0.8, True), (0.99, False)])
def test_the_radius_grows_where_the_model_was_right(value: float, grows: bool) -> None:
    region = QUASI_NEWTON.around(np.full(2, 0.5), 1.0, np.array([1.0, -1.0]))  # the model promises 0.8
    moved = region.accept(region.step(), value, np.array([0.9, -1.1]))
    assert moved.reach == pytest.approx((QUASI_NEWTON.growth if grows else 1) * region.reach)


def test_the_model_learns_a_quadratic() -> None:
    """After some steps in four dimensions, the model has found the minimum."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    matrix, optimum = root @ root.T + np.eye(4), rng.uniform(0.45, 0.55, 4)

    def slope(x: np.ndarray) -> np.ndarray:
        return matrix @ (x - optimum)

    region = QUASI_NEWTON.around(np.full(4, 0.5), 1.0, slope(np.full(4, 0.5)))
    for _ in range(30):
        point = region.step()
        region = region.accept(point, 0.0, slope(point))
    assert np.abs(region.point - optimum).max() < 1e-4


@BOTH
def test_rejection_shrinks_until_the_region_is_spent(start: Start) -> None:
    region = start(np.full(2, 0.5), 1.0, np.ones(2))
    for rejections in range(50):
        assert (region.point == 0.5).all()
        assert region.rejections == rejections
        if region.spent:
            break
        region = region.reject(region.step())
    assert region.spent


def test_a_step_that_failed_inside_the_region_is_not_tried_again() -> None:
    region = QUASI_NEWTON.around(np.full(2, 0.5), 1.0, np.array([1e-2, 1e-2]))
    region = region.accept(np.full(2, 0.4), 0.9, np.array([-1e-3, -1e-3]))
    inside = region.step()
    assert region.length(inside) < 1
    nearer = region.reject(inside).step()
    assert np.abs(nearer - 0.4).max() < np.abs(inside - 0.4).max()


@BOTH
def test_a_second_look_takes_the_only_loss_that_was_held_back(start: Start) -> None:
    region = start(np.full(2, 0.5), 1.0, np.ones(2))
    assert region.look(1.0, None, (0.5,)).held_back == (0.5,)
    assert region.look(1.0, None, (0.5,)).look(1.0, None).held_back == (0.5,)
    assert region.look(1.0, None, (0.5,)).look(1.0, None, (np.inf,)).held_back == (0.5,)


@BOTH
def test_a_second_look_averages_and_starts_again(start: Start) -> None:
    first = start(np.full(2, 0.5), 1.0, np.array([1.0, 3.0]))
    tired = first.reject(first.step())
    fresh = tired.look(2.0, np.array([3.0, 1.0]))
    assert (fresh.value, fresh.looks, fresh.rejections) == (1.5, 2, 0)
    np.testing.assert_array_equal(fresh.gradient, [2.0, 2.0])
    assert fresh.reach == pytest.approx(first.reach)
    third = fresh.look(0.0, None)
    assert third.value == pytest.approx(1.0)
    np.testing.assert_array_equal(third.gradient, fresh.gradient)


@BOTH
@pytest.mark.parametrize(
    ("point", "gradient"), [([0.5, 0.5], [0.0, 0.0]), ([0.0, 1.0], [1.0, -1.0])], ids=["flat", "cornered"]
)
def test_where_no_step_leads_down_the_region_is_spent(start: Start, point: list[float], gradient: list[float]) -> None:
    assert start(np.array(point), 1.0, np.array(gradient)).spent


@BOTH
def test_descends_an_ill_conditioned_quadratic(start: Start) -> None:
    """The quadratic has a condition of 1e4 along the axes."""
    scales = 10.0 ** np.linspace(0, 4, 20)
    optimum = np.random.default_rng(0).uniform(0.2, 0.8, 20)

    def value(x: np.ndarray) -> float:
        return float(np.sum(scales * (x - optimum) ** 2))

    region = start(np.full(20, 0.5), value(np.full(20, 0.5)), 2 * scales * (0.5 - optimum))
    first = region.value
    for _ in range(200):
        if region.spent:
            break
        point = region.step()
        if value(point) < region.value:
            region = region.accept(point, value(point), 2 * scales * (point - optimum))
        else:
            region = region.reject(point)
    assert region.value < 1e-4 * first


@BOTH
def test_a_second_look_averages_the_losses_of_blocks(start: Start) -> None:
    region = replace(start(np.full(2, 0.5), 1.0, np.ones(2)), held_back=(1.0, 2.0), blocks=((1.0,), (1.0, 3.0)))
    looked = region.look(1.0, None, (2.0, 4.0), ((2.0,), (3.0, 5.0)))
    assert looked.blocks == ((1.5,), (2.0, 4.0))
    assert region.look(1.0, None).blocks == region.blocks
    assert region.look(1.0, None, (2.0, 4.0), ((2.0,), (3.0, np.inf))).blocks == ((1.5,), (1.0, 3.0))
