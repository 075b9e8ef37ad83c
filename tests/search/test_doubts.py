"""Warnings about gradients that a user reports: each kind of mistake is said once, and sound gradients never are."""

import math
import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hypergrad_search import Float, Space
from hypergrad_search.search import Observation
from hypergrad_search.search.ask_tell import AskTell, Outcome
from hypergrad_search.search.doubts import ENOUGH, ENOUGH_FAILURES, ENOUGH_ZEROS, SHORT, Doubts
from hypergrad_search.trouble import see

CENTRE = 0.37


def search(
    factor: float, *, maximise: bool = False, noise: float = 0.0, rugged: float = 0.0, trials: int = 60, seed: int = 0
) -> list[str]:
    """Search three numbers with a gradient that is `factor` times the true one, and return the warnings."""
    drawn = np.random.default_rng(seed)
    space: Space = {name: Float(0.0, 1.0) for name in "xyz"}
    mind, doubts, known = AskTell.begin(space, maximise=maximise), Doubts("search"), dict[str, Observation]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(trials):
            suggestion = mind.ask([])
            wanted = suggestion.wanted
            before = {} if wanted.parent is None else known[wanted.parent].hyperparameters
            chosen = dict(zip("xyz", drawn.uniform(size=3), strict=True)) if suggestion.moved is None else {}
            h = {**chosen, **before, **(suggestion.moved or {})}
            x, sign = np.array([h[name] for name in "xyz"]), -1.0 if maximise else 1.0
            value = sign * float(np.sum((x - CENTRE) ** 2) + rugged * np.sum(np.cos(40 * x)) + noise * drawn.normal())
            slopes = sign * factor * (2 * (x - CENTRE) - 40 * rugged * np.sin(40 * x))
            gradient = dict(zip("xyz", slopes, strict=True)) if wanted.wants_gradient(value) else None
            begun = Observation(str(number), wanted.parent, h, again=wanted.again)
            known[str(number)] = mind.read(begun, Outcome(value=value, gradient=gradient))
            mind = mind.tell(known[str(number)])
            doubts.look(space, known[str(number)], maximise=maximise)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("maximise", [False, True])
@pytest.mark.parametrize(
    ("factor", "words"),
    [(-1.0, "is the sign right"), (1000.0, "in the parameters' own units"), (0.0, "points in a row were zero")],
)
def test_a_wrong_gradient_is_said_once(factor: float, words: str, maximise: bool) -> None:
    for seed in range(3):
        (message,) = search(factor, maximise=maximise, seed=seed)
        assert words in message
        assert "\n" not in message
        assert message.endswith(see("doubted"))


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("rugged", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("maximise", [False, True])
def test_a_sound_gradient_is_never_doubted(noise: float, rugged: float, maximise: bool) -> None:
    for seed in range(4):
        assert search(1.0, noise=noise, rugged=rugged, maximise=maximise, seed=seed) == []


@pytest.mark.parametrize(("maximise", "numbers"), [(False, "-0.* was promised, 0."), (True, "0.* was promised, -0.")])
def test_the_numbers_are_in_the_warning(maximise: bool, numbers: str) -> None:
    (message,) = search(-1.0, maximise=maximise)
    assert message.startswith(f"search: the last {ENOUGH} short steps changed the value by -1")
    assert re.search(rf"\(trial \d+: {numbers}", message)
    assert "check_gradient" in message


SPACE: Space = {"x": Float(0.0, 1.0), "a": Float(0.0, 1.0, shape=(4,))}
POINT = {"x": 0.5, "a": np.full(4, 0.5)}


def read(gradient: dict[str, Any], number: int = 0) -> Observation:
    begun = Observation(str(number), None, {**POINT, "x": 0.1 * number})
    return AskTell.begin(SPACE).read(begun, Outcome(value=1.0, gradient=gradient))


def test_an_optimum_that_is_found_often_is_one_point() -> None:
    doubts = Doubts("search")
    for number in range(2 * ENOUGH_ZEROS):
        doubts.look(SPACE, replace(read({"x": 0.0}), trial=str(number)))


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        ({"x": np.nan}, r"trial 0 is ignored: 1 of the 1 numbers of gradient\['x'\] are NaN"),
        ({"a": np.array([0, np.inf, np.nan, 1])}, r"2 of the 4 numbers of gradient\['a'\] are NaN or infinite"),
        ({"a": np.zeros(3)}, r"gradient\['a'\] must be numbers of shape \(4,\), got array"),
        ({"x": "steep"}, r"gradient\['x'\] must be numbers of shape \(\), got 'steep'"),
    ],
)
def test_a_gradient_that_cannot_be_used_is_said_once(gradient: dict[str, Any], words: str) -> None:
    doubts = Doubts("search")
    with pytest.warns(UserWarning, match=words):
        doubts.look(SPACE, read(gradient))
    doubts.look(SPACE, read(gradient, 1))


