"""The page on reversible optimizers: its table is true as far as it can be tried, and its example runs."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad_search
from hypergrad_search import AdditiveOptimizer, TrainingProblem, Unrolled, evaluate, train
from hypergrad_search.training import train_in_floats

PAGE = (Path(__file__).parents[2] / "docs" / "reversible_optimizers.md").read_text(encoding="utf-8")
KEY = jax.random.key(0)
STEPS = 12


class Row(NamedTuple):
    """A row of the table; `theirs` and `ours` are the code in its first column and in its last."""

    theirs: str
    reversible: str
    ours: str

    def optax(self) -> Any:
        try:
            return eval(self.theirs, {"optax": optax})
        except AttributeError as error:
            pytest.skip(f"this version of optax lacks it: {error}")

    def here(self) -> Any:
        return eval(self.ours, {"optax": optax, **vars(hypergrad_search)})


def rows() -> list[Row]:
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if "`optax." in line]
    return [Row(c[0].strip("| `"), c[2], c[4].strip("| `")) for c in cells if len(c) == 5]


ROWS = {row.theirs: row for row in rows()}


def problem(optimizer: Any) -> TrainingProblem:
    """A matrix, a vector and a scalar with a steady slope, so that all are trained."""

    def loss(p: Any, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        x = jnp.sin(jnp.arange(12.0, dtype=p["b"].dtype)).reshape(4, 3)
        loss: jax.Array = jnp.mean(jnp.square(jnp.tanh(x @ p["w"]) @ p["v"] - batch - p["b"])) + 0.1 * p["b"]
        return loss

    return TrainingProblem(
        init=lambda key, h: {
            "w": h["scale"] * jnp.cos(jnp.arange(6.0, dtype=h["scale"].dtype)).reshape(3, 2),
            "v": h["scale"] * jnp.array([1.0, -0.5], h["scale"].dtype),
            "b": h["scale"],
        },
        train_loss=loss,
        valid_loss=lambda p, h: jnp.sum(jnp.square(p["w"])) + jnp.sum(p["v"]) + p["b"],
        batches=lambda step: jnp.sin(step.astype(jnp.result_type(float))),
        optimizer=optimizer,
        steps=STEPS,
    )


H = {"scale": 0.7}


def test_the_table_is_found() -> None:
    assert len(ROWS) >= 28
    assert {row.reversible for row in ROWS.values()} == {"yes", "no", "yes, not here"}


def test_every_optimizer_of_the_package_is_in_the_table() -> None:
    exact = {row.ours.partition("(")[0] for row in ROWS.values() if row.reversible == "yes"}
    assert exact == {"sgd", "adam", "adamw", "adabelief", "rmsprop", "muon"}
    assert "`ema`" in PAGE


@pytest.mark.parametrize("name", ROWS)
def test_the_version_of_optax_is_refused_with_the_nearest_that_is_exact(name: str) -> None:
    row = ROWS[name]
    nearest = row.ours.partition("(")[0]
    row.optax()
    with pytest.raises(
        ValueError, match=rf"cannot be run backwards; the nearest that can is hypergrad_search.{nearest}; "
    ):
        evaluate(problem(lambda h: row.optax()), H, key=KEY)
    assert isinstance(row.here(), AdditiveOptimizer)


@pytest.mark.parametrize(
    "name",
    [
        name if "optax.sgd(" in name or "optax.adam(" in name else pytest.param(name, marks=pytest.mark.slow)
        for name, row in ROWS.items()
        if row.reversible == "yes"
    ],
)
def test_what_is_reversible_trains_as_in_optax_and_reverses_to_the_bit(name: str) -> None:
    row = ROWS[name]
    theirs = row.optax()
    result = evaluate(problem(row.here()), H, key=KEY)
    assert result.diagnostics["exact"] is True
    with jax.enable_x64(True):
        wanted = train_in_floats(problem(lambda h: theirs), {"scale": jnp.float64(0.7)}, KEY)
    found = train(problem(row.here()), H, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)


@pytest.mark.slow
def test_the_example_is_exact_and_has_the_gradients_of_float64() -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0], names)
    own = names["AdEMAMix"]("rate", "b1", "b2", "b3", "alpha", "eps")
    h = {**H, "rate": 0.01, "b1": 0.8, "b2": 0.95, "b3": 0.97, "alpha": 2.0, "eps": 1e-3}
    found = evaluate(problem(own), h, key=KEY)
    with jax.enable_x64(True):
        doubles = {name: jnp.asarray(np.float32(x), jnp.float64) for name, x in h.items()}
        exact = evaluate(problem(own), doubles, key=KEY, method=Unrolled())
        weights = train_in_floats(problem(own), doubles, KEY)
        wanted = plain_ademamix(problem(own), doubles)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), weights, wanted)
    assert found.diagnostics["exact"] is True
    assert found.gradient is not None
    assert exact.gradient is not None
    for name, slope in exact.gradient.items():
        assert found.gradient[name] == pytest.approx(float(slope), rel=2e-4), name


def plain_ademamix(run: TrainingProblem, h: Any) -> Any:
    params = run.init(KEY, h)
    fast = slow = second = jax.tree.map(jnp.zeros_like, params)

    def average(decay: Any, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

    def moved(w: Any, m1: Any, m2: Any, v: Any, t: int) -> Any:
        mixed = m1 / (1 - h["b1"] ** t) + h["alpha"] * m2
        return w - h["rate"] * mixed / (jnp.sqrt(v / (1 - h["b2"] ** t)) + h["eps"])

    slope = jax.jit(jax.grad(run.train_loss))
    for step in range(run.steps):
        gradient = slope(params, h, run.batches(jnp.int32(step)), KEY)
        fast, slow = average(h["b1"], fast, gradient), average(h["b3"], slow, gradient)
        second = average(h["b2"], second, jax.tree.map(jnp.square, gradient))
        params = jax.tree.map(lambda w, m1, m2, v, t=step + 1: moved(w, m1, m2, v, t), params, fast, slow, second)
    return params
