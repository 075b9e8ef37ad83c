import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from hypergrad_search import Float
from hypergrad_search.fold import Fold
from hypergrad_search.search import (
    Attempt,
    ByDimension,
    ExploreDescend,
    Limits,
    Observation,
    Proposal,
    QuasiNewton,
    Radii,
    SignSteps,
    Strategy,
    TrustRegion,
)
from hypergrad_search.search.continuation import Continuation
from hypergrad_search.search.explore_descend import Account, State
from hypergrad_search.search.quasi_newton import QuasiNewtonRegion
from hypergrad_search.search.sign_steps import SignRegion
from hypergrad_search.space import dimension, from_unit

STRATEGY = ExploreDescend()
fold, propose = STRATEGY.fold, STRATEGY.propose
RNG = np.random.default_rng(0)
SPACE = {"x": Float(-1.0, 3.0), "rate": Float(1e-4, 1.0, log=True), "array": Float(0.0, 1.0, shape=(3,))}


def loss(h: Mapping[str, Any]) -> float:
    return float((h["x"] - 1) ** 2 + math.log10(h["rate"] / 1e-2) ** 2 + float(np.sum((h["array"] - 0.3) ** 2)))


def slope(h: Mapping[str, Any]) -> dict[str, Any]:
    d_rate = 2 * math.log10(h["rate"] / 1e-2) / (h["rate"] * math.log(10))
    return {"x": 2 * (h["x"] - 1), "rate": d_rate, "array": 2 * (h["array"] - 0.3)}


def region_of(state: State, head: str) -> TrustRegion:
    region = state.chains[head]
    assert isinstance(region, TrustRegion)
    return region


def observe(trial: int, proposal: Proposal, rng: np.random.Generator, **changes: Any) -> Observation:
    point = rng.uniform(size=dimension(SPACE)) if proposal.point is None else proposal.point
    h = from_unit(SPACE, point)
    value = loss(h)
    wanted = value < proposal.gradient_below
    fields = {
        "trial": str(trial),
        "parent": proposal.parent,
        "hyperparameters": h,
        "value": value,
        "gradient": slope(h) if wanted else None,
        "cost": 4.0 if wanted else 1.0,
        "again": proposal.again,
    }
    return Observation(**{**fields, **changes})


def search(
    trials: int, seed: int = 0, spoil: Callable[[int], dict[str, Any]] = lambda n: {}
) -> tuple[State, list[Observation]]:
    rng, state = np.random.default_rng(seed), State(SPACE)
    history: list[Observation] = []
    for n in range(trials):
        history.append(observe(n, propose(state, []), rng, **spoil(n)))
        state = fold(state, history[-1])
    return state, history


def test_finds_the_optimum() -> None:
    state, history = search(120)
    assert state.best_value < 1e-3
    assert min(o.value for o in history if o.parent is None) > 10 * state.best_value  # not by exploring


def test_the_first_trial_wants_its_gradient_whatever_its_value() -> None:
    assert propose(State(SPACE), []).gradient_below == math.inf
    assert propose(State(SPACE), []).point is None


def test_exploring_trials_want_a_gradient_only_where_they_are_the_best_yet() -> None:
    state, _ = search(STRATEGY.startup_trials - 1)
    proposal = propose(state, [])
    assert proposal.point is None
    assert proposal.gradient_below == state.best_value


def test_a_step_wants_its_gradient_only_where_it_beats_its_parent() -> None:
    _, history = search(60)
    values = {o.trial: o.value for o in history}
    steps = [o for o in history if o.parent is not None]
    assert steps
    for step in steps:
        assert (step.gradient is not None) == (step.value < values[str(step.parent)])


def test_without_gradients_it_only_explores() -> None:
    state, history = search(40, spoil=lambda n: {"gradient": None})
    assert all(o.parent is None for o in history)
    assert propose(state, []).gradient_below == math.inf


def test_folding_is_the_same_from_storage() -> None:
    state, history = search(50)
    again = State(SPACE)
    for observation in history:
        again = fold(again, Observation.from_json(json.loads(json.dumps(observation.to_json()))))
    assert again.best_value == state.best_value
    assert again.chains.keys() == state.chains.keys()
    ours, theirs = propose(again, []), propose(state, [])
    assert (ours.parent, ours.gradient_below) == (theirs.parent, theirs.gradient_below)
    if theirs.point is not None:
        np.testing.assert_array_equal(ours.point, theirs.point)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("gradient", [None, "finite"])
