"""Settings with a number for each leaf and step, and which of them the package lifts by itself."""

from dataclasses import replace
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
    Reversible,
    Space,
    TrainingProblem,
    Unrolled,
    adamw,
    ema,
    evaluate,
    lift_settings,
    lifting,
    muon,
    proximal_sgd,
    sgd,
    train,
)
from hypergrad_search.optimizers import Optimizer

STEPS = 6
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=20).astype(np.float32)


def init(key: jax.Array, h: dict[str, Any]) -> dict[str, jax.Array]:
    return {"a": jax.random.normal(key, (3, 2)), "b": jnp.ones(2), "c": jnp.ones(2)}


def losses(params: dict[str, jax.Array]) -> jax.Array:
    return (jnp.tanh(X @ params["a"] + params["b"][None]) @ params["c"] - Y) ** 2


def problem(optimizer: Any, **other: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": init,
        "train_loss": lambda params, h, batch, key: losses(params).mean(),
        "valid_loss": lambda params, h: losses(params),
        "batches": lambda step: jnp.float32(1.0),
        "steps": STEPS,
    }
    return TrainingProblem(optimizer=optimizer, **{**parts, **other})


RATE, MOMENTUM = Float(1e-3, 1.0, log=True), Float(0.5, 0.99)


def lifts(optimizer: Any, space: Space, **other: Any) -> dict[str, Any]:
    found = lift_settings(problem(optimizer, **other), space)
    assert found.keys() == space.keys()
    return {name: parameter.lift for name, parameter in found.items() if isinstance(parameter, Float)}


@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_a_row_for_each_leaf_is_a_schedule_for_each_leaf(method: Any) -> None:
    rates = np.random.default_rng(2).uniform(0.01, 0.2, (3, STEPS)).astype(np.float32)
    momenta = np.array([[0.5], [0.7], [0.9]], np.float32)
    by_row = evaluate(problem(sgd("rate", "momentum")), {"rate": rates, "momentum": momenta}, key=KEY, method=method)
    named, numbers = {n: "_" + n for n in "abc"}, {"a": 0.5, "b": 0.7, "c": 0.9}
    by_leaf = evaluate(
        problem(sgd(named, numbers)),
        {f"_{n}": row for n, row in zip("abc", rates, strict=True)},
        key=KEY,
        method=method,
    )
    assert by_row.value == by_leaf.value
    assert by_row.gradient is not None
    assert by_leaf.gradient is not None
    assert np.array_equal(by_row.gradient["rate"], np.stack([by_leaf.gradient[f"_{n}"] for n in "abc"]))
    assert by_row.gradient["momentum"].shape == (3, 1)


def test_rows_are_those_of_the_leaves_that_a_setting_is_for() -> None:
    rows = jnp.asarray([[0.1] * STEPS, [0.2] * STEPS], jnp.float32)
    by_row = train(problem(sgd({"a": 0.05, "b": "b", "c": 0.1}, 0.5)), {"b": rows[:1]}, KEY)
    plain = train(problem(sgd({"a": 0.05, "b": "b", "c": 0.1}, 0.5)), {"b": 0.1}, KEY)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, by_row, plain)))
    with pytest.raises(
        ValueError, match=rf"for each of the 1 leaves .* shape \(1, {STEPS}\), got shape \(2, {STEPS}\)"
    ):
        train(problem(sgd({"a": 0.05, "b": "b", "c": 0.1}, 0.5)), {"b": rows}, KEY)


def test_a_function_returns_one_number_for_each_leaf() -> None:
    wrong = problem(sgd(lambda h, step: h["rate"] * jnp.ones(3), 0.5))
    with pytest.raises(ValueError, match=r"learning_rate must return a number for each leaf, got the shape \(3,\)"):
        train(wrong, {"rate": 0.1}, KEY)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (sgd("rate", "momentum"), {"rate": (3, STEPS), "momentum": (3, STEPS)}),
        (sgd("rate", 0.9), {"rate": (3, STEPS), "momentum": None}),
        (sgd({"a": "rate", "b": "momentum", "c": 0.1}, 0.9), {"rate": (1, STEPS), "momentum": (1, STEPS)}),
        (sgd("rate", {"a": "rate", "b": 0.5, "c": "momentum"}), {"rate": (1, STEPS), "momentum": (1, STEPS)}),
        (adamw("rate", weight_decay="momentum"), {"rate": (3, STEPS), "momentum": (3, 1)}),
        (adamw("rate", eps="momentum"), {"rate": (3, STEPS), "momentum": (3, 1)}),
        (ema(adamw("rate"), "momentum"), {"rate": (3, STEPS), "momentum": (3, STEPS)}),
        (proximal_sgd("rate", momentum="momentum"), {"rate": (3, STEPS), "momentum": (3, STEPS)}),
        *(
            (proximal_sgd("rate", **{penalty: "momentum"}), {"rate": (3, STEPS), "momentum": (3, 1)})
            for penalty in ("l1", "l2", "group")
        ),
        (muon("rate", beta="momentum"), {"rate": (3, STEPS), "momentum": (3, STEPS)}),
        (lambda h: optax.sgd(h["rate"], h["momentum"]), {"rate": None, "momentum": None}),
    ],
)
def test_what_an_optimizer_names_is_lifted(optimizer: Any, expected: dict[str, Any]) -> None:
    assert lifts(optimizer, {"rate": RATE, "momentum": MOMENTUM}) == expected


