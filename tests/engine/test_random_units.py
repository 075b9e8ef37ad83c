"""A random search for values that are wrong and have the status "ok": in units from 1e-8 to 1e8, each against float64.

Every case is a regression on data in a random unit, with random settings, at which `Reversible` evaluates. Where its
status is "ok", the value must be that of float64 unrolling to 1 per cent, and so must the gradient: the slopes along
relative changes of all hyperparameters, as one vector, of whose length nothing below a hundredth of the value counts.

Cases that are badly conditioned prove nothing, and are left out: those where unrolling in float32 is off by more than
2e-5, since rounding errors have grown by more than a factor of about a hundred. They are counted, and must be few, and
so must those be that underflow.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypergrad_search import (
    Optimizer,
    Status,
    TrainingProblem,
    adabelief,
    adam,
    adamw,
    ema,
    evaluate,
    muon,
    rmsprop,
    sgd,
)
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
ROWS, FEATURES, HIDDEN = 24, 4, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2 * ROWS, FEATURES)), RNG.normal(size=2 * ROWS)
X[:, 3] = 0  # a weight without a gradient of its own
INTO, OUT = 0.5 * RNG.normal(size=(FEATURES, HIDDEN)), 0.5 * RNG.normal(size=HIDDEN)

Array = np.ndarray[Any, Any]
Point = dict[str, float]
Start = Callable[[Any], Any]
Predict = Callable[[Any, jax.Array], jax.Array]


def linear(p: Any, x: jax.Array) -> jax.Array:
    return jnp.add(x @ p["w"], p["b"])


def network(p: Any, x: jax.Array) -> jax.Array:
    return jnp.matmul(jnp.tanh(x @ p["w"] + p["bias"][None, :]), p["out"])


def product(p: Any, x: jax.Array) -> jax.Array:
    """Two leaves whose gradients vanish together."""
    return jnp.multiply(x @ p["w"], p["scale"])


def starts(kind: str, scale: jax.Array) -> Any:
    into, out, zero = jnp.asarray(INTO, scale.dtype), jnp.asarray(OUT, scale.dtype), jnp.zeros((), scale.dtype)
    if kind == "linear":
        return {"w": scale * into[:, 0], "b": zero}
    if kind == "network":
        return {"w": scale * into, "bias": jnp.zeros(HIDDEN, scale.dtype), "out": scale * out}
    return {"w": scale * into[:, 0], "scale": scale}


MODELS: dict[str, Predict] = {"linear": linear, "network": network, "product": product}
LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "squares": jnp.square,
    "huber": lambda x: jnp.sqrt(1 + jnp.square(x)) - 1,
    "quartic": lambda x: jnp.square(x) + jnp.square(jnp.square(x)) / 10,
}


def falling(h: Any, step: jax.Array) -> Any:
    return h["rate"] / (1 + step.astype(h["rate"].dtype) / 10)


def cooling(h: Any, step: jax.Array) -> Any:
    """A decay that falls from step to step, as far as reversal allows."""
    return jnp.maximum(h["decay"] / (1 + step.astype(h["decay"].dtype) / 20), 1 / 256)


OPTIMIZERS: dict[str, Optimizer] = {
    # The loss is in units squared, and a plain step is scaled back.
    "sgd": sgd(lambda h, t: h["rate"] / h["unit"] / h["unit"], "decay"),
    "dampened": sgd(lambda h, t: falling(h, t) / h["unit"] / h["unit"], "decay", dampening=True),
    "plain": sgd("rate", cooling),
    "adam": adam(falling, cooling, "decay2", "eps"),
    "adamw": adamw("rate", "decay", "decay2", "eps", weight_decay="shrink"),
    # What they add under the root has the unit of the loss squared.
    "adabelief": adabelief(falling, cooling, "decay2", "eps", lambda h, t: h["eps"] * h["unit"] ** 4),
    "rmsprop": rmsprop(falling, "decay2", lambda h, t: h["eps"] * h["unit"] ** 4, momentum=cooling),
    "muon": muon("rate", 5, "decay", "eps", "shrink", adam_b1="decay", adam_b2="decay2"),
    "ema": ema(adamw("rate", "decay", "decay2", "eps", weight_decay="shrink"), "decay2"),
    "ema of sgd": ema(sgd(lambda h, t: h["rate"] / h["unit"] / h["unit"], "decay"), "decay2"),
}


@functools.cache  # so that examples share compiled programs
def problem_of(model: str, loss: str, optimizer: str, steps: int) -> TrainingProblem:
    def errors(p: Any, rows: Any) -> jax.Array:
        dtype = p["w"].dtype
        return LOSSES[loss](MODELS[model](p, jnp.asarray(X, dtype)[rows]) - jnp.asarray(Y, dtype)[rows])

    def train_loss(p: Any, h: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        penalty = h["l2"] * jnp.sum(jnp.square(p["w"]))
        return jnp.multiply(jnp.mean(errors(p, rows)) + penalty, jnp.square(h["unit"]))

    return TrainingProblem(
        init=lambda key, h: starts(model, h["scale"]),
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.mean(errors(p, slice(ROWS, None))),
        batches=lambda step: (8 * step + jnp.arange(8, dtype=jnp.int32)) % ROWS,
        optimizer=OPTIMIZERS[optimizer],
        steps=steps,
    )


PROBLEMS = [
    ("linear", "squares", "sgd", 30),
    ("linear", "huber", "adam", 60),
    ("product", "squares", "adamw", 40),
    ("network", "squares", "dampened", 60),
    ("network", "huber", "adamw", 30),
    ("product", "quartic", "plain", 30),
    ("linear", "quartic", "adamw", 100),
    ("network", "squares", "adam", 40),
    ("linear", "squares", "adabelief", 40),
    ("network", "huber", "adabelief", 30),
    ("linear", "huber", "rmsprop", 60),
    ("network", "squares", "rmsprop", 30),
    ("network", "huber", "muon", 30),
    ("product", "squares", "ema", 60),
    ("network", "squares", "ema of sgd", 40),
]


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


points = st.fixed_dictionaries(
    {
        "unit": powers(1e-8, 1e8) | powers(1e-3, 1e3),
        "rate": powers(1e-4, 0.3),
        "decay": st.floats(1 / 256, 0.99),
        "decay2": st.floats(0.5, 0.9999),
        "eps": st.just(1e-8) | powers(1e-20, 1.0),
        "shrink": powers(1e-6, 1.0),
        "l2": powers(1e-6, 1.0),
        "scale": powers(1e-6, 3.0) | st.just(1.0),
    }
)


@functools.cache
def unrolled(problem: TrainingProblem) -> Callable[..., Any]:
    """Values and gradients at many points at once."""

    def value(h: dict[str, jax.Array]) -> jax.Array:
        return problem.valid_loss(train_in_floats(problem, h, KEY), h)

    return jax.jit(jax.vmap(jax.value_and_grad(value)))


def slopes(gradient: Any, h: Point) -> Array:
    """The change of the value by relative changes of the hyperparameters."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([float(gradient[name]) * x for name, x in h.items()])


