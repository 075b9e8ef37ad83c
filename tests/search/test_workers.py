"""Several workers on one search, as events in virtual time."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from hypergrad_search import Float
from hypergrad_search.search import (
    Attempt,
    ExploreDescend,
    LocalStep,
    Observation,
    Proposal,
    QuasiNewton,
    SignSteps,
    TrustRegion,
)
from hypergrad_search.search.explore_descend import PASSED, State
from hypergrad_search.search.variants import REMEMBERED, VARIANTS

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]
STRATEGY = ExploreDescend()
BOTH = pytest.mark.parametrize("step", [SignSteps(), QuasiNewton()], ids=["signs", "quasi-newton"])


def bowl(dimensions: int) -> Function:
    """Return a quadratic of condition number 10, whose axes are not those of the coordinates."""
    rng = np.random.default_rng(dimensions)
    axes = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    matrix = axes.T @ np.diag(np.geomspace(0.3, 3.0, dimensions)) @ axes
    best = rng.uniform(0.2, 0.8, dimensions)
    return lambda x: (float((x - best) @ matrix @ (x - best)), 2 * matrix @ (x - best))


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the value and the gradient of Rosenbrock's valley, on the box from -2 to 2."""
    z = 4 * x - 2
    rises, rests = z[1:] - z[:-1] ** 2, 1 - z[:-1]
    slope = np.zeros_like(z)
    slope[1:] += 200 * rises
    slope[:-1] -= 400 * rises * z[:-1] + 2 * rests
    return float(np.sum(100 * rises**2 + rests**2)), 4 * slope


def observe(
    trial: str, proposal: Proposal, function: Function, dimensions: int, rng: np.random.Generator, noise: float = 0.0
) -> Observation:
    point = rng.uniform(size=dimensions) if proposal.point is None else proposal.point
    point = np.full(dimensions, 0.5) if proposal.centre else point
    value, slope = function(point)
    value += noise * rng.normal()
    slope = slope + noise * rng.normal(size=dimensions)
    wanted = value < proposal.gradient_below
    return Observation(
        trial,
        proposal.parent,
        {"x": point},
        value,
        {"x": slope} if wanted else None,
        4.0 if wanted else 1.0,
        again=proposal.again,
        variant=proposal.variant,
        deterministic=not noise,
    )


def play(
    function: Function,
    dimensions: int,
    workers: int,
    seed: int = 0,
    *,
    noise: float = 0.0,
    steady: bool = True,
    strategy: ExploreDescend = STRATEGY,
) -> Iterator[tuple[float, Observation, State, list[Attempt]]]:
    """Yield the end of each trial: the time, in trials' lengths, what was seen, and what all workers do then."""
    rng, state, counter = np.random.default_rng(seed), strategy.init({"x": Float(0.0, 1.0, shape=(dimensions,))}), 0
    under_way: list[tuple[float, int, Observation]] = []
    now = 0.0
    while True:
        while len(under_way) < workers:
            proposal = strategy.propose(state, [seen.attempt for *_, seen in under_way])
            seen = observe(str(counter), proposal, function, dimensions, rng, noise)
            heapq.heappush(under_way, (now + (1.0 if steady else rng.uniform(0.5, 1.5)), counter, seen))
            counter += 1
        attempts = [seen.attempt for *_, seen in under_way]
        now, _, seen = heapq.heappop(under_way)
        state = strategy.fold(state, seen)
        yield now, seen, state, attempts


def time_to(
    function: Function, target: float, trials: Iterator[tuple[float, Observation, State, list[Attempt]]]
) -> float:
    for now, seen, *_ in trials:
        if now > 200 or function(np.asarray(seen.hyperparameters["x"]))[0] <= target:
            return now
    raise AssertionError


