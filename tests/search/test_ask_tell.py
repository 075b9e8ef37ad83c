"""What all hosts decide in the same way."""

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from hypergrad_search import Categorical, Float, Fold, Int, Space, Status
from hypergrad_search.hosting import joined
from hypergrad_search.search import ExploreDescend, Observation
from hypergrad_search.search.ask_tell import (
    OVERFITTED,
    AskTell,
    MissingGradients,
    Outcome,
    Wanted,
    collect,
    levels,
    same_model,
    spread,
)

SPACE: Space = {
    "array": Float(0.0, 1.0, shape=(2,)),
    "kind": Categorical(["a", None]),
    "layers": Int(1, 4),
    "rate": Float(1e-4, 1.0, log=True),
}
POINT = {"array": np.array([0.2, 0.6]), "kind": None, "layers": 2, "rate": 0.01}
BEGUN = Observation("7", None, POINT)


def strict(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(gradient_below=-math.inf),
        Wanted(parent="3", again=True, gradient_below=0.5, fold=Fold(1, 3), maximise=True, checkpoint="there"),
        Wanted(fold=Fold(0, 4, below=0.25)),
    ],
)
def test_what_is_wanted_survives_strict_json(wanted: Wanted) -> None:
    assert Wanted.from_json(strict(wanted.to_json())) == wanted


def test_another_search_wants_nothing() -> None:
    nothing = Wanted.from_json(None)
    assert not nothing.wants_gradient(-1e300)
    assert nothing.held_back({"x": Float(0.0, 1.0, lift=(2,))}) is None


def test_what_is_held_back_needs_a_lift() -> None:
    wanted = Wanted(fold=Fold(0, 4))
    assert wanted.held_back({"x": Float(0.0, 1.0, lift=(2,)), "n": Int(0, 1)}) == Fold(0, 4)
    assert wanted.held_back({"x": Float(0.0, 1.0, shape=(2,)), "n": Int(0, 1)}) is None


def test_observations_survive_strict_json() -> None:
    seen = Observation(
        "1", "0", POINT, 0.5, {"array": np.ones(2)}, 4.0, (0.1, math.inf), {"array": np.zeros(2)}, again=True
    )
    again = Observation.from_json(strict(seen.to_json()))
    assert again.hyperparameters == {**POINT, "array": [0.2, 0.6]}
    assert (again.held_back, again.again, again.value, again.cost) == ((0.1, math.inf), True, 0.5, 4.0)
    assert (again.gradient, again.refined) == ({"array": [1.0, 1.0]}, {"array": [0.0, 0.0]})
    failed = Observation.from_json(strict(BEGUN.to_json()))
    assert (failed.value, failed.gradient, failed.held_back) == (math.inf, None, None)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "many", np.ones(2), [1.0]])
@pytest.mark.parametrize("maximise", [False, True])
def test_a_value_that_is_no_finite_number_is_a_failed_step(value: Any, maximise: bool) -> None:
    assert AskTell.begin(SPACE, maximise=maximise).read(BEGUN, Outcome(value)).value == math.inf


@pytest.mark.parametrize("maximise", [False, True])
def test_an_overfitted_step_has_failed_whatever_its_value(maximise: bool) -> None:
    mind = AskTell.begin(SPACE, maximise=maximise)
    assert mind.read(BEGUN, Outcome(-5.0, status="overfitted")).value == math.inf
    assert math.isfinite(mind.read(BEGUN, Outcome(-5.0, status="ok")).value)
    assert Status.OVERFITTED == OVERFITTED


def test_maximising_turns_value_and_gradient_round() -> None:
    seen = AskTell.begin(SPACE, maximise=True).read(BEGUN, Outcome(3, {"rate": 2.0}))
    assert seen.value == -3.0
    assert seen.gradient is not None
    assert seen.gradient["rate"] == -2.0
    assert AskTell.begin(SPACE, maximise=True).ask([]).wanted.maximise


def test_missing_derivatives_are_zero() -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, {"rate": 2.0, "array": None, "layers": 5.0}))
    assert seen.gradient is not None
    assert {name: slope.tolist() for name, slope in seen.gradient.items()} == {"array": [0.0, 0.0], "rate": 2.0}


@pytest.mark.parametrize("gradient", [None, {}, {"array": None}, {"layers": 1.0}])
def test_no_derivative_of_a_float_is_no_gradient(gradient: Any) -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, gradient))
    assert (seen.gradient, seen.cost) == (None, 1.0)


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_dropped_and_paid_for(slope: float) -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, {"rate": slope}))
    assert (seen.value, seen.gradient, seen.cost) == (1.0, None, 4.0)
    assert "1 of the 1 numbers" in seen.ignored


@pytest.mark.parametrize("bad", [1.0, np.ones(3), "steep", {"a": 1}])
def test_a_gradient_that_does_not_fit_is_ignored(bad: Any) -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, {"array": bad}))
    assert seen.gradient is None
    assert seen.ignored.startswith("gradient['array'] must be numbers of shape (2,), got")


@pytest.mark.parametrize(("reported", "cost"), [(None, 1.0), (math.nan, 1.0), (20, 20.0), ("7", 7.0)])
def test_cost_is_one_unless_it_is_said(reported: Any, cost: float) -> None:
    assert AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, cost=reported)).cost == cost


def test_losses_held_back_that_are_not_finite_count_as_infinite() -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, held_back=[0.0, math.nan, "inf", None]))
    assert seen.held_back == (0.0, math.inf, math.inf, math.inf)


@pytest.mark.parametrize("reported", [0.3, "none", [], {"a": 1.0}])
def test_losses_held_back_that_are_no_losses_are_ignored(reported: Any) -> None:
    assert AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, held_back=reported)).held_back is None


