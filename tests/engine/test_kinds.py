"""The space says what a hyperparameter is, not the Python type of its value."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Categorical,
    Float,
    Int,
    Method,
    Reversible,
    Space,
    TrainingProblem,
    Unrolled,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hyperparameters import split

KEY = jax.random.key(0)
each_method = pytest.mark.parametrize("method", [Reversible(), Unrolled()])


def problem(seen: list[Any] | None = None, **changes: Any) -> TrainingProblem:
    def train_loss(w: jax.Array, h: dict[str, Any], batch: Any, key: jax.Array) -> jax.Array:
        """Python branches on the noise, and takes it as a number, which it could not do with a traced array."""
        if seen is not None:
            seen.append(h["noise"])
        noisy = w + float(h["noise"]) * jax.random.normal(key, w.shape) if h.get("noise") else w
        return jnp.sum((noisy - 1) ** 2) + jnp.sum(h["l2"] * w**2)

    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.zeros(4),
        "train_loss": train_loss,
        "valid_loss": lambda w, h: jnp.sum((w - 0.5) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", 0.5),
        "steps": 5,
    }
    return TrainingProblem(**{**parts, **changes})


SPACE: Space = {"rate": Float(1e-3, 1.0, log=True), "l2": Float(0.0, 1.0)}
PLAIN = problem()


@each_method
@pytest.mark.parametrize("space", [None, SPACE])
@pytest.mark.parametrize(
    "whole", [0, np.int64(0), np.float32(0), np.array(0), jnp.int32(0)], ids=lambda x: type(x).__name__
)
def test_a_whole_number_is_a_float(whole: Any, space: Space | None, method: Method) -> None:
    one, other = (evaluate(PLAIN, {"rate": 0.1, "l2": l2}, key=KEY, method=method, space=space) for l2 in (whole, 0.0))
    assert one.value == other.value
    assert one.gradient is not None
    assert other.gradient is not None
    assert {name: float(x) for name, x in one.gradient.items()} == {n: float(x) for n, x in other.gradient.items()}


def test_whole_numbers_in_an_array_are_floats() -> None:
    lifted: Space = {**SPACE, "l2": Float(0.0, 1.0, shape=(4,))}
    for space in (None, lifted):
        result = evaluate(PLAIN, {"rate": 0.1, "l2": np.array([0, 1, 1, 0])}, key=KEY, space=space)
        assert result.gradient is not None
        assert result.gradient["l2"].shape == (4,)


@each_method
@pytest.mark.parametrize("choices", [(0, 1), (False, True), (0.0, 0.1), (None, 0.1), ("", "x"), (0.0, None, 1)])
def test_a_choice_arrives_as_it_was_written(choices: tuple[Any, ...], method: Method) -> None:
    for choice in choices:
        seen: list[Any] = []
        if choice == "x":
            continue  # the loss cannot multiply by it
        space: Space = {**SPACE, "noise": Categorical(choices)}
        h = {"rate": 0.1, "l2": 0.5, "noise": choice}
        result = evaluate(problem(seen), h, key=KEY, method=method, space=space)
        assert result.gradient is not None
        assert result.gradient.keys() == {"rate", "l2"}
        assert all(kept is choice for kept in seen)


def test_a_choice_may_be_named_by_an_equal_number() -> None:
    _, static = split({"c": np.int64(1), "d": 1.0, "e": True}, {n: Categorical([1.0, 2.0]) for n in "cde"})
    assert static.types == (float, float, float)


def test_an_int_is_plain_and_shapes_the_model() -> None:
    wide = problem(init=lambda key, h: jnp.zeros(h["width"]))
    h = {"rate": 0.1, "l2": 0.5, "width": np.int64(7)}
    assert evaluate(wide, h, key=KEY, space={"width": Int(1, 9)}).value == pytest.approx(
        evaluate(PLAIN, h, key=KEY).value * 7 / 4
    )
    assert train(wide, h, KEY, space={"width": Int(1, 9)}).shape == (7,)


@pytest.mark.parametrize(
    "use", [lambda key, h: jnp.zeros(h["width"]), lambda key, h: jnp.zeros(len(range(h["width"])))]
)
def test_a_count_without_a_space_says_what_to_do(use: Any) -> None:
    with pytest.raises(TypeError) as caught:
        evaluate(problem(init=use), {"rate": 0.1, "l2": 0.5, "flag": True, "width": 7}, key=KEY)
    assert any(note.startswith("width: whole numbers were taken for floats") for note in caught.value.__notes__)


def test_names_that_are_not_in_the_space_are_told_by_type() -> None:
    dynamic, static = split({"a": 1, "b": 1.5, "c": "x", "d": True, "e": None, "f": {"g": 1.0}, "h": (64, 32)}, {})
    assert dynamic.keys() == {"a", "b", "f"}
    assert dict(static) == {"c": "x", "d": True, "e": None, "h": (64, 32)}
