"""Whole numbers: numpy's pass wherever one is asked for, and neither booleans nor floats do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Float, Fold, Hypernet, Int, Reversible, TrainingProblem, evaluate, sgd
from hypergrad_search.checks import whole_number
from hypergrad_search.hypergradient import Global, Local, LowRank, OneHidden
from hypergrad_search.training import train

KEY = jax.random.key(0)


def problem(steps: Any = 2) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum(p**2),
        valid_loss=lambda p, h: jnp.sum(p),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.5),
        steps=steps,
    )


PROBLEM = problem()

# What takes a whole number, the name that its error gives, and how to read what was kept, if anything is.
PLACES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any] | None]] = {
    "Int: low": (lambda n: Int(n, 99), lambda kept: kept.low),
    "Int: high": (lambda n: Int(0, n), lambda kept: kept.high),
    "Float: every length in shape": (lambda n: Float(0.0, 1.0, shape=(3, n)), lambda kept: kept.shape[1]),
    "Float: every length in lift": (lambda n: Float(0.0, 1.0, lift=(n,)), lambda kept: kept.lift[0]),
    "TrainingProblem: steps": (problem, lambda kept: kept.steps),
    "Reversible: last": (lambda n: Reversible(last=n), lambda kept: kept.last),
    "fraction_bits: weights": (
        lambda n: Reversible(fraction_bits={"weights": n}),
        lambda kept: dict(kept.fraction_bits)["weights"],
    ),
    "fraction_bits: velocity": (lambda n: train(PROBLEM, {}, KEY, fraction_bits={"velocity": n}), None),
    "LowRank: rank": (LowRank, lambda kept: kept.rank),
    "OneHidden: width": (OneHidden, lambda kept: kept.width),
    "Local: hyper_steps": (lambda n: Local(hyper_steps=n), lambda kept: kept.hyper_steps),
    "Global: hyper_steps": (lambda n: Global(hyper_steps=n), lambda kept: kept.hyper_steps),
    "Hypernet: steps": (lambda n: Hypernet(steps=n), lambda kept: kept.steps),
    "Hypernet: finetune": (lambda n: Hypernet(finetune=n), lambda kept: kept.finetune),
    "evaluate: report_every": (lambda n: evaluate(PROBLEM, {}, key=KEY, report_every=n), None),
    "Fold: index": (lambda n: Fold(n, of=99), lambda kept: kept.index),
    "Fold: of": (lambda n: Fold(0, of=n), lambda kept: kept.of),
}
each_place = pytest.mark.parametrize("place", PLACES)


@each_place
@pytest.mark.parametrize(
    "number", [np.int64(20), np.int8(20), np.uint32(20), jnp.int32(20)], ids=lambda n: n.dtype.name
)
def test_integers_of_arrays_pass_and_are_kept_as_ints(place: str, number: Any) -> None:
    make, read = PLACES[place]
    made = make(number)
    if read is not None:
        assert (type(read(made)), read(made)) == (int, 20)
        assert read(made) == read(make(20))


@each_place
@pytest.mark.parametrize("value", [True, np.True_, 20.0, np.float64(20), jnp.float32(20), "20", [20]], ids=repr)
def test_nothing_else_passes(place: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{place} must be a whole number.*, got ") as caught:
        PLACES[place][0](value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("least", "most", "wrong", "message"),
    [
        (1, None, 0, "x must be a whole number from 1, got 0"),
        (1, 3, 4, "x must be a whole number from 1 to 3, got 4"),
        (None, 3, 4, "x must be a whole number to 3, got 4"),
        (None, None, 0.5, "x must be a whole number, got 0.5"),
    ],
)
def test_limits_are_named_and_included(least: int | None, most: int | None, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        whole_number("x", wrong, least, most)
    for right in (least, most, 2):
        if right is not None:
            assert whole_number("x", right, least, most) == right


def test_a_float_hint_comes_with_integers() -> None:
    with pytest.raises(ValueError, match=r"Int: low must be a whole number, got 0.5; is it a Float\?"):
        Int(0.5, 1)  # type: ignore[arg-type]  # wrong on purpose
