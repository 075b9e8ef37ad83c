"""Forecasts of learning curves by a Gaussian process, as in Freeze-Thaw Bayesian Optimization.

The curve of a configuration is an asymptote, a part that decays, and noise. The asymptotes have a Gaussian process over
the unit box, with Matérn's kernel of smoothness 5/2, a length for each coordinate, and an unknown mean. Given the
asymptotes, the curves of different configurations are independent, and the covariance of the decaying part after the
times `t` and `u` is `variance * (beta / (t + u + beta)) ** alpha`: curves are mixtures of `exp(-rate * t)`, whose rates
have a gamma distribution.

So a curve that was seen tells of its asymptote what one loss in the limit would, with a noise of its own, and no matrix
is larger than the number of configurations or that of the losses of one. The constants are those with the highest
posterior density; the paper averages over samples of them.

Source: K. Swersky, J. Snoek, R. P. Adams, *Freeze-Thaw Bayesian Optimization*, 2014 (arXiv:1406.3896), section 3.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]

#: The variance of the mean of the asymptotes, beside losses that are standardised.
OF_MEAN = 1.0
#: The medians of the constants that have a log-normal prior, and the standard deviations of their logarithms. The
#: median of the lengths is in units of the distance from the middle of the box to a corner.
LENGTH = (0.5, 1.0)
OTHERS = {
    "variance of asymptotes": (1.0, 1.0),
    "variance of decays": (1.0, 1.0),
    "alpha": (1.0, 1.0),
    "beta": (1.0, 1.0),
    "variance of noise": (1e-3, 2.0),
}
WITHIN = 3.0  # so many standard deviations of its prior each constant stays
ITERATIONS = 20  # of a fit, which starts from the last one
NEAR = 0.05  # losses are told apart on the scale of the distance of this quantile from the best
FARTHEST = 10.0  # losses farther from the best than so many times the median, also infinite ones, count as being there


class Constants(NamedTuple):
    """What is fitted; `lengths` has the shape (d,)."""

    lengths: Array
    asymptotes: float
    decays: float
    alpha: float
    beta: float
    noise: float

    @classmethod
    def of(cls, logarithms: Array) -> Self:
        """Return the constants that have these logarithms, shape (d + 5,)."""
        numbers = np.exp(logarithms)
        return cls(numbers[:-5], *map(float, numbers[-5:]))

    def decay(self, sums: Array) -> Array:
        """Return the covariances of the decaying part after two times, from their sums."""
        covariances: Array = self.decays * (self.beta / (sums + self.beta)) ** self.alpha
        return covariances


@dataclass(frozen=True)
class Curves:
    """Losses that were seen: `losses[i, j]` of the configuration `points[i]` after the time `times[i, j]`.

    The shapes are (n, d), (n, t) and (n, t). Each curve has a loss; what is NaN was not seen.
    """

    points: Array
    times: Array
    losses: Array


@dataclass(frozen=True)
class Places:
    """Places on curves: each is the configuration `points[which[i]]` after the time `times[i]`.

    The first `points` are those of the curves that were seen, others may follow. The shapes of `which` and `times` are
    (m,).
    """

    points: Array
    which: NDArray[np.intp]
    times: Array


class Matern:
    """The covariances of the asymptotes of some points and others, and what their derivatives need."""

    def __init__(self, some: Array, others: Array, constants: Constants) -> None:
        self.distances = math.sqrt(5) * cdist(some / constants.lengths, others / constants.lengths)
        self.shrunk = constants.asymptotes * np.exp(-self.distances)
        self.varying = (1 + self.distances + self.distances**2 / 3) * self.shrunk
        self.matrix: Array = self.varying + OF_MEAN


class Forecast:
    """The Gaussian process after it has seen curves; `logarithms` are those of its `constants`."""

    def __init__(self, curves: Curves, logarithms: Array) -> None:
        self.curves, self.logarithms = curves, logarithms
        self.constants = constants = Constants.of(logarithms)
        self._seen = np.where(np.isnan(curves.losses), 0.0, 1.0)
        self._losses, self._times = np.nan_to_num(curves.losses), np.nan_to_num(curves.times)
        self._sums = self._times[:, :, None] + self._times[:, None, :]
        self._decays = constants.decay(self._sums) * self._seen[:, :, None] * self._seen[:, None, :]
        # what was not seen is a row and a column of the identity
        blocks = self._decays + np.eye(self._seen.shape[1]) * np.where(self._seen, constants.noise, 1.0)[:, None, :]
        self._logs_of_blocks = np.linalg.slogdet(blocks)[1]
        self._inverses = np.linalg.inv(blocks)
        self._pulls = np.einsum("itu,iu->it", self._inverses, self._seen)
        # each curve is as good as one loss in the limit, with this precision
        self._precisions = np.sum(self._pulls * self._seen, axis=1)
        self._limits = np.sum(self._pulls * self._losses, axis=1) / self._precisions
        self._prior = Matern(curves.points, curves.points, constants)
        self._factor = np.linalg.cholesky(self._prior.matrix + np.diag(1 / self._precisions))
        self._whitened = solve_triangular(self._factor, self._limits, lower=True)

    def joint(self, places: Places) -> tuple[Array, Array]:
        """Return the means, shape (m,), and the covariances, shape (m, m), of losses without noise."""
        means, shares, explained, decays, solved = self._condition(places)
        points = places.points[places.which]
        asymptotes = Matern(points, points, self.constants).matrix - explained.T @ explained
        own = self.constants.decay(places.times[:, None] + places.times) - solved @ decays.T
        same = places.which[:, None] == places.which
        return means, np.outer(shares, shares) * asymptotes + np.where(same, own, 0.0)

    def marginals(self, places: Places) -> tuple[Array, Array]:
        """Return the means and the standard deviations of losses without noise, shapes (m,)."""
        means, shares, explained, decays, solved = self._condition(places)
        asymptotes = self.constants.asymptotes + OF_MEAN - np.sum(explained**2, axis=0)
        own = self.constants.decay(2 * places.times) - np.sum(solved * decays, axis=1)
        return means, np.sqrt(np.maximum(shares**2 * asymptotes + own, 1e-12))

    def _condition(self, places: Places) -> tuple[Array, ...]:
        """Return the means, and what covariances follow from.

        A loss is its asymptote times its share, plus what does not depend on asymptotes. The squares of `explained` are
        subtracted from the covariances of asymptotes, and `decays` times `solved` from those of decaying parts.
        """
        n = len(self.curves.points)
        at, begun = np.minimum(places.which, n - 1), (places.which < n)[:, None]
        decays = self.constants.decay(places.times[:, None] + self._times[at]) * self._seen[at] * begun
        solved = np.einsum("mt,mtu->mu", decays, self._inverses[at])
        shares = 1 - np.sum(solved * self._seen[at], axis=1)
        across = Matern(self.curves.points, places.points[places.which], self.constants).matrix
        explained = solve_triangular(self._factor, across, lower=True)
        means = shares * (explained.T @ self._whitened) + np.sum(solved * self._losses[at], axis=1)
        return means, shares, explained, decays, solved

    def unlikelihood(self) -> tuple[float, Array]:
        """Return minus the logarithm of the posterior density of the constants, and its gradient, shape (d + 5,)."""
        c, prior = self.constants, self._prior
        inverse = cho_solve((self._factor, True), np.eye(len(self._limits)))
        solved = inverse @ self._limits
        of_points = (inverse - np.outer(solved, solved)) / 2
        weights = of_points * 5 / 3 * (1 + prior.distances) * prior.shrunk
        scaled = self.curves.points / c.lengths
        # the sums over pairs of weights times squared differences, without the differences of all pairs
        by_lengths = 2 * (weights.sum(axis=1) @ scaled**2 - np.sum(scaled * (weights @ scaled), axis=0))
        means = prior.matrix @ solved
        variances = 1 / self._precisions - np.diag(inverse) / self._precisions**2
        residuals = np.einsum("itu,iu->it", self._inverses, self._losses - means[:, None] * self._seen)
        pulls = self._pulls[:, :, None] * self._pulls[:, None, :] * variances[:, None, None]
        of_blocks = (self._inverses - pulls - residuals[:, :, None] * residuals[:, None, :]) / 2
        of_decays = of_blocks * self._decays
        by_others = [
            np.sum(of_points * prior.varying),
            np.sum(of_decays),
            c.alpha * np.sum(of_decays * np.log(c.beta / (self._sums + c.beta))),
            c.alpha * np.sum(of_decays * self._sums / (self._sums + c.beta)),
            c.noise * np.sum(np.einsum("itt->it", of_blocks) * self._seen),
        ]
        squares = np.einsum("it,itu,iu->", self._losses, self._inverses, self._losses)
        squares += self._whitened @ self._whitened - np.sum(self._limits**2 * self._precisions)
        logs = np.sum(self._logs_of_blocks) + 2 * np.log(np.diag(self._factor)).sum() + np.log(self._precisions).sum()
        medians, deviations = _priors(self.curves.points.shape[1])
        off = (self.logarithms - medians) / deviations
        return float((squares + logs + off @ off) / 2), np.concatenate([by_lengths, by_others]) + off / deviations


def fit(curves: Curves, start: Array | None = None) -> Forecast:
    """Return the forecast with the constants that fit best, looking from `start`, or from the medians of the priors."""
    medians, deviations = _priors(curves.points.shape[1])
    bounds = list(zip(medians - WITHIN * deviations, medians + WITHIN * deviations, strict=True))
    begun = medians if start is None or len(start) != len(medians) else start
    found = minimize(
        lambda logarithms: Forecast(curves, logarithms).unlikelihood(),
        begun,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": ITERATIONS},
    )
    return Forecast(curves, found.x)


def levelled(losses: Array) -> Array:
    """Return losses, some of which are finite, on the scale of the forecast, standardised and in the same order.

    It is the logarithm of the distance from the best, so that the large losses of first steps and of bad configurations
    leave room for the small differences between good ones. Losses of training that has diverged are cut.
    """
    lowest = losses[np.isfinite(losses)].min()
    tiny = 1e-9 * max(abs(lowest), 1e-9)
    near, middle = np.maximum(np.quantile(losses[np.isfinite(losses)] - lowest, (NEAR, 0.5)), tiny)
    logarithms = np.log1p(np.minimum(losses - lowest, FARTHEST * middle) / near)
    standardised: Array = (logarithms - logarithms.mean()) / max(float(logarithms.std()), 1e-12)
    return standardised


def _priors(dimensions: int) -> tuple[Array, Array]:
    """Return the medians and the standard deviations of the logarithms, shape (d + 5,) each."""
    median, deviation = LENGTH
    length = (median * math.sqrt(dimensions) / 2, deviation)
    medians, deviations = np.array([*[length] * dimensions, *OTHERS.values()]).T
    return np.log(medians), deviations