def test_failed_trials_are_failed_steps(value: float, gradient: str | None) -> None:
    def spoil(n: int) -> dict[str, Any]:
        return {"value": value, **({"gradient": None} if gradient is None else {})} if n % 3 == 1 else {}

    state, _ = search(150, spoil=spoil)
    assert math.isfinite(state.best_value)
    assert state.best_value < 1e-2


def test_gradients_that_are_not_finite_are_not_used() -> None:
    def spoil(n: int) -> dict[str, Any]:
        return {"gradient": {"x": math.nan, "rate": 1.0, "array": np.zeros(3)}}

    state, history = search(20, spoil=spoil)
    assert not state.has_gradients
    assert all(o.parent is None for o in history)


def test_a_wrong_gradient_shrinks_the_region_and_ends_the_chain() -> None:
    """With every gradient reversed no step succeeds, and the search falls back on exploring."""

    def reverse(observation: Observation) -> Observation:
        h = observation.hyperparameters
        wrong = {name: -np.asarray(g) for name, g in slope(dict(h)).items()}
        return Observation(**{**observation.__dict__, "gradient": wrong if observation.gradient else None})

    rng, state, costs = np.random.default_rng(0), State(SPACE), {True: 0.0, False: 0.0}
    for n in range(300):
        observation = reverse(observe(n, propose(state, []), rng))
        costs[observation.parent is None] += observation.cost
        state = fold(state, observation)
    assert costs[True] > costs[False]


def test_states_are_values() -> None:
    state, history = search(30)
    before = (state.trials, dict(state.chains), state.best_value)
    fold(state, history[-1])
    propose(state, [])
    assert (state.trials, dict(state.chains), state.best_value) == before


def test_a_worse_step_is_taken_back_even_with_a_gradient() -> None:
    """Objectives that compute gradients themselves may report them for steps that failed."""
    state, _ = search(8)
    head, region = next(iter(state.chains.items()))
    h = from_unit(SPACE, region.step())
    after = fold(state, Observation("worse", head, h, region.value + 1, slope(h), 4.0))
    assert "worse" not in after.chains
    assert (after.chains[head].point == region.point).all()
    assert region_of(after, head).reach < region_of(state, head).reach


def test_a_head_that_turns_every_step_down_is_looked_at_again() -> None:
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    state, head = (
        fold(State(SPACE, trials=STRATEGY.startup_trials), Observation("0", None, start, 1.0, slope(start), 4.0)),
        "0",
    )
    first, region = state, state.chains[head]
    for n in range(STRATEGY.doubts):
        h = from_unit(SPACE, state.chains[head].step())
        state = fold(state, Observation(f"failed {n}", head, h, math.inf, None, 1.0))
    state = replace(state, descending=replace(state.descending, gain=1.0))
    proposal = propose(state, [])
    assert (proposal.parent, proposal.gradient_below, proposal.again) == (head, math.inf, True)

    look = Observation("same", head, start, region.value, slope(start), 4.0, again=True)
    same = fold(state, look)
    assert same.noisy is False
    assert region_of(same, head).reach == region_of(state, head).reach
    assert not propose(same, []).again
    late = replace(state, noisy=False)  # another worker's second look, elsewhere, has settled it meanwhile
    assert fold(late, look).chains.keys() == {head}
    other = fold(state, replace(look, value=region.value + 0.2))
    assert other.noisy is True
    assert other.chains[head].value == pytest.approx(region.value + 0.1)
    assert region_of(other, head).reach == pytest.approx(region_of(first, head).reach)


def test_luck_with_what_is_held_back_does_not_last() -> None:
    region = SignRegion(np.zeros(2), 1.0, np.ones(2), how=SignSteps(), radii=np.ones(2))
    looked = replace(region, held_back=(0.1, 1.0)).look(2.0, None, (0.5, 2.0))
    assert looked.value == 1.5
    assert looked.held_back == pytest.approx((0.3, 1.5))


