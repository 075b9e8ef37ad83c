"""Forecasts of learning curves are those of the Gaussian process that their docstring describes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hypergrad_studies.learning_curves import OF_MEAN, Array, Constants, Curves, Forecast, Places, fit, levelled

CONSTANTS = Constants(np.array([0.4, 1.5, 0.8]), 0.7, 1.3, 0.9, 1.6, 0.01)
LOGARITHMS = np.log([*CONSTANTS.lengths, *CONSTANTS[1:]])
NONE = math.nan


@pytest.fixture
def curves() -> Curves:
    """Return eight losses of four configurations, in three dimensions."""
    times = np.array([[1.0, 2, 3], [1, 2, NONE], [1, NONE, NONE], [1, 5, NONE]])
    losses = np.where(np.isnan(times), NONE, np.random.default_rng(1).normal(size=times.shape))
    return Curves(np.random.default_rng(0).random((4, 3)), times, losses)


def places_of(curves: Curves) -> Places:
    """Return the places that were seen."""
    seen = ~np.isnan(curves.losses)
    return Places(curves.points, np.nonzero(seen)[0], curves.times[seen])


def covariance(x: Array, t: float, y: Array, u: float, *, one_curve: bool) -> float:
    """Return the covariance of two losses without noise, as the paper has it."""
    r = math.sqrt(5 * np.sum(((x - y) / CONSTANTS.lengths) ** 2))
    asymptotes = CONSTANTS.asymptotes * (1 + r + r**2 / 3) * math.exp(-r)
    decay = CONSTANTS.decays * (CONSTANTS.beta / (t + u + CONSTANTS.beta)) ** CONSTANTS.alpha
    return asymptotes + OF_MEAN + (decay if one_curve else 0.0)


def table(some: Places, others: Places) -> Array:
    """Return the covariances of places as one dense matrix."""
    return np.array(
        [
            [
                covariance(some.points[i], t, others.points[j], u, one_curve=bool(i == j))
                for j, u in zip(others.which, others.times, strict=True)
            ]
            for i, t in zip(some.which, some.times, strict=True)
        ]
    )


def test_a_forecast_is_the_posterior_of_dense_matrices(curves: Curves) -> None:
    seen, losses = places_of(curves), curves.losses[~np.isnan(curves.losses)]
    new = np.random.default_rng(2).random((2, 3))
    which, times = np.array([0, 0, 3, 4, 4, 5]), np.array([4.0, 1e9, 7, 0, 10, 3])
    asked = Places(np.concatenate([curves.points, new]), which, times)
    inverse = np.linalg.inv(table(seen, seen) + CONSTANTS.noise * np.eye(8))
    across = table(asked, seen)
    found = Forecast(curves, LOGARITHMS)
    means, covariances = found.joint(asked)
    np.testing.assert_allclose(means, across @ inverse @ losses, rtol=1e-9)
    np.testing.assert_allclose(covariances, table(asked, asked) - across @ inverse @ across.T, rtol=1e-9, atol=1e-12)
    again, deviations = found.marginals(asked)
    np.testing.assert_allclose(again, means, rtol=1e-9)
    np.testing.assert_allclose(deviations**2, np.diag(covariances), rtol=1e-9)


def test_the_likelihood_is_that_of_dense_matrices(curves: Curves) -> None:
    """The priors are the same for other losses, so that they cancel."""
    seen = places_of(curves)
    dense = table(seen, seen) + CONSTANTS.noise * np.eye(8)
    longer = replace(curves, losses=3 * curves.losses)
    losses = curves.losses[~np.isnan(curves.losses)]
    more = Forecast(longer, LOGARITHMS).unlikelihood()[0] - Forecast(curves, LOGARITHMS).unlikelihood()[0]
    assert more == pytest.approx((9 - 1) * losses @ np.linalg.solve(dense, losses) / 2, rel=1e-9)
    fewer = Curves(curves.points[:1], curves.times[:1], curves.losses[:1])
    alone = Forecast(fewer, LOGARITHMS).unlikelihood()[0] - Forecast(curves, LOGARITHMS).unlikelihood()[0]

    def expected(rows: Array, losses: Array) -> float:
        return float(losses @ np.linalg.solve(rows, losses) + np.linalg.slogdet(rows)[1]) / 2

    assert alone == pytest.approx(expected(dense[:3, :3], losses[:3]) - expected(dense, losses), rel=1e-9)


def test_curves_are_mixtures_of_exponentials() -> None:
    """The covariance of the decaying part is the mean of exp(-rate * (t + u)) over the gamma distribution of rates."""
    rates = np.random.default_rng(2).gamma(CONSTANTS.alpha, 1 / CONSTANTS.beta, 400_000)
    sums = np.array([1.0, 5.0])
    found = [CONSTANTS.decays * np.mean(np.exp(-rates * both)) for both in sums]
    np.testing.assert_allclose(CONSTANTS.decay(sums), found, rtol=0.01)


def test_the_gradient_of_the_fit_is_a_finite_difference(curves: Curves) -> None:
    _, gradient = Forecast(curves, LOGARITHMS).unlikelihood()
    steps = 1e-5 * np.eye(len(LOGARITHMS))
    expected = [
        (Forecast(curves, LOGARITHMS + step).unlikelihood()[0] - Forecast(curves, LOGARITHMS - step).unlikelihood()[0])
        / 2e-5
        for step in steps
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_fit_is_more_likely_than_what_it_started_from(curves: Curves) -> None:
    before = Forecast(curves, LOGARITHMS).unlikelihood()[0]
    assert fit(curves).unlikelihood()[0] < before
    assert fit(curves, LOGARITHMS).unlikelihood()[0] < before


def curve(x: float, times: Array) -> Array:
    """Return the losses of a configuration, whose asymptote is a parabola of it."""
    losses: Array = (x - 0.3) ** 2 + (0.5 + 0.5 * x) * np.exp(-(0.3 + 0.3 * x) * times)
    return losses


def test_forecasts_of_exponential_curves_are_near_their_asymptotes() -> None:
    """Some curves are known for long, and the others where they are far from their asymptotes."""
    x = np.linspace(0, 1, 9)
    cut = np.arange(9) % 2 == 1
    times = np.where(cut[:, None] & (np.arange(10) >= 4), NONE, np.arange(1.0, 11.0))
    losses = np.array([curve(x[i], times[i]) for i in range(9)])
    scale = np.nanstd(losses)
    found = fit(Curves(x[:, None], times, losses / scale))
    means, deviations = found.marginals(Places(x[:, None], np.arange(9), np.full(9, 1e9)))
    truth, lasts = (x - 0.3) ** 2, np.nanmin(losses, axis=1)
    errors = np.abs(means * scale - truth)
    assert errors.max() < 0.05
    assert (errors[cut] < 0.25 * (lasts - truth)[cut]).all()
    assert (errors < 3 * scale * deviations).all()


def test_what_has_not_begun_is_known_by_its_neighbours() -> None:
    x = np.linspace(0, 1, 6)[:, None]
    logarithms = np.log([0.5, 1.0, 1.0, 1.0, 1.0, 1e-6])
    found = Forecast(Curves(x, np.full((6, 1), 1e4), (x - 0.5) ** 2 - 0.1), logarithms)
    points = np.concatenate([x, [[0.5]], [[50.0]]])
    means, deviations = found.marginals(Places(points, np.array([6, 7]), np.full(2, 1e9)))
    assert means[0] == pytest.approx(-0.1, abs=0.05)
    assert deviations[0] < 0.1
    assert deviations[1] > 1.0  # nothing but the mean of all is known of it


def test_levels_keep_the_order_and_take_what_is_not_finite_for_the_worst() -> None:
    losses = np.array([0.3, 0.1, math.inf, 0.7, 0.11, 1e30, 0.5])
    found = levelled(losses)
    assert list(np.argsort(found[[1, 4, 0, 6, 3]])) == [0, 1, 2, 3, 4]
    assert found[2] == found[5] == found.max() > found[3]
    assert found.mean() == pytest.approx(0.0, abs=1e-12)
    assert found.std() == pytest.approx(1.0)
    assert found[4] - found[1] > 0.02
    np.testing.assert_allclose(levelled(-7.0 + 3.0 * losses), found, rtol=1e-9)


@pytest.mark.parametrize("losses", [[0.2], [0.2, 0.2, 0.2], [0.2, math.inf], [-1.0, math.inf, 0.0, 0.0]])
def test_levels_are_finite_where_all_losses_are_the_same(losses: list[float]) -> None:
    found = levelled(np.array(losses))
    assert np.isfinite(found).all()
    assert found.argmin() == 0