@pytest.mark.parametrize("maximise", [False, True])
def test_a_failed_trial_needs_no_gradient(maximise: bool) -> None:
    assert Wanted(maximise=maximise).wants_gradient(1.0)
    assert not any(Wanted(maximise=maximise).wants_gradient(x) for x in (math.nan, math.inf, -math.inf))


def test_refined_hyperparameters_must_be_complete() -> None:
    mind = AskTell.begin(SPACE)
    assert mind.read(BEGUN, Outcome(1.0, refined={"rate": 0.1})).refined is None
    whole = mind.read(BEGUN, Outcome(1.0, refined={"rate": 0.1, "array": [0.1, 0.2], "kind": None})).refined
    assert whole is not None
    assert {name: np.asarray(value).tolist() for name, value in whole.items()} == {"array": [0.1, 0.2], "rate": 0.1}


def test_a_step_moves_floats_and_a_second_look_moves_nothing() -> None:
    strategy = ExploreDescend(startup_trials=0, doubts=1)
    mind = AskTell.begin(SPACE, strategy)
    assert (mind.ask([]).moved, mind.ask([]).levels) == (None, {})
    mind = mind.tell(mind.read(BEGUN, Outcome(1.0, {"rate": 1.0, "array": [0.5, -0.5]})))
    assert mind.has_gradients
    step = mind.ask([])
    assert step.wanted.parent == "7"
    assert step.moved is not None
    assert set(step.moved) == {"array", "rate"}
    assert step.levels["array"] == pytest.approx(step.moved["array"].mean())
    assert step.levels["rate"] == step.moved["rate"]
    failed = mind.tell(Observation("8", "7", {**POINT, **step.moved}, cost=1.0))
    look = failed.ask([])
    while look.wanted.parent is None:
        failed = failed.tell(Observation("x", None, POINT, 9.0))
        look = failed.ask([])
    assert (look.wanted.again, look.moved, look.levels) == (True, {}, {})


def test_points_of_the_user_s_choice_extend_no_chain() -> None:
    mind = AskTell.begin(SPACE, ExploreDescend(startup_trials=0))
    mind = mind.tell(mind.read(BEGUN, Outcome(1.0, {"rate": 1.0})))
    chosen = mind.explore()
    assert (chosen.moved, chosen.wanted.parent, chosen.wanted.again) == (None, None, False)
    assert chosen.wanted.fold == Fold(0, 4)


def test_missing_gradients_are_told_of_once() -> None:
    missing, mind = MissingGradients("Search", "objective", object(), "report one"), AskTell.begin(SPACE)
    learned = mind.tell(Observation("0", None, POINT, 1.0, {"rate": 1.0, "array": [0, 0]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing.check(mind, math.inf, reported=False)
        missing.check(mind, 1.0, reported=True)
        missing.check(learned, 1.0, reported=False)
    with pytest.warns(UserWarning, match="the objective reported no gradient, so this search is object's alone"):
        missing.check(mind, 1.0, reported=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing.check(mind, 1.0, reported=False)


def test_a_checkpoint_fits_where_integers_and_categoricals_agree() -> None:
    assert same_model(SPACE, POINT, {**POINT, "rate": 0.5})
    assert not same_model(SPACE, POINT, {**POINT, "layers": 3})
    assert not same_model(SPACE, POINT, {"layers": 2})
    assert not same_model(SPACE, {}, POINT)


def test_explorers_see_levels() -> None:
    numbers = levels({**SPACE, "rate": Float(1e-4, 1.0, log=True, lift=(3,))})
    assert [p.shape for p in numbers.values() if isinstance(p, Float)] == [(), ()]
    assert all(p.lift is None for p in numbers.values() if isinstance(p, Float))
    point = spread(SPACE, {"array": 0.3, "kind": "a", "layers": 1, "rate": 0.5})
    assert point["array"].tolist() == [0.3, 0.3]
    assert (point["kind"], point["layers"], point["rate"]) == ("a", 1, 0.5)
    assert collect(SPACE, POINT) == {
        "array": pytest.approx(0.4),
        "kind": None,
        "layers": 2,
        "rate": pytest.approx(0.01),
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"b": 1, "x[0]": 0.1, "x[1]": 0.2, "a": "z"}, {"b": 1, "x": [0.1, 0.2], "a": "z"}),
        ({"x[1,0]": 3, "x[0,0]": 1, "x[0,1]": 2, "x[1,1]": 4}, {"x": [[1, 2], [3, 4]]}),
        ({"x[0]": 1, "x[2]": 3}, {"x[0]": 1, "x[2]": 3}),
        ({"x[1]": 1, "x[0,0]": 3}, {"x[1]": 1, "x[0,0]": 3}),
        ({"x[0]": 1, "x": 2}, {"x[0]": 1, "x": 2}),
        ({"x[999999,999999]": 1}, {"x[999999,999999]": 1}),
    ],
)
def test_coordinates_are_joined_where_all_are_there(values: dict[str, Any], expected: dict[str, Any]) -> None:
    found = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in joined(values).items()}
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("trust", "read"),
    [
        (None, None),
        ({}, None),
        ("much", None),
        ({"rate": 0.25, "array": None, "layers": 0.5}, {"rate": 0.25}),
        ({"rate": 1.5, "array": math.nan}, None),
        ({"rate": "0.5", "array": -0.1}, {"rate": 0.5}),
    ],
)
def test_trust_is_read_where_it_is_a_share(trust: Any, read: dict[str, float] | None) -> None:
    seen = AskTell.begin(SPACE).read(BEGUN, Outcome(1.0, {"rate": 2.0, "array": [1.0, 1.0]}, trust=trust))
    assert seen.trust == read
    assert seen.gradient is not None
    assert seen.gradient["rate"] == 2.0  # as it was reported
