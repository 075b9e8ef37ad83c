"""Functions that JAX would freeze at tracing are refused by name; so is what JAX cannot trace."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Float, Hypernet, Method, Reversible, TrainingProblem, Unrolled, evaluate, sgd

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(40, 4)).astype("f4")
ON_DEVICE = jnp.asarray(DATA)


def problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jax.random.normal(key, (4,)),
        "train_loss": lambda w, h, batch, key: jnp.mean((batch @ w - 1 + 0.1 * jax.random.normal(key, (3,))) ** 2),
        "valid_loss": lambda w, h: jnp.mean((ON_DEVICE @ w + jax.random.normal(jax.random.key(1), (40,))) ** 2),
        "test_loss": lambda w, h: jnp.mean(w**2),
        "valid_batch_loss": lambda w, h, step: jnp.mean(w**2) * step.astype(jnp.float32),
        "batches": lambda step: jax.lax.dynamic_slice_in_dim(ON_DEVICE, step, 3),
        "optimizer": sgd("rate", 0.5),
        "steps": 3,
    }
    return TrainingProblem(**{**parts, **changes})


def drawn() -> Any:
    return np.random.default_rng().normal(size=3).astype("f4")


def loader() -> Iterator[Any]:
    while True:
        yield np.random.default_rng().normal(size=(3, 4)).astype("f4")


LOADER = loader()
COUNTER = itertools.count()
HEAVY = np.random.default_rng()


@jax.jit
def noisy(w: jax.Array) -> jax.Array:
    return w * HEAVY.normal(size=4).astype("f4")


def noisy_body(carry: jax.Array, _: jax.Array) -> tuple[jax.Array, None]:
    return carry * np.float32(HEAVY.normal()), None


def plainly_noisy(w: jax.Array) -> jax.Array:
    return jnp.sum(w) * np.float32(HEAVY.normal())


@jax.jit
def jitted_rows(step: jax.Array) -> jax.Array:
    return jnp.asarray(next(LOADER))


FROZEN = {
    "an iterator": ("batches", lambda step: next(LOADER)),
    "an iterator of its own jit": ("batches", jax.jit(lambda step: next(LOADER))),
    "rows that numpy draws": ("batches", lambda step: ON_DEVICE[jnp.asarray(HEAVY.integers(0, 40, 3))]),
    "a counter": ("batches", lambda step: ON_DEVICE[next(COUNTER) % 30 + jnp.arange(3)]),
    "a slice": ("batches", lambda step: (lambda first: ON_DEVICE[first : first + 3])(next(COUNTER) % 30)),
    "a row": ("batches", lambda step: ON_DEVICE[next(COUNTER) % 30][None]),
    "noise in a jit that is called": ("train_loss", lambda w, h, batch, key: jnp.sum(noisy(w))),
    "noise in a scan of a known body": (
        "train_loss",
        lambda w, h, batch, key: jax.lax.scan(noisy_body, jnp.sum(w), jnp.arange(2))[0],
    ),
    "noise in a branch": ("train_loss", lambda w, h, batch, key: jax.lax.cond(w[0] > 0, plainly_noisy, jnp.sum, w)),
    "noise in a checkpoint": ("train_loss", lambda w, h, batch, key: jax.checkpoint(plainly_noisy)(w)),
    "a jitted iterator that is called": ("batches", lambda step: jitted_rows(step)),
    "a number": ("batches", lambda step: HEAVY.normal()),
    "a whole number": ("batches", lambda step: {"seed": next(COUNTER)}),
    "an array that is numpy's": ("batches", lambda step: {"rows": HEAVY.normal(size=(3, 4))}),
    "noise of numpy": ("train_loss", lambda w, h, batch, key: jnp.mean((batch @ w + drawn()) ** 2)),
    "a number of numpy": ("train_loss", lambda w, h, batch, key: jnp.sum(w) * float(HEAVY.normal())),
    "noise in a loop": (
        "train_loss",
        lambda w, h, batch, key: jax.lax.fori_loop(0, 3, lambda i, x: x * float(HEAVY.normal()), jnp.sum(w)),
    ),
    "a power": ("train_loss", lambda w, h, batch, key: jnp.sum(jnp.abs(w) ** (2 + next(COUNTER) % 2))),
    "a part of the weights": ("train_loss", lambda w, h, batch, key: jnp.sum([w[:2], w[2:]][next(COUNTER) % 2])),
    "noise in a schedule": ("optimizer", sgd(lambda h, step: h["rate"] * HEAVY.uniform(), 0.5)),
    "noise in a transformation": ("optimizer", sgd("rate", 0.5, transform=lambda h: optax.scale(HEAVY.uniform()))),
    "noise in the start": ("init", lambda key, h: jnp.asarray(HEAVY.normal(size=4), jnp.float32)),
    "a part of the validation set": ("valid_loss", lambda w, h: jnp.mean(ON_DEVICE[HEAVY.permutation(40)[:20]] @ w)),
    "a key that changes": (
        "valid_loss",
        lambda w, h: jnp.sum(w * jax.random.normal(jax.random.key(next(COUNTER)), (4,))),
    ),
    "a part of the test set": ("test_loss", lambda w, h: jnp.mean(DATA[HEAVY.permutation(40)[:20]] @ w)),
}


@pytest.mark.parametrize(("name", "function"), FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_what_tracing_would_freeze_is_refused(name: str, function: Any, method: Method) -> None:
    with pytest.raises(ValueError, match=f"^{name}: two calls with the same arguments differ") as caught:
        evaluate(problem(**{name: function}), {"rate": 0.1}, key=KEY, method=method)
    assert "Instead, " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_minibatches_are_looked_at_where_they_are_descended() -> None:
    frozen = problem(
        valid_batch_loss=lambda w, h, step: jnp.mean(DATA[HEAVY.integers(0, 40, 3)] @ w),
        train_loss=lambda w, h, batch, key: jnp.mean((batch @ w) ** 2) + h["l2"] * jnp.sum(w**2),
        optimizer=sgd(0.1, 0.5),
    )
    space = {"l2": Float(0.0, 1.0)}
    evaluate(frozen, {"l2": 0.1}, key=KEY, space=space)
    with pytest.raises(ValueError, match=r"^valid_batch_loss: two calls with the same arguments differ"):
        evaluate(frozen, {"l2": 0.1}, key=KEY, method=Hypernet(), space=space)


def test_randomness_by_keys_is_allowed() -> None:
    evaluate(problem(), {"rate": 0.1}, key=KEY)


def test_each_choice_of_plain_values_is_checked() -> None:
    noisy = problem(train_loss=lambda w, h, batch, key: jnp.sum(w**2) + (HEAVY.normal() if h["noisy"] else 0.0))
    evaluate(noisy, {"rate": 0.1, "noisy": False}, key=KEY)
    with pytest.raises(ValueError, match=r"^train_loss: two calls"):
        evaluate(noisy, {"rate": 0.1, "noisy": True}, key=KEY)


def test_what_holds_functions_is_allowed() -> None:
    """JAX shows the functions inside of a program by their addresses, which differ between two traces."""

    def valid_loss(w: jax.Array, h: Any) -> jax.Array:
        @jax.custom_vjp
        def squared(x: jax.Array) -> jax.Array:
            return jnp.square(x)

        squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
        either: jax.Array = jax.lax.cond(w[0] > 0, jnp.sum, jnp.max, jax.checkpoint(jnp.sin)(w))
        return either + jnp.sum(jax.nn.relu(squared(w)))

    evaluate(problem(valid_loss=valid_loss), {"rate": 0.1}, key=KEY)


def test_a_constant_that_is_not_a_number_is_allowed() -> None:
    evaluate(problem(test_loss=lambda w, h: jnp.sum(jnp.where(jnp.isnan(w), jnp.nan, w))), {"rate": 0.1}, key=KEY)


def test_what_is_built_once_is_allowed() -> None:
    built: list[jax.Array] = []

    def valid_loss(w: jax.Array, h: Any) -> jax.Array:
        if not built:
            built.append(jnp.ones(3) + 1)  # an operation of the first call alone
        return jnp.sum(w**2)

    evaluate(problem(valid_loss=valid_loss), {"rate": 0.1}, key=KEY)
    assert built


UNTRACEABLE = {
    "slice of numpy": lambda step: DATA[3 * step : 3 * step + 3],
    "slice of jax": lambda step: ON_DEVICE[3 * step : 3 * step + 3],
    "index of numpy": lambda step: DATA[step],
    "index of a list": lambda step: [DATA, DATA][step],
    "a Python number": lambda step: DATA[int(step)],
    "a condition": lambda step: DATA[:3] if step % 2 else DATA[3:6],
    "a range": lambda step: jnp.asarray([DATA[i] for i in range(step, step + 3)]),
    "foreign": lambda step: {"rows": object()},
}


@pytest.mark.parametrize("batches", UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_batches_that_jax_cannot_trace_are_told_three_ways(batches: Any) -> None:
    with pytest.raises(ValueError, match=r"^batches: JAX cannot trace it") as caught:
        evaluate(problem(batches=batches), {"rate": 0.1}, key=KEY)
    assert all(way in str(caught.value) for way in ("dynamic_slice_in_dim", "data[order[step]]", "fold_in(key, step)"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "function", "wanted"),
    [
        ("valid_loss", lambda w: jnp.sum(w), r"must take \(params, hyperparameters\), got a function that takes \(w\)"),
        ("init", lambda: None, r"must take \(key, hyperparameters\)"),
        ("train_loss", lambda w, h, batch: jnp.sum(w), r"must take \(params, hyperparameters, batch, key\)"),
        ("batches", lambda: None, r"must take \(step\)"),
        ("batches", lambda step, h=None: None, r"must take either \(step\) or \(step, hyperparameters\)"),
    ],
)
def test_functions_take_what_they_are_given(name: str, function: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"TrainingProblem: {name} {wanted}"):
        problem(**{name: function})


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda w, h: (jnp.sum(w), {"accuracy": 1.0}), "return the loss without auxiliary outputs"),
        (lambda w, h: None, "got None; does it lack a return"),
        (lambda w, h: "low", "got 'low'"),
    ],
)
def test_a_loss_alone_is_returned(function: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"valid_loss must return .*{wanted}"):
        evaluate(problem(valid_loss=function), {"rate": 0.1}, key=KEY)


def test_a_schedule_that_branches_on_a_hyperparameter_has_a_note() -> None:
    def optimizer(h: dict[str, Any]) -> optax.GradientTransformation:
        return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, h["rate"], 1, 3))

    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        evaluate(problem(optimizer=optimizer), {"rate": 0.1}, key=KEY, method=Unrolled())
    notes = "".join(caught.value.__notes__)
    assert "take hypergrad_search.warmup_cosine; more: python -m hypergrad_search traced" in notes


def test_a_name_that_no_hyperparameter_has_is_told_with_those_that_there_are() -> None:
    def train_loss(w: jax.Array, h: dict[str, Any], batch: jax.Array, key: jax.Array) -> jax.Array:
        scaled: jax.Array = jnp.mean((batch @ w) ** 2) * h["smoothng"]
        return scaled

    with pytest.raises(KeyError) as caught:
        evaluate(problem(train_loss=train_loss), {"rate": 0.1, "smoothing": 0.1}, key=KEY)
    note = "If 'smoothng' is a hyperparameter: those of this problem are ['rate', 'smoothing']"
    assert note in caught.value.__notes__