def test_luck_does_not_last() -> None:
    """Under noise, heads are looked at again and again."""
    sigma = 0.1
    rng, state, looks = np.random.default_rng(1), State(SPACE), 0
    for n in range(200):
        proposal = propose(state, [])
        looks += proposal.again
        value = loss(observe(n, proposal, np.random.default_rng(n)).hyperparameters) + sigma * rng.normal()
        wanted = value < proposal.gradient_below
        observation = observe(n, proposal, np.random.default_rng(n))
        gradient = slope(dict(observation.hyperparameters)) if wanted else None
        state = fold(state, replace(observation, value=value, gradient=gradient, cost=4.0 if wanted else 1.0))
    assert state.noisy is True
    assert looks > 1


def test_a_step_that_does_not_lower_what_is_held_back_has_failed() -> None:
    state, _ = search(30)
    head = min(state.chains, key=lambda head: state.chains[head].value)
    before = (9.0, 0.5, 9.0, 9.0)
    state = replace(state, chains={head: replace(region_of(state, head), held_back=before, left_out=1)})
    proposal = propose(state, [])
    while proposal.parent is None:  # not its turn
        state = fold(state, observe(state.trials, proposal, np.random.default_rng(1), value=9.0, gradient=None))
        proposal = propose(state, [])
    assert (proposal.parent, proposal.fold) == (head, Fold(2, 4, below=0.5, judge=1, margin=1.0))
    new = (9.0, 0.4, 9.0, 9.0)
    h = from_unit(SPACE, region_of(state, head).step())
    better = Observation("100", head, h, state.chains[head].value - 0.1, slope(h), 4.0, held_back=new, left_out=2)
    accepted = region_of(fold(state, better), "100")
    assert (accepted.held_back, accepted.left_out) == (new, 2)
    rejected = region_of(fold(state, replace(better, value=math.inf, gradient=None)), head)
    assert (rejected.held_back, rejected.left_out) == (before, 1)


def test_another_fold_is_left_out_after_two_failures() -> None:
    """The head gets a gradient that leaves the next fold out, and the steps that failed are forgotten."""
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    losses, wrong = (1.0, 2.0, 3.0, 4.0), {name: -np.asarray(x) for name, x in slope(start).items()}
    first = Observation("0", None, start, 1.0, slope(start), 4.0, held_back=losses, left_out=3, deterministic=True)
    explored = Account(100.0, 1.0, 0.0)  # so that it is the chain's turn
    state = replace(fold(State(SPACE, trials=STRATEGY.startup_trials), first), exploring=explored)
    for n in range(STRATEGY.turns):
        proposal = propose(state, [])
        assert (proposal.parent, proposal.again, proposal.fold) == (
            "0",
            False,
            Fold(0, 4, below=4.0, judge=3, margin=1.0),
        )
        state = fold(state, observe(n, proposal, RNG, value=math.inf, gradient=None))
    proposal = propose(state, [])
    assert (proposal.parent, proposal.again, proposal.fold) == ("0", True, Fold(0, 4))
    turned = region_of(fold(state, replace(first, trial="9", parent="0", again=True, gradient=wrong, left_out=0)), "0")
    before = region_of(state, "0")
    assert (turned.left_out, turned.rejections) == (0, 0)
    assert turned.reach == pytest.approx(before.reach / before.rejection)  # as large as before the last of the failures
    np.testing.assert_array_equal(turned.gradient, -before.gradient)


def test_under_noise_another_fold_is_a_second_look_too() -> None:
    """The steps that failed may have been judged too harshly, so the radii are again as large as before them."""
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    first = Observation("0", None, start, 1.0, slope(start), 4.0, held_back=(1.0, 2.0, 3.0, 4.0))
    fresh = replace(fold(State(SPACE), first), noisy=True)
    tired = fresh
    for n in range(STRATEGY.turns):
        tired = fold(tired, Observation(f"failed {n}", "0", start, math.inf, None, 1.0))
    assert region_of(tired, "0").reach < region_of(fresh, "0").reach
    again = replace(first, trial="9", parent="0", again=True, value=2.0, left_out=1)
    looked = region_of(fold(tired, again), "0")
    assert (looked.value, looked.left_out, looked.rejections) == (1.5, 1, 0)
    assert looked.reach == pytest.approx(region_of(fresh, "0").reach)


def test_what_is_known_to_be_deterministic_is_not_looked_at_again() -> None:
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    for deterministic in (True, False):
        first = Observation("0", None, start, 1.0, slope(start), 4.0, deterministic=deterministic)
        state = fold(State(SPACE), first)
        for n in range(STRATEGY.doubts):
            state = fold(state, Observation(f"failed {n}", "0", start, math.inf, None, 1.0))
        assert propose(replace(state, exploring=Account(9.0, 1.0, 0.0)), []).again != deterministic


