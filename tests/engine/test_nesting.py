"""Nested hyperparameters reach the problem's functions nested, and all else knows them by their paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Categorical,
    Float,
    Int,
    TrainingProblem,
    Unrolled,
    check_gradient,
    evaluate,
    evaluate_batch,
    from_function,
    lift_settings,
    measure_trust,
    sgd,
    summarize_schedules,
    train,
)
from hypergrad_search.nesting import flat, nested
from hypergrad_search.space import NestedSpace

KEY = jax.random.key(0)
SPACE: NestedSpace = {
    "opt": {"rate": Float(1e-3, 0.3, log=True), "clip": Float(0.1, 10.0), "steps": Int(1, 20)},
    "model": {"kind": Categorical(["plain", "squared"]), "inner": {"l2": Float(0.0, 1.0)}},
    "target": Float(-1.0, 1.0, shape=(2,)),
}
POINT = {
    "opt": {"rate": 0.1, "clip": 1.0, "steps": 7},
    "model": {"kind": "squared", "inner": {"l2": 0.1}},
    "target": np.array([0.5, -0.5]),
}


def penalised(params: Any, target: Any, kind: str, l2: Any) -> Any:
    return jnp.sum((params - target) ** 2) + l2 * jnp.sum(params**2 if kind == "squared" else jnp.abs(params))


def nested_problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.ones(2) * h["opt"]["clip"],
        "train_loss": lambda p, h, batch, key: penalised(p, h["target"], h["model"]["kind"], h["model"]["inner"]["l2"]),
        "valid_loss": lambda p, h: (p - 0.25) ** 2 + 0.01 * h["opt"]["rate"],
        "test_loss": lambda p, h: jnp.sum((p - 0.2) ** 2) * h["opt"]["steps"],
        "batches": lambda step, h: h["opt"]["rate"] * jnp.float32(step),
        "optimizer": sgd("opt/rate", 0.5, transform=lambda h: optax.clip_by_global_norm(h["opt"]["clip"])),
        "steps": "opt/steps",
    }
    return TrainingProblem(**{**parts, **changes})


def flat_problem(**changes: Any) -> TrainingProblem:
    """Return the problem of the same numbers, whose functions take one dict of other names."""
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.ones(2) * h["opt_clip"],
        "train_loss": lambda p, h, batch, key: penalised(p, h["target"], h["model_kind"], h["model_inner_l2"]),
        "valid_loss": lambda p, h: (p - 0.25) ** 2 + 0.01 * h["opt_rate"],
        "test_loss": lambda p, h: jnp.sum((p - 0.2) ** 2) * h["opt_steps"],
        "batches": lambda step, h: h["opt_rate"] * jnp.float32(step),
        "optimizer": sgd("opt_rate", 0.5, transform=lambda h: optax.clip_by_global_norm(h["opt_clip"])),
        "steps": "opt_steps",
    }
    return TrainingProblem(**{**parts, **changes})


def renamed(values: Any) -> dict[str, Any]:
    return {name.replace("/", "_"): value for name, value in flat(values).items()}


def test_flat_and_nested_are_inverse() -> None:
    assert nested(flat(POINT)) == POINT
    assert flat(flat(POINT)) == flat(POINT)
    assert list(flat(SPACE)) == ["opt/rate", "opt/clip", "opt/steps", "model/kind", "model/inner/l2", "target"]


def test_a_dict_that_is_a_value_stays_whole() -> None:
    values = {"opt": {"rate": 0.1}, "initial": {"w": 1.0}}
    assert flat(values, ["opt/rate", "initial"]) == {"opt/rate": 0.1, "initial": {"w": 1.0}}
    assert nested({"opt/rate": 0.1, "initial": {"a/b": 1.0}}) == {"opt": {"rate": 0.1}, "initial": {"a/b": 1.0}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: flat({"a/b": 1, "a": {"b": 2}}), "'a/b' stands for two things"),
        (lambda: flat({"a": {1: 2}}), "names must be strings, got 1 in 'a'"),
        (lambda: nested({"a": 1, "a/b": 2}), "'a/b' is inside of 'a', which is a value"),
        (lambda: nested({"a/b": 2, "a": 1}), "'a' stands for two things"),
    ],
)
def test_what_cannot_be_nested_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (
            {"optimizer": lambda h: optax.sgd(h["opt"]["rate"])},
            {"optimizer": lambda h: optax.sgd(h["opt_rate"])},
        ),
        (
            {"optimizer": sgd(lambda h, step: h["opt"]["rate"] / jnp.float32(1 + step), 0.5), "steps": 9},
            {"optimizer": sgd(lambda h, step: h["opt_rate"] / jnp.float32(1 + step), 0.5), "steps": 9},
        ),
    ],
    ids=["named", "optax", "function"],
)
def test_an_evaluation_is_that_of_the_flat_problem(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    method = Unrolled() if callable(ours.get("optimizer")) else None
    found = evaluate(nested_problem(**ours), POINT, space=SPACE, key=KEY, method=method)
    expected = evaluate(flat_problem(**theirs), renamed(POINT), space=renamed(SPACE), key=KEY, method=method)
    assert found.value == expected.value
    assert found.test_loss == expected.test_loss
    assert found.gradient is not None
    assert expected.gradient is not None
    assert set(found.gradient) == {"opt", "model", "target"}
    gradient = renamed(found.gradient)
    assert gradient.keys() == expected.gradient.keys()
    for name, derivative in expected.gradient.items():
        np.testing.assert_array_equal(gradient[name], derivative)


def test_a_path_in_place_of_dicts_gives_the_same() -> None:
    problem = nested_problem()
    whole = evaluate(problem, POINT, space=SPACE, key=KEY)
    paths = evaluate(problem, flat(POINT), space=flat(SPACE), key=KEY)
    assert paths.value == whole.value
    assert paths.gradient is not None
    assert set(paths.gradient) == {"opt/rate", "opt/clip", "model/inner/l2", "target"}


def test_a_problem_is_made_once_for_nested_hyperparameters() -> None:
    problem = nested_problem()
    at = problem.at(flat(POINT))
    assert problem.at({**flat(POINT), "opt/rate": 0.2}) is at
    assert at.at(flat(POINT)) is at


def test_the_checks_of_gradients_take_nested_hyperparameters() -> None:
    problem = nested_problem(optimizer=sgd("opt/rate", 0.5))
    check = check_gradient(problem, POINT, SPACE, key=KEY)
    assert check.agrees, str(check)
    assert {"opt/rate", "model/inner/l2"} <= measure_trust(problem, POINT, SPACE, key=KEY).trusts.keys()


def test_a_batch_and_plain_training_take_nested_hyperparameters() -> None:
    problem = nested_problem()
    (found,) = evaluate_batch(problem, [POINT], space=SPACE, key=KEY)
    expected = evaluate(problem, POINT, space=SPACE, key=KEY)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert found.gradient is not None
    assert found.gradient.keys() == {"opt", "model", "target"}
    trained = train(problem, POINT, KEY, space=SPACE)
    assert float(jnp.mean((trained - 0.25) ** 2 + 0.01 * 0.1)) == pytest.approx(expected.value, rel=1e-5)


def test_schedules_of_nested_hyperparameters_are_summarized() -> None:
    point = nested({**flat(POINT), "opt/rate": np.full((1, 5), 0.1)})
    space = nested({**flat(SPACE), "opt/rate": Float(1e-3, 0.3, log=True, shape=(1, 5))})
    problem = nested_problem(
        steps=5, batches=lambda step: None, valid_loss=lambda p, h: (p - 0.25) ** 2, optimizer=sgd("opt/rate", 0.5)
    )
    summary = summarize_schedules(problem, point, key=KEY, space=space)
    assert summary.numbers.keys() == {"opt/rate"}
    assert np.shape(summary.hyperparameters["opt"]["rate"]) == (1, 5)


def test_a_function_takes_nested_hyperparameters() -> None:
    problem = from_function(lambda h: (h["opt"]["rate"] - 0.3) ** 2 * h["opt"]["n"])
    space: NestedSpace = {"opt": {"rate": Float(0.0, 1.0), "n": Int(1, 3)}}
    found = evaluate(problem, {"opt": {"rate": 0.5, "n": 2}}, space=space)
    assert found.value == pytest.approx(0.08)
    assert found.gradient is not None
    assert found.gradient["opt"]["rate"] == pytest.approx(0.8)


def test_settings_of_a_nested_space_are_lifted() -> None:
    problem = nested_problem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum(p**2),
        valid_loss=lambda p, h: jnp.ones(8) * p[0],
        test_loss=None,
        batches=lambda step: None,
        optimizer=sgd(lambda h, step: h["opt"]["rate"], 0.5),
        steps=5,
    )
    space: Any = {"opt": {"rate": Float(1e-3, 0.3, log=True)}}
    lifted: Any = lift_settings(problem, space)
    assert lifted == {"opt": {"rate": Float(1e-3, 0.3, log=True, lift=(1, 5))}}


def test_a_path_that_the_space_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="'opt/steps', which is not among"):
        evaluate(nested_problem(), {"opt": {"rate": 0.1}}, space={"opt": {"rate": Float(0.1, 0.2)}}, key=KEY)
