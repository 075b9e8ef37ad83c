import numpy as np

from hypergrad_search.search import trust_region


def test_a_step_goes_against_every_sign_and_stays_in_the_box() -> None:
    region = trust_region.start(np.array([0.5, 0.5, 0.05, 0.5]), 1.0, np.array([1e-9, -1e9, 1.0, 0.0]))
    r = trust_region.START
    np.testing.assert_allclose(trust_region.step(region), [0.5 - r, 0.5 + r, 0.0, 0.5])


def test_radii_grow_where_signs_stay_and_shrink_where_they_flip() -> None:
    region = trust_region.start(np.full(3, 0.5), 1.0, np.array([1.0, 1.0, 1.0]))
    moved = trust_region.accept(region, np.full(3, 0.4), 0.9, np.array([2.0, -2.0, 0.0]))
    ratio = moved.radii / region.radii
    np.testing.assert_allclose(ratio, [trust_region.GROWTH, trust_region.SHRINKAGE, 1.0])
    assert moved.value == 0.9


def test_rejection_shrinks_until_the_region_is_spent() -> None:
    region = trust_region.start(np.full(2, 0.5), 1.0, np.ones(2))
    for _ in range(20):
        assert (region.point == 0.5).all()
        if region.spent:
            break
        region = trust_region.reject(region)
    assert region.spent


def test_a_zero_gradient_leads_nowhere() -> None:
    assert trust_region.start(np.full(2, 0.5), 1.0, np.zeros(2)).spent


def test_descends_an_ill_conditioned_quadratic() -> None:
    """Sign steps do not see the scale of a coordinate: condition 1e6 along the axes costs nothing."""
    scales = 10.0 ** np.linspace(0, 6, 20)
    optimum = np.random.default_rng(0).uniform(0.2, 0.8, 20)

    def value(x: np.ndarray) -> float:
        return float(np.sum(scales * (x - optimum) ** 2))

    region = trust_region.start(np.full(20, 0.5), value(np.full(20, 0.5)), scales * (0.5 - optimum))
    first = region.value
    for _ in range(200):
        if region.spent:
            break
        point = trust_region.step(region)
        if value(point) < region.value:
            region = trust_region.accept(region, point, value(point), scales * (point - optimum))
        else:
            region = trust_region.reject(region)
    assert region.value < 1e-4 * first