@pytest.mark.slow
def test_an_example_can_be_evaluated_at_the_lifted_shape() -> None:
    for optimizer in (sgd("rate", "momentum"), ema(adamw("rate"), "momentum"), muon("rate", beta="momentum")):
        shapes = lifts(optimizer, {"rate": RATE, "momentum": MOMENTUM})
        h = {"rate": np.full(shapes["rate"], 0.01), "momentum": np.full(shapes["momentum"], 0.9)}
        lifted = evaluate(problem(optimizer), h, key=KEY)
        plain = evaluate(problem(optimizer), {"rate": 0.01, "momentum": 0.9}, key=KEY)
        assert lifted.value == plain.value
        assert lifted.gradient is not None
        assert plain.gradient is not None
        for name, slope in plain.gradient.items():
            assert np.sum(lifted.gradient[name]) == pytest.approx(slope, rel=1e-4)


READERS: dict[str, dict[str, Any]] = {
    "init": {"init": lambda key, h: jax.tree.map(lambda x: h["rate"] * x, init(key, h))},
    "train_loss": {"train_loss": lambda params, h, batch, key: losses(params).mean() * h["rate"]},
    "valid_loss": {"valid_loss": lambda params, h: losses(params) + h["rate"]},
    "test_loss": {"test_loss": lambda params, h: losses(params).mean() + h["rate"]},
    "batches": {"batches": lambda step, h: h["rate"], "train_loss": lambda p, h, x, key: losses(p).mean() * x},
}


@pytest.mark.parametrize("where", READERS)
def test_what_something_else_reads_stays_a_number(where: str) -> None:
    optimizer = sgd({"a": "rate", "b": "other", "c": "rate"}, "momentum")
    found = lifts(optimizer, {"rate": RATE, "momentum": MOMENTUM, "other": RATE}, **READERS[where])
    assert found == {"rate": None, "momentum": (3, STEPS), "other": (1, STEPS)}


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd("rate", "momentum", transform=lambda h: optax.clip_by_global_norm(h["rate"])),
        sgd("rate", lambda h, step: h["rate"] * h["momentum"] / jnp.float32(1 + step)),
        sgd("rate", lambda h, step: {"a": h["rate"], "b": 0.5, "c": h["momentum"]}),
        sgd("rate", lambda h, step: jnp.max(jnp.stack([h["rate"], h["momentum"]]))),  # of all places it is one number
        sgd("rate", lambda h, step: jnp.linalg.norm(jnp.stack([h["rate"], jnp.float32(0.5)]))),
    ],
)
def test_what_a_schedule_or_another_function_reads_stays_a_number(optimizer: Optimizer) -> None:
    assert lifts(optimizer, {"rate": RATE, "momentum": MOMENTUM})["rate"] is None


@pytest.mark.slow
def test_what_makes_a_number_is_lifted() -> None:
    """A function that computes a setting gets the numbers of one leaf and step after the other."""
    plain, whole = sgd("rate", "momentum"), sgd("rate", lambda h, step: 1 - h["rest"])
    space = {"rate": RATE, "rest": Float(1e-2, 0.5, log=True)}
    assert lifts(whole, space) == {"rate": (3, STEPS), "rest": (3, STEPS)}
    rest = np.random.default_rng(2).uniform(0.1, 0.5, (3, STEPS)).astype(np.float32)
    for shape in ((3, STEPS), (3, 1), (1, STEPS)):
        part = rest[: shape[0], : shape[1]]
        by_name = evaluate(problem(plain), {"rate": 0.1, "momentum": 1 - part}, key=KEY)
        by_function = evaluate(problem(whole), {"rate": 0.1, "rest": part}, key=KEY)
        assert by_function.value == by_name.value
        assert by_function.gradient is not None
        assert by_name.gradient is not None
        np.testing.assert_array_equal(by_function.gradient["rest"], -np.asarray(by_name.gradient["momentum"]))