@pytest.mark.parametrize("steady", [True, False], ids=["steady", "unsteady"])
@pytest.mark.parametrize(
    ("function", "dimensions", "target", "noise"),
    [
        (bowl(2), 2, 3e-7, 0.0),
        (bowl(10), 10, 2e-6, 0.0),
        (bowl(300), 300, 2e-5, 0.0),
        (rosenbrock, 4, 1.2, 0.0),
        (bowl(5), 5, 3e-4, 0.02),
        (bowl(300), 300, 0.02, 0.02),
    ],
    ids=["2", "10", "300", "valley", "5, noisy", "300, noisy"],
)
def test_four_workers_take_less_than_half_of_the_time(
    function: Function, dimensions: int, target: float, noise: float, steady: bool
) -> None:
    """It is mostly a third; before other steps were taken from one head at once, it was three quarters."""

    def median(workers: int) -> float:
        runs = [play(function, dimensions, workers, seed, noise=noise, steady=steady) for seed in range(7)]
        return float(np.median([time_to(function, target, run) for run in runs]))

    assert median(4) < 0.48 * median(1)


#: the parent of each of the first trials of a search by one worker, "-" where it explores
ALONE = (
    "- 0 1 1 3 4 5 5 7 - 8 10 - 11 13 - 14 14 17 - 18 20 - 21 23 - 24 26 - 27 27 30 - - - 34 35 35 37 38 "
    "39 40 41 - 42 44 - 45 47 - 48 50 - 51 51 54 - 55 57 - 58 60 - 61 63 - - - 67 68 69 69 71 72 72 74 75 "
    "- 76 78"
)


def test_a_worker_alone_takes_no_variants() -> None:
    """Its search is as it was before there were any, and what is kept for other workers does not change it."""
    plain = STRATEGY.init({"x": Float(0.0, 1.0, shape=(10,))})
    rng, parents = np.random.default_rng(0), []
    for number, (_, seen, _, attempts) in enumerate(itertools.islice(play(bowl(10), 10, 1), 80)):
        forgetful = {
            trial: replace(region, trail=()) if isinstance(region, TrustRegion) else region
            for trial, region in plain.chains.items()
        }
        plain = replace(plain, chains=forgetful, passed={})
        same = observe(str(number), STRATEGY.propose(plain, []), bowl(10), 10, rng)
        assert attempts == [Attempt(seen.parent)] == [same.attempt]
        np.testing.assert_array_equal(same.hyperparameters["x"], seen.hyperparameters["x"])
        parents.append(seen.parent or "-")
        plain = STRATEGY.fold(plain, same)
    assert " ".join(parents) == ALONE


@BOTH
@pytest.mark.parametrize("workers", [2, 4, 9])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_no_step_is_taken_by_two_workers(step: LocalStep, workers: int, noise: float) -> None:
    trials = play(rosenbrock, 6, workers, noise=noise, steady=False, strategy=ExploreDescend(step=step))
    taken = set()
    for _, _, state, attempts in itertools.islice(trials, 200):
        steps = [attempt for attempt in attempts if attempt.parent is not None]
        assert len(steps) == len(set(steps))
        assert len(state.passed) <= PASSED
        taken |= {attempt.variant for attempt in steps}
        for region in state.chains.values():
            assert isinstance(region, TrustRegion)
            assert len(region.trail) <= REMEMBERED
            for number in range(VARIANTS):
                point = region.variant(number)
                assert np.all((point >= 0) & (point <= 1))
    assert taken == set(range(VARIANTS))


def started(step: LocalStep | None = None) -> tuple[ExploreDescend, State]:
    """Return a search by two workers in a bowl, whose one chain is at the centre, the trial "0"."""
    strategy = ExploreDescend() if step is None else ExploreDescend(step=step)
    state = strategy.init({"x": Float(0.0, 1.0, shape=(5,))})
    first = strategy.propose(state, [])
    return strategy, strategy.fold(state, observe("0", first, bowl(5), 5, np.random.default_rng(0)))


def step_of(
    strategy: ExploreDescend, state: State, variant: int, trial: str, value: float, *, slope: bool = True
) -> Observation:
    """Return a step from the head "0" that came out with a value of one's choice."""
    region = state.chains["0"]
    assert isinstance(region, TrustRegion)
    point = region.variant(variant)
    return Observation(
        trial, "0", {"x": point}, value, {"x": bowl(5)(point)[1]} if slope else None, 4.0, variant=variant
    )