def test_a_chain_ends_where_little_is_left_to_gain() -> None:
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    flat = {name: 1e-4 * np.asarray(x) for name, x in slope(start).items()}
    cases = (slope(start), 1.0, False), (flat, 1.0, True), (flat, 1e-3, False), (flat, -1.0, True)
    for gradient, value, ends in cases:
        state = fold(State(SPACE), Observation("0", None, start, value, gradient, 4.0))
        assert (not state.chains) == ends


def test_no_chain_is_founded_beside_another_while_no_gradient_has_paid() -> None:
    right, _ = search(60)
    wrong, rng, founded = State(SPACE), np.random.default_rng(0), 0
    for n in range(60):
        observation = observe(n, propose(wrong, []), rng)
        if observation.gradient is not None:
            founded += observation.parent is None
            uphill = {name: -g for name, g in observation.gradient.items()}
            observation = replace(observation, gradient=uphill)
        wrong = fold(wrong, observation)
    assert wrong.descending.gain == 0 < right.descending.gain
    assert founded <= 4


def test_the_model_fits_the_dimension() -> None:
    step = ByDimension(few=QuasiNewton(), many=SignSteps())
    for size, model in [(step.most, QuasiNewtonRegion), (step.most + 1, SignRegion)]:
        assert isinstance(founded(ExploreDescend(step=step), size), model)


def founded(strategy: ExploreDescend, size: int) -> TrustRegion | Continuation:
    """Return the chain that a first trial in so many dimensions founds."""
    space = {"x": Float(0.0, 1.0, shape=(size,))}
    first = Observation("0", None, {"x": np.full(size, 0.5)}, 1.0, {"x": np.ones(size)}, 4.0)
    return strategy.fold(strategy.init(space), first).chains["0"]


def test_the_step_is_chosen_by_a_field() -> None:
    assert isinstance(founded(ExploreDescend(step=SignSteps()), 2), SignRegion)
    assert isinstance(founded(ExploreDescend(step=QuasiNewton()), 300), QuasiNewtonRegion)
    short = founded(ExploreDescend(step=SignSteps(radii=Radii(start=0.02))), 2)
    np.testing.assert_allclose(short.step(), [0.49, 0.49])