@pytest.mark.slow
def test_the_leaves_are_those_that_the_function_is_for() -> None:
    optimizer = adamw(
        "rate", weight_decay={"a": lambda h, step: 2 * h["half"], "b": 0.0, "c": lambda h, step: h["half"]}
    )
    assert lifts(optimizer, {"rate": RATE, "half": RATE}) == {"rate": (3, STEPS), "half": None}
    halves = {"rate": np.full((3, STEPS), 0.01), "half": np.array([[0.2]])}
    lifted, plain = (evaluate(problem(optimizer), h, key=KEY) for h in (halves, {"rate": 0.01, "half": 0.2}))
    assert lifted.value == plain.value


@pytest.mark.slow
def test_a_function_of_whole_arrays_gets_them_whole() -> None:
    """The user's own table has the shape of lifted numbers, and the function looks up in it."""
    table = np.random.default_rng(3).uniform(0.01, 0.2, (3, STEPS)).astype(np.float32)
    for looked_up in (
        lambda h, step: {name: h["table"][row, step] for row, name in enumerate("abc")},
        lambda h, step: h["table"][0, step],
    ):
        found = train(problem(sgd(looked_up, 0.5)), {"table": table}, KEY)
        rows = table if isinstance(looked_up({"table": table}, 0), dict) else table[:1]
        assert all(
            jax.tree.leaves(jax.tree.map(np.array_equal, found, train(problem(sgd("r", 0.5)), {"r": rows}, KEY)))
        )


def test_a_function_may_take_all_hyperparameters_and_read_few() -> None:
    """All of them reach the loss, and what it returns depends on one alone."""

    def train_loss(params: Any, h: dict[str, Any], batch: Any, key: jax.Array) -> jax.Array:
        doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))(h)
        penalty: jax.Array = doubled["l2"] * jnp.sum(params["a"] ** 2)
        return losses(params).mean() + penalty

    space = {"rate": RATE, "l2": Float(1e-6, 1.0, log=True)}
    assert lifts(sgd("rate", "l2"), space, train_loss=train_loss) == {"rate": (3, STEPS), "l2": None}


def test_without_a_learning_rate_nothing_is_lifted() -> None:
    assert lifts(sgd(0.1, "momentum"), {"momentum": MOMENTUM}) == {"momentum": None}
    space = {"rate": replace(RATE, lift=False), "momentum": MOMENTUM}
    assert lifts(sgd("rate", "momentum"), space) == {"rate": False, "momentum": None}


def test_users_have_the_last_word() -> None:
    space = {"rate": replace(RATE, lift=False), "momentum": replace(MOMENTUM, lift=(STEPS,))}
    assert lift_settings(problem(sgd("rate", "momentum")), space) == space


def test_nothing_is_lifted_without_losses_of_examples() -> None:
    mean = {"valid_loss": lambda params, h: losses(params).mean()}
    assert lifts(sgd("rate", 0.9), {"rate": RATE}, **mean) == {"rate": None}


def test_steps_that_are_a_hyperparameter_leave_the_leaves() -> None:
    space: Space = {"rate": RATE, "steps": Int(3, 9)}
    assert lifts(sgd("rate", 0.9), space, steps="steps") == {"rate": (3, 1)}


@pytest.mark.parametrize("other", [Categorical(["none", "l2"]), Int(1, 3)])
def test_what_a_choice_may_read_stays_a_number(other: Categorical | Int) -> None:
    """Under another choice than the first one, the loss reads the decay, and would be wrong without a word."""

    def train_loss(params: Any, h: dict[str, Any], batch: Any, key: jax.Array) -> jax.Array:
        penalty: jax.Array = h["decay"] * jnp.sum(params["a"] ** 2) if h["other"] in ("l2", 3) else jnp.float32(0.0)
        return losses(params).mean() + penalty

    space: Space = {"rate": RATE, "decay": Float(1e-4, 1.0, log=True), "other": other}
    found = lifts(adamw("rate", weight_decay="decay"), space, train_loss=train_loss)
    assert found == {"rate": None, "decay": None}


def test_few_examples_lift_nothing() -> None:
    for examples, lift in ((7, None), (8, (3, STEPS))):
        few = {"valid_loss": lambda params, h, examples=examples: losses(params)[:examples]}
        assert lifts(sgd("rate", 0.9), {"rate": RATE}, **few) == {"rate": lift}


def test_many_numbers_become_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"rate": RATE, "decay": Float(1e-4, 1.0, log=True)}
    optimizer = adamw("rate", weight_decay="decay")
    whole = 3 * STEPS + 3
    for most, expected in (
        (whole, {"rate": (3, STEPS), "decay": (3, 1)}),
        (whole - 1, {"rate": (1, STEPS), "decay": None}),
        (STEPS, {"rate": (3, 1), "decay": (3, 1)}),
        (5, {"rate": None, "decay": None}),
    ):
        monkeypatch.setattr(lifting, "MOST", most)
        assert lifts(optimizer, space) == expected


def test_a_problem_that_lacks_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="names the hyperparameter 'momentum'"):
        lift_settings(problem(sgd("rate", "momentum")), {"rate": RATE})