def off_by(value: float, along: Array, exact: float, along_exact: Array) -> float:
    """The larger of the relative errors of value and gradient."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = max(float(np.linalg.norm(along_exact)), 0.01 * abs(exact))
        return max(abs(value - exact) / abs(exact), float(np.linalg.norm(along - along_exact)) / length)


def examine(problem: TrainingProblem, batch: list[Point]) -> Counter[str]:
    """Hold evaluations against float64, and count how they ended."""
    rounded = [{name: float(np.float32(x)) for name, x in h.items()} for h in batch]  # what reaches the evaluations
    columns = {name: np.array([h[name] for h in rounded]) for name in rounded[0]}
    with jax.enable_x64(True):
        values, gradients = jax.device_get(unrolled(problem)(columns))
    plain = jax.device_get(unrolled(problem)({name: x.astype(np.float32) for name, x in columns.items()}))
    counts: Counter[str] = Counter()
    for i, h in enumerate(rounded):
        exact, along = float(values[i]), slopes({name: x[i] for name, x in gradients.items()}, h)
        in_float32 = slopes({name: x[i] for name, x in plain[1].items()}, h)
        found = evaluate(problem, h, key=KEY)
        if found.status is not Status.OK:
            usual = 1e-2 < h["unit"] < 1e2 and found.status is Status.UNDERFLOW
            counts["underflow in usual units" if usual else str(found.status)] += 1
        elif not off_by(float(plain[0][i]), in_float32, exact, along) < 2e-5:
            counts["badly conditioned"] += 1
        else:
            counts["ok"] += 1
            error = off_by(found.value, slopes(found.gradient, h), exact, along)
            assert error < 0.01, (error, h, found.value, exact, found.gradient, along)
    return counts


search = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def run(problems: list[tuple[str, str, str, int]], examples: int, size: int, *, derandomize: bool) -> Counter[str]:
    counts: Counter[str] = Counter()

    @search(max_examples=examples, derandomize=derandomize, database=None)
    @given(st.sampled_from(problems), st.lists(points, min_size=size, max_size=size))
    def search_all(parts: tuple[str, str, str, int], batch: list[Point]) -> None:
        counts.update(examine(problem_of(*parts), batch))

    search_all()
    return counts


def check_shares(counts: Counter[str], cases: int) -> None:
    assert counts.total() >= cases
    assert counts["ok"] > 0.5 * counts.total(), counts
    assert counts["underflow"] < 0.1 * counts.total(), counts
    assert counts["underflow in usual units"] < 0.01 * counts.total(), counts
    assert counts["badly conditioned"] < 0.15 * counts.total(), counts


@pytest.mark.slow
def test_no_value_is_wrong_without_a_word() -> None:
    check_shares(run(PROBLEMS[1:3], 4, 15, derandomize=True), 60)


@pytest.mark.slow
def test_no_value_is_wrong_without_a_word_in_10_000_cases() -> None:
    check_shares(run(PROBLEMS, 400, 25, derandomize=False), 10_000)
