"""Chains whose evaluations move the hyperparameters themselves."""

import json
import math
from typing import Any

import numpy as np

from hypergrad_search import Float
from hypergrad_search.fold import Fold
from hypergrad_search.search import ExploreDescend, Limits, Observation
from hypergrad_search.search.continuation import Continuation
from hypergrad_search.search.explore_descend import State

STRATEGY = ExploreDescend()
fold, propose = STRATEGY.fold, STRATEGY.propose
SPACE = {"x": Float(0.0, 1.0, shape=(2,))}


def stretch(
    trial: int, parent: str | None, start: float, end: float | None, value: float, **fields: Any
) -> Observation:
    refined = None if end is None else {"x": np.full(2, end)}
    return Observation(str(trial), parent, {"x": np.full(2, start)}, value, None, 10.0, refined=refined, **fields)


def started() -> State:
    """Return the state after three explored points, of which the second ended lowest."""
    state = State(SPACE)
    for trial, value in enumerate([3.0, 1.0, 2.0]):
        state = fold(state, stretch(trial, None, 0.1 * trial, 0.5 + 0.1 * trial, value))
    return state


def test_the_best_stretch_goes_on_from_where_it_ended() -> None:
    state = started()
    proposal = propose(state, [])
    assert proposal.parent == "1"
    assert proposal.point is not None
    np.testing.assert_allclose(proposal.point, [0.6, 0.6])
    after = fold(state, stretch(3, "1", 0.6, 0.65, 0.5))
    assert "1" not in after.chains
    np.testing.assert_allclose(after.chains["3"].step(), [0.65, 0.65])


def test_a_worse_stretch_goes_on_too_until_patience_ends() -> None:
    state, head = started(), "1"
    for n in range(STRATEGY.limits.stalls):
        assert state.chains[head].value == 1.0
        state = fold(state, stretch(10 + n, head, 0.6, 0.6 + 0.01 * n, 1.5))
        head = str(10 + n)
    assert set(state.chains) == {"0", "2"}


def test_a_failed_stretch_is_tried_once_more_from_the_same_point() -> None:
    state = fold(started(), stretch(3, "1", 0.6, None, math.inf))
    np.testing.assert_allclose(state.chains["1"].step(), [0.6, 0.6])
    after = fold(state, stretch(4, "1", 0.6, 0.7, 0.5)).chains["4"]
    assert isinstance(after, Continuation)
    assert after.failures == 0
    assert "1" not in fold(state, stretch(4, "1", 0.6, None, math.inf)).chains


def test_what_is_held_back_must_fall_along_a_chain() -> None:
    state = fold(started(), stretch(3, "1", 0.6, 0.65, 0.5, held_back=(0.7, 0.1)))
    assert propose(state, []).fold == Fold(0, 4)  # they are losses of other folds
    four = (0.7, 0.1, 0.1, 0.1)
    state = fold(started(), stretch(3, "1", 0.6, 0.65, 0.5, held_back=four))
    assert propose(state, []).fold == Fold(0, 4, below=0.7, judge=0)
    after = fold(state, stretch(4, "3", 0.65, 0.7, 0.4, held_back=(0.6, 9.0)))
    assert after.chains["4"].held_back == (0.6, 9.0)


def test_refined_points_survive_json() -> None:
    observation = stretch(0, None, 0.1, 0.4, 1.0)
    again = Observation.from_json(json.loads(json.dumps(observation.to_json())))
    ours, theirs = (fold(State(SPACE), o).chains["0"] for o in (observation, again))
    np.testing.assert_array_equal(ours.point, theirs.point)
    none = np.zeros(0)
    fields = [{**vars(chain), "point": None} for chain in (ours, theirs, Continuation(none, 1.0))]
    assert fields[0] == fields[1] == fields[2]


def test_limits_are_settings() -> None:
    strict = ExploreDescend(limits=Limits(stalls=1, failures=1))
    worse, failed = stretch(3, "1", 0.6, 0.7, 1.5), stretch(3, "1", 0.6, None, math.inf)
    for observation in (worse, failed):
        state = strict.init(SPACE)
        for trial, value in enumerate([3.0, 1.0, 2.0]):
            state = strict.fold(state, stretch(trial, None, 0.1 * trial, 0.5 + 0.1 * trial, value))
        assert set(strict.fold(state, observation).chains) == {"0", "2"}
