"""How much sooner several workers find a loss than one, in virtual time: each evaluation takes as long as any other."""

import heapq
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from hypergrad_search import Float, Space
from hypergrad_search.search import Attempt, Observation
from hypergrad_search.search.ask_tell import AskTell, Outcome, Suggestion, levels, spread
from hypergrad_search.space import centre, dimension, from_unit

MOST = 400  # so many trials at most

Slope = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""A function's value and its gradient at a point of shape (n,)."""


@dataclass(frozen=True)
class Landscape:
    """A function of `n` numbers, as one array or as so many hyperparameters, with the noise of value and gradient."""

    slope: Slope
    low: float
    high: float
    n: int
    array: bool = False
    noise: float = 0.0

    @property
    def space(self) -> Space:
        """The space to search."""
        if self.array:
            return {"x": Float(self.low, self.high, shape=(self.n,))}
        return {f"x{i}": Float(self.low, self.high) for i in range(self.n)}

    def point(self, hyperparameters: Mapping[str, Any]) -> np.ndarray:
        """Return hyperparameters as one array."""
        return np.concatenate([np.ravel(value) for value in hyperparameters.values()])

    def named(self, gradient: np.ndarray) -> dict[str, Any]:
        """Return a gradient by the names of the space."""
        return {"x": gradient} if self.array else {f"x{i}": derivative for i, derivative in enumerate(gradient)}


def valley(n: int, condition: float, seed: int, *, rotated: bool = True) -> Slope:
    """Return a paraboloid of this condition number, along random directions or the axes, whose minimum is 0."""
    rng = np.random.default_rng(seed)
    lowest, curvatures = rng.uniform(-3, 3, n), np.geomspace(1, condition, n) / math.sqrt(condition)
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0] if rotated else np.eye(n)

    def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = turn @ (x - lowest)
        return float(np.mean(curvatures * z**2)), 2 / n * turn.T @ (curvatures * z)

    return slope


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean of Rosenbrock's function over neighbours."""
    bend, rest = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[1:] += 200 * bend
    gradient[:-1] += -400 * bend * x[:-1] - 2 * rest
    return float(np.mean(100 * bend**2 + rest**2)), gradient / (len(x) - 1)


LANDSCAPES: dict[str, Landscape] = {
    "bowl, 2 numbers": Landscape(valley(2, 10, 0), -5, 5, 2),
    "bowl, 5 numbers": Landscape(valley(5, 10, 1), -5, 5, 5),
    "bowl, 10 numbers": Landscape(valley(10, 10, 2), -5, 5, 10),
    "valley, 10 numbers": Landscape(valley(10, 1000, 3), -5, 5, 10),
    "Rosenbrock, 4 numbers": Landscape(rosenbrock, -3, 2, 4),
    "Rosenbrock, 8 numbers": Landscape(rosenbrock, -3, 2, 8),
    "bowl, an array of 200": Landscape(valley(200, 10, 4), -5, 5, 200, array=True),
    "bowl along the axes, an array of 300": Landscape(valley(300, 10, 5, rotated=False), -5, 5, 300, array=True),
    "noisy bowl, 5 numbers": Landscape(valley(5, 10, 1), -5, 5, 5, noise=0.05),
    "noisy bowl, an array of 200": Landscape(valley(200, 10, 4), -5, 5, 200, array=True, noise=0.05),
}


@dataclass(frozen=True, order=True)
class _Running:
    """A trial under way: when it ends, its number, and what is known of it already."""

    ends: float
    number: int
    begun: Observation
    outcome: Outcome
    true: float


def progress(landscape: Landscape, workers: int, seed: int, *, vary: bool) -> Iterator[tuple[float, float]]:
    """Yield the time and the best value so far, without noise, whenever one of so many workers has ended a trial.

    A trial takes the time 1, or with `vary` a time between 0.5 and 1.5. Exploring is at random.
    """
    rng, numbers = np.random.default_rng(seed), itertools.count()
    mind = AskTell.begin(landscape.space)
    known: dict[str, Mapping[str, Any]] = {}
    running: list[_Running] = []
    best = math.inf

    def begin(now: float) -> None:
        suggestion = mind.ask([Attempt(trial.begun.parent, trial.begun.variant) for trial in running])
        hyperparameters = _point(landscape.space, suggestion, known, rng)
        wanted, number = suggestion.wanted, next(numbers)
        known[str(number)] = hyperparameters
        true, gradient = landscape.slope(landscape.point(hyperparameters))
        value = true + landscape.noise * rng.normal()
        seen = gradient + landscape.noise * rng.normal(size=gradient.shape)
        reported = landscape.named(seen) if wanted.wants_gradient(value) else None
        begun = Observation(
            str(number),
            wanted.parent,
            hyperparameters,
            again=wanted.again,
            left_out=wanted.left_out,
            centre=suggestion.centre,
            variant=wanted.variant,
        )
        outcome = Outcome(value=value, gradient=reported, deterministic=landscape.noise == 0)
        ends = now + (rng.uniform(0.5, 1.5) if vary else 1.0)
        heapq.heappush(running, _Running(ends, number, begun, outcome, true))

    for _ in range(workers):
        begin(0.0)
    while True:
        ended = heapq.heappop(running)
        mind = mind.tell(mind.read(ended.begun, ended.outcome))
        best = min(best, ended.true)
        yield ended.ends, best
        begin(ended.ends)


def _point(
    space: Space, suggestion: Suggestion, known: Mapping[str, Mapping[str, Any]], rng: np.random.Generator
) -> dict[str, Any]:
    if suggestion.centre:
        return centre(space)
    if suggestion.wanted.parent is None:
        explored = levels(space)
        return spread(space, from_unit(explored, rng.uniform(size=dimension(explored))))
    return {**known[suggestion.wanted.parent], **(suggestion.moved or {})}


def time_to(landscape: Landscape, target: float, workers: int, seed: int, *, vary: bool) -> float:
    """Return the time at which so many workers have found `target`; infinite where 400 trials do not."""
    trials = itertools.islice(progress(landscape, workers, seed, vary=vary), MOST)
    return next((time for time, best in trials if best <= target), math.inf)


def measure(workers: int, trials: int, seeds: int) -> Table:
    """Return a table of times, as shares of one worker's, to the median loss that one finds in so many trials."""
    view = Table("function", "all trials take as long", "times vary", title=f"Time of {workers} workers / time of 1")
    for name, landscape in LANDSCAPES.items():
        view.add_row(name, *(f"{_share(landscape, workers, trials, seeds, vary=vary):.2f}" for vary in (False, True)))
    return view


def _share(landscape: Landscape, workers: int, trials: int, seeds: int, *, vary: bool) -> float:
    found = [list(itertools.islice(progress(landscape, 1, seed, vary=vary), trials))[-1][1] for seed in range(seeds)]
    target = statistics.median(found)
    several, one = (
        statistics.median(time_to(landscape, target, number, seed, vary=vary) for seed in range(seeds))
        for number in (workers, 1)
    )
    return several / one