def test_a_better_step_that_ends_late_is_where_the_chain_goes_on() -> None:
    strategy, state = started()
    first, late = (step_of(strategy, state, n, name, 0.2 - 0.1 * n) for n, name in ((0, "a"), (1, "b")))
    after = strategy.fold(strategy.fold(state, first), late)
    assert set(after.chains) == {"b"}
    region = after.chains["b"]
    assert isinstance(region, TrustRegion)
    assert region.found_by == 1
    assert [slope.point.tolist() for slope in region.trail] == [first.hyperparameters["x"].tolist(), [0.5] * 5]


@pytest.mark.parametrize("slope", [True, False])
@pytest.mark.parametrize("variant", [0, 1])
def test_a_worse_step_that_ends_late_is_no_rejection(variant: int, slope: bool) -> None:
    strategy, state = started()
    first = step_of(strategy, state, 1 - variant, "a", 0.1)
    late = step_of(strategy, state, variant, "b", 0.2, slope=slope)
    once = strategy.fold(state, first)
    twice = strategy.fold(once, late)
    assert set(twice.chains) == {"a"}
    before, after = once.chains["a"], twice.chains["a"]
    assert isinstance(before, TrustRegion)
    assert isinstance(after, TrustRegion)
    assert (after.reach, after.rejections, after.failed) == (before.reach, 0, ())
    assert len(after.trail) == len(before.trail) + slope, "its gradient tells of the curvature"


def test_a_late_step_of_a_chain_that_has_ended_founds_none() -> None:
    strategy, state = started()
    arrived = replace(step_of(strategy, state, 0, "a", 0.2), gradient={"x": np.zeros(5)})
    ended = strategy.fold(state, arrived)
    assert not ended.chains
    assert not strategy.fold(ended, step_of(strategy, state, 1, "b", 0.1)).chains


def test_a_variant_that_fails_is_not_tried_again_and_says_nothing_of_the_local_step() -> None:
    strategy, state = started()
    failed = strategy.fold(state, step_of(strategy, state, 1, "a", math.inf, slope=False))
    before, after = state.chains["0"], failed.chains["0"]
    assert isinstance(before, TrustRegion)
    assert isinstance(after, TrustRegion)
    assert ([*dict(before.variants())], [*dict(after.variants())]) == ([0, 1, 2], [0, 2])
    assert (after.reach, after.rejections) == (before.reach, 0)
    looked = Observation("b", "0", {"x": np.full(5, 0.5)}, 9.0, {"x": np.ones(5)}, 4.0, again=True)
    again = strategy.fold(failed, looked).chains["0"]
    assert isinstance(again, TrustRegion)
    assert [*dict(again.variants())] == [0, 1, 2], "the gradient is another one"


def test_what_led_to_the_head_is_tried_first_until_it_fails() -> None:
    strategy, state = started()
    found = strategy.fold(state, step_of(strategy, state, 1, "a", 0.1))
    while (proposal := strategy.propose(found, [])).parent is None:
        found = strategy.fold(found, observe("x", proposal, lambda x: (9.0, x), 5, np.random.default_rng(0)))
    assert proposal.variant == 1
    point = proposal.point
    failed = strategy.fold(found, Observation("b", "a", {"x": point}, variant=1))
    assert strategy.propose(failed, []).variant == 0


def test_the_gains_of_points_that_began_beside_the_first_are_luck() -> None:
    """While the first trial runs, others can only explore; where they end better, exploring has earned nothing."""
    strategy, state = started()
    lucky = strategy.fold(state, Observation("1", None, {"x": np.full(5, 0.4)}, 0.01))
    assert (lucky.best_value, lucky.exploring.gain) == (0.01, 0.0)
    stepped = strategy.fold(state, step_of(strategy, state, 0, "a", 0.2))
    assert strategy.fold(stepped, Observation("1", None, {"x": np.full(5, 0.4)}, 0.01)).exploring.gain > 0


@BOTH
def test_a_known_curvature_leads_to_the_minimum(step: LocalStep) -> None:
    """In five dimensions, the quadratic of six gradients is the bowl itself."""
    function = bowl(5)
    best = -np.linalg.solve(
        np.stack([function(x)[1] for x in np.eye(5)]) - function(np.zeros(5))[1], function(np.zeros(5))[1]
    )
    point = best + 0.05
    region = step.around(point, *function(point))
    for _ in range(5):
        ahead = region.variant(1)
        region = region.follow(ahead, *function(ahead), 1)
    assert function(region.point)[0] < 1e-3 * function(point)[0]


