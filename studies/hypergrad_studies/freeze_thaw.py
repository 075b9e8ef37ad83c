"""Freeze-Thaw Bayesian Optimization: many training runs are begun, and the one that tells most goes on.

A trial is one stretch of training, a tenth of the steps, of a new configuration or of one that goes on where its last
trial was stopped. The next one is chosen in two steps. A basket gets those that promise the largest improvement, by the
forecast of their losses after the last step: ten that have begun, three new ones, and the best that has ended. Then
goes on whichever of them, by its next loss, is expected to leave the least entropy in which one of the basket is best.

It differs from the paper in four points. Losses are forecast after the last step instead of in the limit, since
training ends there. The constants of the forecast are fitted, see `learning_curves`. The first ten configurations are
drawn at random. And in the last fifth of the budget nothing new begins as long as something can still be trained to the
end, and the best forecast goes on: as under Hyperband, a configuration counts as found only when it is trained to its
end.

Source: K. Swersky, J. Snoek, R. P. Adams, *Freeze-Thaw Bayesian Optimization*, 2014 (arXiv:1406.3896).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState
from scipy.special import entr

from hypergrad_optuna import attributes
from hypergrad_studies.first_epoch import first_epoch
from hypergrad_studies.learning_curves import Array, Curves, Forecast, Places, fit, levelled
from hypergrad_studies.tried.gradient_gp import log_improvement

STARTUP = 10  # so many trials are drawn at random
BEGUN = 10  # so many of those that have begun are in the basket
NEW = 3  # so many new ones are
CANDIDATES = 1000  # random points, among which a new one is looked for
NEARER = (0.1, 0.05, 0.02, 0.01, 0.005)  # the standard deviations of steps from the best configuration
STEPS = 100  # of each length, among which a new one is looked for too
LAST = 0.2  # this share of the budget, and at least a whole training run, is for training to the end
SAMPLES = 1000  # of the losses of the basket, from which an entropy is estimated
NEXT = np.polynomial.hermite_e.hermegauss(5)  # a next loss, in standard deviations, and its weights

Point = tuple[tuple[str, Any], ...]


def stretch(steps: int) -> int:
    """Return how many steps a stretch has in a training run of so many: a tenth, rounded down."""
    return first_epoch(steps)


@dataclass(frozen=True)
class Runs:
    """Training runs that have begun, one for each of the `forecast.curves.points`, which are n.

    - `reached`: for how long each was trained, shape (n,).
    - `whole`: for how long a run is trained that has ended. The times are in stretches.
    """

    forecast: Forecast
    reached: Array
    whole: float

    @property
    def ended(self) -> np.ndarray:
        """Which runs have ended, shape (n,)."""
        return self.reached >= self.whole

    def ends(self, which: np.ndarray, points: Array | None = None) -> Places:
        """Return where runs end; `points` are those of all runs, new ones included, where there are new ones."""
        known = self.forecast.curves.points if points is None else points
        return Places(known, which, np.full(len(which), self.whole))


def to_end(runs: Runs, affordable: float) -> int | None:
    """Return the run with the lowest forecast of those that can be trained to the end in this time; None for none."""
    able = np.flatnonzero(~runs.ended & (runs.whole - runs.reached <= affordable))
    if not able.size:
        return None
    means, _ = runs.forecast.marginals(runs.ends(able))
    return int(able[means.argmin()])


def next_run(runs: Runs, rounded: Callable[[Array], Array], rng: np.random.Generator) -> int | Array | None:
    """Return which run goes on, or the point of a new one; None where all have ended and nothing new was found.

    `rounded` returns the nearest point of the search space to a point of the unit box.
    """
    begun = runs.forecast.curves.points
    n = len(begun)
    means, deviations = runs.forecast.marginals(runs.ends(np.arange(n)))
    best = int(means.argmin())
    promise = log_improvement(means, deviations, means[best])
    going = np.flatnonzero(~runs.ended)
    going = going[np.argsort(-promise[going], kind="stable")][:BEGUN]
    found = (rounded(_promising(runs, begun[best], means[best], rng)) for _ in range(NEW))
    points = np.array([*begun, *(point for point in found if not np.isclose(begun, point).all(axis=1).any())])
    able = np.array([*going, *range(n, len(points))], np.intp)
    if not able.size:
        return None
    ended = np.flatnonzero(runs.ended)
    basket = np.array([*able, *ended[np.argsort(means[ended])][:1]], np.intp)
    reached = np.array([*runs.reached, *np.zeros(len(points) - n)])
    after = Places(points, able, np.minimum(reached[able] + 1, runs.whole))
    chosen = able[_entropies(runs.forecast, runs.ends(basket, points), after, rng).argmin()]
    return int(chosen) if chosen < n else points[chosen]


def _promising(runs: Runs, best: Array, lowest: float, rng: np.random.Generator) -> Array:
    """Return the point with the largest expected improvement that a random search finds, also around the best."""
    around = [best + scale * rng.standard_normal((STEPS, len(best))) for scale in NEARER]
    candidates = np.clip(np.concatenate([rng.random((CANDIDATES, len(best))), *around]), 0.0, 1.0)
    points = np.concatenate([runs.forecast.curves.points, candidates])
    new = runs.ends(np.arange(len(runs.reached), len(points)), points)
    point: Array = candidates[log_improvement(*runs.forecast.marginals(new), lowest).argmax()]
    return point


def _entropies(forecast: Forecast, ends: Places, after: Places, rng: np.random.Generator) -> Array:
    """Return the entropy of which run ends best that is expected after each of the losses of `after` is seen."""
    which, times = np.concatenate([ends.which, after.which]), np.concatenate([ends.times, after.times])
    means, covariances = forecast.joint(Places(ends.points, which, times))
    b = len(ends.which)
    variances = np.diag(covariances)[b:] + forecast.constants.noise
    return expected_entropies(means[:b], covariances[:b, :b], covariances[:b, b:], variances, rng)


def expected_entropies(
    means: Array, covariances: Array, with_next: Array, variances: Array, rng: np.random.Generator
) -> Array:
    """Return the entropy of which of b losses is the lowest that is expected after each of k others is seen.

    `means` and `covariances` are those of the b losses; `with_next`, of shape (b, k), are their covariances with the
    others, and `variances` are those of the others. An entropy is estimated from samples.
    """
    noise = rng.standard_normal((SAMPLES, len(means)))
    others = zip(with_next.T, variances, strict=True)
    return np.array([_expected(means, covariances, along, variance, noise) for along, variance in others])


def _expected(means: Array, covariances: Array, along: Array, variance: float, noise: Array) -> float:
    values, vectors = np.linalg.eigh(covariances - np.outer(along, along) / variance)
    samples = means + noise @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    places, weights = NEXT
    lowest = [np.argmin(samples + place * along / math.sqrt(variance), axis=1) for place in places]
    entropies = [np.sum(entr(np.bincount(of_place, minlength=len(means)) / SAMPLES)) for of_place in lowest]
    return float(np.average(entropies, weights=weights))


class StretchPruner(BasePruner):
    """Stops each trial at its first report, where its stretch ends."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return True."""
        return True