def test_every_setting_counts() -> None:
    observations = [Observation(str(n), None, {"x": np.full(2, 0.5)}, 1.0, {"x": np.ones(2)}, 4.0) for n in range(3)]
    space = {"x": Float(0.0, 1.0, shape=(2,))}

    def after(trials: int, **settings: Any) -> tuple[ExploreDescend, State]:
        strategy = ExploreDescend(**settings)
        state = strategy.init(space)
        for observation in observations[:trials]:
            state = strategy.fold(state, observation)
        return strategy, state

    def parent(trials: int, **settings: Any) -> str | None:
        strategy, state = after(trials, **settings)
        return strategy.propose(state, []).parent

    assert (parent(1, startup_trials=2), parent(1), parent(3)) == (None, "0", "0")
    assert after(2)[1].exploring.cost == 4.0 + STRATEGY.memory * 4.0
    assert after(2, memory=0.5)[1].exploring.cost == 6.0
    assert STRATEGY.propose(State(space), []).fold == Fold(0, 4)
    assert ExploreDescend(folds=3).propose(State(space), []).fold == Fold(0, 3)
    assert ExploreDescend(folds=None).propose(State(space), []).fold is None
    # while descending pays and exploring does not, exploring keeps the smallest share
    state = replace(after(3)[1], exploring=Account(10.0, 3.0, 0.0), descending=Account(40.0, 3.0, 1.0))
    assert propose(state, []).parent is not None
    assert ExploreDescend(smallest_share=0.3).propose(state, []).parent is None
    # a head is looked at again after as many failed steps as `doubts` says
    tired = {head: replace(region_of(state, head), rejections=1) for head in state.chains}
    assert not propose(replace(state, chains=tired), []).again
    assert ExploreDescend(doubts=1).propose(replace(state, chains=tired), []).again


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ExploreDescend(startup_trials=-1), "ExploreDescend: startup_trials must be a whole number from 0"),
        (lambda: ExploreDescend(doubts=0), "ExploreDescend: doubts must be a whole number from 1, got 0"),
        (lambda: ExploreDescend(folds=1), "ExploreDescend: folds must be a whole number from 2, got 1"),
        (lambda: ExploreDescend(smallest_share=0.6), "smallest_share must be a number from 0 to 0.5, got 0.6"),
        (lambda: ExploreDescend(memory=2.0), "memory must be a number from 0 to 1, got 2.0"),
        (lambda: ExploreDescend(step=cast(Any, SignRegion)), "step must be a LocalStep such as SignSteps"),
        (lambda: Radii(start=0.6), "0 < smallest <= start <= largest must hold, got Radii"),
        (lambda: SignSteps(growth=0.9), "growth must be at least 1"),
        (lambda: QuasiNewton(rejection=1.0), "rejection between 0 and 1"),
        (lambda: QuasiNewton(curvatures=(2.0, 1.0)), r"curvatures \(lowest, highest\) above 0"),
        (lambda: Limits(stalls=0), "Limits: stalls must be a whole number from 1, got 0"),
        (
            lambda: ByDimension(few=SignSteps(), many=SignSteps(), most=cast(Any, 2.5)),
            "ByDimension: most must be a whole number",
        ),
        (lambda: Proposal(np.zeros(1), None, 0.0), "a point needs a parent"),
        (lambda: Proposal(None, "0", 0.0), "a parent needs a point"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_strategies_are_values() -> None:
    assert ExploreDescend() == ExploreDescend() != ExploreDescend(doubts=2)
    assert len({ExploreDescend(), ExploreDescend(step=SignSteps()), ExploreDescend(step=QuasiNewton())}) == 2
    assert pickle.loads(pickle.dumps(ExploreDescend(folds=3))) == ExploreDescend(folds=3)


def test_a_chain_that_has_arrived_ends() -> None:
    """The model's step has length 0 then, and must not be taken again and again."""
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    state = fold(State(SPACE), Observation("0", None, start, 1.0, slope(start), 4.0))
    assert "0" not in fold(state, Observation("1", "0", start, 1.0, slope(start), 4.0)).chains


# a history that another search has made


def strange(trial: int, value: float, at: float = 0.5) -> Observation:
    return Observation(str(trial), None, from_unit(SPACE, np.full(dimension(SPACE), at)), value, unasked=True)


def test_the_best_of_another_search_is_evaluated_once_more_with_its_gradient() -> None:
    state = STRATEGY.init(SPACE)
    for trial, value in enumerate([3.0, 1.0, 2.0, math.inf]):
        state = fold(state, strange(trial, value, at=0.1 * trial))
    assert propose(state, [Attempt("1")]).parent is None, "one is enough"
    look = propose(state, [])
    assert (look.parent, look.again, look.gradient_below) == ("1", True, math.inf)
    assert look.point is not None
    np.testing.assert_allclose(look.point, 0.1)
    assert STRATEGY.goes_on(state)
    point = from_unit(SPACE, look.point)
    after = fold(state, Observation("4", "1", point, 1.0, slope(point), 4.0, again=True))
    assert set(after.chains) == {"4"}
    assert STRATEGY.goes_on(after)
    assert not after.descending.cost, "it has explored"
    later = [propose(after, []) for after in (after, fold(after, strange(5, 1.5)))]
    assert [p.again for p in later] == [False, False], "what has a chain is better"
    better = propose(fold(after, strange(6, 0.5)), [])
    assert (better.parent, better.again) == ("6", True)


@pytest.mark.parametrize("value", [1.0, math.inf])
def test_it_is_not_evaluated_again_and_again_where_no_gradient_comes(value: float) -> None:
    state = fold(STRATEGY.init(SPACE), strange(0, 1.0))
    look = propose(state, [])
    assert look.point is not None
    after = fold(state, Observation("1", "0", from_unit(SPACE, look.point), value, again=True))
    assert propose(after, []).parent is None


def test_trials_of_another_search_with_gradients_found_chains_at_once() -> None:
    point = from_unit(SPACE, np.full(dimension(SPACE), 0.4))
    seen = Observation("0", None, point, loss(point), slope(point), unasked=True)
    state = fold(STRATEGY.init(SPACE), seen)
    assert set(state.chains) == {"0"}
    assert state.unasked is None
    assert Observation.from_json(json.loads(json.dumps(seen.to_json()))).unasked


def test_a_strategy_of_somebody_else_s_goes_on_while_it_proposes_steps() -> None:
    class Other(ExploreDescend):
        goes_on = Strategy.goes_on

    other = Other(startup_trials=0)
    state = other.init(SPACE)
    assert not other.goes_on(state)
    point = from_unit(SPACE, np.full(dimension(SPACE), 0.4))
    assert other.goes_on(other.fold(state, Observation("0", None, point, 1.0, slope(point))))


def test_a_chain_ends_where_what_was_held_back_gains_nothing() -> None:
    """The whole loss falls by a lot, and the cross-validated loss by hardly anything."""
    start, end = (from_unit(SPACE, np.full(dimension(SPACE), x)) for x in (0.5, 0.6))
    first = Observation("0", None, start, 1.0, slope(start), 4.0, held_back=(1.0,) * 4, cross_validated=1.0)
    step = Observation("1", "0", end, 0.5, slope(end), 4.0, held_back=(0.5,) * 4)
    state = fold(State(SPACE), first)
    for after, goes_on in ((0.9, True), (0.9995, False), (None, True)):
        assert ("1" in fold(state, replace(step, cross_validated=after)).chains) == goes_on


def test_a_fold_has_what_its_judge_needs() -> None:
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    blocks = ((1.0, 1.0), (2.0, 2.5), (3.0, 3.0), (4.0, 4.0))
    first = Observation("0", None, start, 1.0, slope(start), 4.0, held_back=(1.0, 2.25, 3.0, 4.0), left_out=1)
    state = replace(fold(State(SPACE), replace(first, blocks=blocks, cross_validated=0.75)), trials=9)
    state = replace(state, exploring=Account(100.0, 1.0, 0.0))  # so that it is the chain's turn
    wanted = Fold(2, 4, below=2.25, judge=1, margin=1.0, blocks=(2.0, 2.5), cross_validated=0.75)
    assert propose(state, []).fold == wanted
    doubtful = replace(state, chains={"0": replace(region_of(state, "0"), rejections=STRATEGY.turns)})
    assert propose(doubtful, []).fold == Fold(2, 4, cross_validated=0.75)


def test_a_second_look_that_finds_nothing_new_repeats_no_step() -> None:
    """Where nothing is held back the gradient is the same again, so the next step must be a shorter one."""
    start = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    first = Observation("0", None, start, 1.0, slope(start), 4.0)
    state = fold(State(SPACE), first)
    for n in range(STRATEGY.doubts):
        step = from_unit(SPACE, region_of(state, "0").step())
        state = fold(state, Observation(f"failed {n}", "0", step, math.inf, None, 1.0))
    ahead = region_of(state, "0").step()
    looked = fold(state, replace(first, trial="9", parent="0", again=True, left_out=1))
    np.testing.assert_array_equal(region_of(looked, "0").step(), ahead)


def test_a_chain_goes_on_where_the_number_of_folds_has_changed() -> None:
    """The losses of other folds say nothing, so the chain's cross-validated loss starts anew at its next step."""
    start, end = (from_unit(SPACE, np.full(dimension(SPACE), x)) for x in (0.5, 0.6))
    first = Observation("0", None, start, 1.0, slope(start), 4.0, held_back=(0.5,) * 3, cross_validated=0.5)
    state = replace(fold(State(SPACE), first), exploring=Account(100.0, 1.0, 0.0), trials=9)
    assert propose(state, []).fold == Fold(1, 4)
    step = Observation("1", "0", end, 0.8, slope(end), 4.0, held_back=(0.8,) * 4, cross_validated=0.8)
    assert "1" in fold(state, step).chains


def test_once_all_chains_have_ended_the_best_of_a_few_founds_one() -> None:
    """The best of all, near the optimum, would be hard to beat."""
    point = from_unit(SPACE, np.full(dimension(SPACE), 0.5))
    state = fold(State(SPACE), Observation("0", None, point, 1.0, slope(point), 4.0))
    flat = {name: np.zeros_like(derivative) for name, derivative in slope(point).items()}
    state = fold(state, Observation("1", "0", point, 0.0, flat, 4.0))
    assert not state.chains
    values = 5 + np.random.default_rng(0).uniform(size=STRATEGY.restart)
    for n, value in enumerate(values):
        assert propose(state, []).gradient_below == 1.0
        state = fold(state, Observation(str(n + 2), None, point, float(value)))
    assert propose(state, []).gradient_below == values.min()
    state = fold(state, Observation("100", None, point, 9.0))
    assert len(state.unfollowed) == STRATEGY.restart, "no more are remembered"
    founded = fold(state, Observation("101", None, point, 4.0, slope(point), 4.0))
    assert (set(founded.chains), founded.unfollowed) == ({"101"}, ())
    assert STRATEGY.explore(founded).gradient_below == 1.0


def test_a_derivative_of_little_trust_moves_little() -> None:
    """The search multiplies each derivative by its trust; one of none does not move."""
    h = {"x": 0.0, "rate": 1e-1, "array": np.full(3, 0.8)}
    told = Observation("0", None, h, loss(h), {**slope(h), "array": np.ones(3)}, centre=True)
    moves = {}
    for trust in (None, {"array": 0.25}, {"array": 0.0, "x": 1.0}):
        region = region_of(fold(State(SPACE), replace(told, trust=trust)), "0")
        moves[str(trust)] = np.abs(region.step() - region.point)
    sure, doubted, unbelieved = moves.values()
    assert doubted == pytest.approx(np.array([1.0, 1.0, 0.25, 0.25, 0.25]) * sure)
    assert np.all(unbelieved[2:] == 0)
    assert np.all(unbelieved[:2] > 0)


def test_a_chain_keeps_the_trust_of_its_head() -> None:
    """After a step that was better, and after a second look, whose trust is averaged as its gradient is."""
    strategy = ExploreDescend(folds=None)
    h = {"x": 0.0, "rate": 1e-1, "array": np.full(3, 0.8)}
    told = Observation("0", None, h, loss(h), slope(h), trust={"array": 0.5})
    state = strategy.fold(State(SPACE), told)
    looked = strategy.fold(state, replace(told, trial="1", parent="0", again=True, value=loss(h) + 0.1, trust={}))
    assert np.asarray(region_of(looked, "0").trust).tolist() == [1.0, 1.0, 0.75, 0.75, 0.75]
    point = from_unit(SPACE, region_of(state, "0").step())
    step = Observation("1", "0", point, loss(point), slope(point), trust={"rate": 0.25})
    assert np.asarray(region_of(strategy.fold(state, step), "1").trust).tolist() == [1.0, 0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [SignSteps(), QuasiNewton()], ids=["sign", "quasi-newton"])
def test_trust_shortens_steps_and_leaves_radii_alone(step: Any) -> None:
    point, gradient = np.array([0.5, 0.5]), np.array([1.0, 1.0])
    sure = step.around(point, 1.0, gradient)
    doubted = replace(sure, trust=np.array([0.25, 0.25]))
    assert doubted.step() - point == pytest.approx(0.25 * (sure.step() - point))
    # One that fails shrinks the radii as it does anywhere, and one that is better does not shrink them.
    assert doubted.reject(doubted.step()).reach == pytest.approx(sure.reject(sure.step()).reach)
    better = doubted.follow(doubted.step(), 1.0 + 2 * float(gradient @ (doubted.step() - point)), gradient, 0)
    assert better.reach >= doubted.reach
    # What no step can be taken by any more is spent, and what the box blocks is no measure of the rest.
    assert replace(sure, trust=np.zeros(2)).spent
    assert replace(sure, trust=np.full(2, 1e-6)).spent
    assert not doubted.spent
    blocked = replace(step.around(np.array([0.0, 0.5]), 1.0, gradient), trust=np.array([1.0, 0.25]))
    assert blocked.reject(blocked.step()).reach == pytest.approx(sure.reject(sure.step()).reach)


def test_a_step_within_a_box_of_trust_lowers_the_model() -> None:
    """Where coordinates are coupled, a share of each one's part of the step might raise it."""
    region = replace(
        QuasiNewton().around(np.full(2, 0.5), 1.0, np.array([1e-3, 1e-3])),
        curvature=np.array([[1.0, 0.95], [0.95, 1.0]]),
        trust=np.array([1.0, 0.1]),
    )
    assert isinstance(region, QuasiNewtonRegion)
    assert region.expected_gain > 0


def test_trust_survives_json() -> None:
    told = Observation("0", None, {"x": 0.0}, 1.0, {"x": 2.0}, trust={"x": 0.5})
    again = Observation.from_json(json.loads(json.dumps(told.to_json())))
    assert again.trust == {"x": 0.5}