def test_failures_without_an_end_are_said_once() -> None:
    doubts = Doubts("search")
    failed = Observation("4", None, POINT)
    for _ in range(ENOUGH_FAILURES - 1):
        doubts.look_at_value(failed, None)
    words = f"all of the first {ENOUGH_FAILURES} trials have failed.*trial 4: w left its range{see('failures')}"
    with pytest.warns(UserWarning, match=words):
        doubts.look_at_value(failed, f"w left its range{see('overflow')}")
    doubts.look_at_value(failed, "w left its range")


def test_failures_after_a_success_are_expected() -> None:
    doubts = Doubts("search")
    for value in (math.inf, 1.0, *[math.inf] * 2 * ENOUGH_FAILURES):
        doubts.look_at_value(Observation("0", None, POINT, value), None)


def test_useless_gradients_from_the_first_on_are_said_once() -> None:
    doubts, useless = Doubts("search"), Observation("4", None, POINT, 1.0)
    for _ in range(ENOUGH_FAILURES - 1):
        doubts.look_at_value(useless, "it is not finite")
    with pytest.warns(
        UserWarning, match=f"all of the first {ENOUGH_FAILURES} gradients are useless.*trial 4: it is not finite"
    ):
        doubts.look_at_value(useless, "it is not finite")
    doubts.look_at_value(useless, "it is not finite")


def test_gradients_of_zero_from_the_first_on_are_useless() -> None:
    """As those of an accuracy, which `Objective` gives without a word."""
    doubts = Doubts("search")
    for _ in range(ENOUGH_FAILURES - 1):
        doubts.look_at_value(read({"x": 0.0}), None)
    with pytest.warns(UserWarning, match="gradient is zero; an accuracy has no slope"):
        doubts.look_at_value(read({"x": 0.0}), None)


@pytest.mark.parametrize("message", [None, "it is not finite"])
def test_useless_gradients_after_a_sound_one_are_expected(message: str | None) -> None:
    doubts = Doubts("search")
    doubts.look_at_value(read({"x": 1.0}), None)
    for _ in range(2 * ENOUGH_FAILURES):
        doubts.look_at_value(Observation("0", None, POINT, 1.0), message)


def test_trials_whose_gradient_was_not_wanted_are_not_useless() -> None:
    doubts = Doubts("search")
    for _ in range(2 * ENOUGH_FAILURES):
        doubts.look_at_value(Observation("0", None, POINT, 1.0), None)


def test_zeros_count_in_a_row() -> None:
    doubts, zero, slope = Doubts("search"), {"x": 0.0}, {"x": 1.0}
    for number, gradient in enumerate([*[zero] * (ENOUGH_ZEROS - 1), slope, *[zero] * (ENOUGH_ZEROS - 1)]):
        doubts.look(SPACE, read(gradient, number))
    with pytest.warns(UserWarning, match=f"gradients at {ENOUGH_ZEROS} points in a row"):
        doubts.look(SPACE, read(zero, 9))


def test_long_steps_prove_nothing() -> None:
    doubts = Doubts("search")
    mind = AskTell.begin({"x": Float(0.0, 1.0)})
    start = mind.read(Observation("0", None, {"x": 0.5}), Outcome(value=1.0, gradient={"x": 1.0}))
    doubts.look(mind.space, start)
    for number in range(2 * ENOUGH):
        point = {"x": 0.5 - SHORT * (1.5 + number)}
        doubts.look(
            mind.space, mind.read(Observation(str(number + 1), "0", point), Outcome(value=1.0 + SHORT * number))
        )