class FreezeThawSampler(BaseSampler):
    """Samples the configuration of the next stretch; see above.

    Trials must be stopped by a `StretchPruner`, go on where the last one at their point was stopped, and run one after
    another. Their costs must be recorded, as those of an `Objective` are, with those of the stretches before; these
    are taken from them.

    - `steps`: the number of steps of a whole training run.
    - `budget`: what all trials may cost, in steps.
    """

    def __init__(self, seed: int, *, steps: int, budget: float) -> None:
        self._random = RandomSampler(seed)
        self._rng = np.random.default_rng(seed)
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._steps, self._budget = steps, budget
        self._logarithms: Array | None = None  # from the last fit

    def reseed_rng(self) -> None:
        """Reseed what is drawn at random."""
        self._random.reseed_rng()
        self._rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what all trials so far have in common, without what has a single value."""
        return {name: d for name, d in self._space.calculate(study).items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the configuration of the next stretch; nothing before there are enough losses for a forecast."""
        curves = list(_curves(study).values())
        seen = np.array([_loss(trial) for curve in curves for trial in curve])
        if not search_space or len(seen) < STARTUP or not np.isfinite(seen).any():
            return {}
        # Optuna's own samplers map parameters of all kinds to the unit box by it.
        box = _SearchSpaceTransform(search_space, transform_0_1=True)
        points = np.array([box.transform(curve[-1].params) for curve in curves])
        times = _table([[self._stretches(trial) for trial in curve] for curve in curves])
        losses = np.full(times.shape, math.nan)
        losses[~np.isnan(times)] = levelled(seen)
        forecast = fit(Curves(points, times, losses), self._logarithms)
        self._logarithms = forecast.logarithms
        runs = Runs(forecast, np.nanmax(times, axis=1), self._steps / stretch(self._steps))
        left = self._budget - sum(_cost(trial) for curve in curves for trial in curve)
        last = left <= max(LAST * self._budget, self._steps)
        chosen: int | Array | None = to_end(runs, left / stretch(self._steps)) if last else None
        if chosen is None:
            chosen = next_run(runs, lambda point: box.transform(box.untransform(point)), self._rng)
        if isinstance(chosen, int):
            return {name: curves[chosen][-1].params[name] for name in search_space}
        return {} if chosen is None else box.untransform(chosen)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Take from the cost of a trial the steps that it did not train, since it went on after them."""
        before, cost = _curves(study).get(_point(trial)), trial.user_attrs.get(attributes.COST)
        if before and before[-1].state is TrialState.PRUNED and cost is not None:
            study._storage.set_trial_user_attr(trial._trial_id, attributes.COST, cost - before[-1].last_step)

    def _stretches(self, trial: FrozenTrial) -> float:
        """Return for how long a configuration was trained when a trial ended."""
        steps = trial.last_step if trial.state is TrialState.PRUNED else self._steps
        return (steps or 0) / stretch(self._steps)


def _table(rows: Sequence[Sequence[float]]) -> Array:
    """Return rows of different lengths as one array, whose other elements are NaN."""
    longest = max(map(len, rows))
    return np.array([[*row, *[math.nan] * (longest - len(row))] for row in rows])


def _curves(study: Study) -> Mapping[Point, list[FrozenTrial]]:
    """Return the trials that are done, by the configuration whose stretches they are."""
    curves: dict[Point, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            curves.setdefault(_point(trial), []).append(trial)
    return curves


def _point(trial: FrozenTrial) -> Point:
    return tuple(sorted(trial.params.items()))


def _loss(trial: FrozenTrial) -> float:
    """Return the loss when a trial ended, which is infinite where it failed."""
    return math.inf if trial.value is None else trial.value


def _cost(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get(attributes.COST, 0))