def test_each_coordinate_by_itself_leads_to_the_minimum_of_a_sum() -> None:
    """The coordinates have curvatures that differ by a factor of 10,000."""
    weights, best = np.geomspace(0.01, 100.0, 6), np.linspace(0.42, 0.48, 6)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(weights @ (x - best) ** 2), 2 * weights * (x - best)

    start = np.full(6, 0.5)
    after = start - 0.005
    region = SignSteps().around(start, *function(start)).follow(after, *function(after), 0)
    near = np.abs(best - after) < np.abs(region.step() - after)  # other steps are cut off
    assert near.sum() > 2
    np.testing.assert_allclose(region.variant(2)[near], best[near], atol=1e-6)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e300])
def test_gradients_of_any_size_have_variants(size: float) -> None:
    region = SignSteps().around(np.full(3, 0.5), 1.0, np.array([size, -size, size / 2]))
    for number in range(VARIANTS):
        assert np.isfinite(region.variant(number)).all()
    after = region.follow(np.array([0.4, 0.6, 0.45]), 0.5, np.array([-size, -size, size / 3]), 1)
    for number in range(VARIANTS):
        assert np.isfinite(after.variant(number)).all()


def test_steps_to_the_same_place_are_tried_once() -> None:
    """In a round bowl, all that is known of the curvature leads to the one minimum, and its failure is that of both."""

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(np.sum((x - 0.45) ** 2)), 2 * (x - 0.45)

    start, after = np.full(3, 0.6), np.full(3, 0.55)
    region = SignSteps().around(start, *function(start)).follow(after, *function(after), 0)
    np.testing.assert_allclose([region.variant(1), region.variant(2)], 0.45)
    assert [*dict(region.variants())] == [0, 1]
    assert [*dict(region.fail(1).variants())] == [0]


def test_new_heads_get_their_first_step_before_the_best_gets_another() -> None:
    strategy, state = started()
    for n in (1, 2):
        point = np.full(5, 0.5 + 0.1 * n)
        state = strategy.fold(state, Observation(str(n), None, {"x": point}, float(n), {"x": np.ones(5)}, 4.0))
    state = replace(state, exploring=replace(state.exploring, cost=1e9))
    running: list[Attempt] = []
    for _ in range(5):
        proposal = strategy.propose(state, running)
        running.append(Attempt(proposal.parent, proposal.variant))
    assert running == [Attempt("0"), Attempt("1"), Attempt("2"), Attempt("0", 1), Attempt("0", 2)]


def test_late_steps_are_compared_by_what_neither_was_fitted_to() -> None:
    """The one with the lower loss may owe it to examples that its gradient has seen."""
    strategy, state = started()
    head = state.chains["0"]
    assert isinstance(head, TrustRegion)
    state = replace(state, chains={"0": replace(head, held_back=(0.2,) * 4, cross_validated=0.25)})
    first = replace(step_of(strategy, state, 0, "a", 0.2), held_back=(0.1,) * 4, cross_validated=0.1)
    late = replace(step_of(strategy, state, 1, "b", 0.1), held_back=(0.1,) * 4, cross_validated=0.15)
    assert set(strategy.fold(strategy.fold(state, first), late).chains) == {"a"}
    assert set(strategy.fold(strategy.fold(state, late), first).chains) == {"a"}


def test_a_trial_that_is_told_again_is_no_heir_of_its_own() -> None:
    """A host may tell of a trial after each epoch; were it its own heir, the next result would never be in."""
    state = STRATEGY.init({"x": Float(0.0, 1.0, shape=(2,))})

    def told(trial: str, parent: str | None, value: float) -> Observation:
        x, slope = {"x": np.full(2, 0.5 + value / 10)}, {"x": np.full(2, value)}
        return Observation(trial, parent, x, value=value, gradient=slope, cost=4.0)

    state = STRATEGY.fold(state, told("head", None, 4.0))
    for value in (3.0, 2.0, 1.0):
        state = STRATEGY.fold(state, told("step", "head", value))
        assert list(state.chains) == ["step"]
    assert {head: passed.heir for head, passed in state.passed.items()} == {"head": "step"}
