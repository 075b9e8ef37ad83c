"""Muon: optax's own, but for Nesterov's momentum; each leaf by itself, and reversed to the bit whatever its shape."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Optimizer, Status, TrainingProblem, Unrolled, ema, evaluate, muon, train
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 30

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "network": [(6, 4), (4,), (4, 3), ()],
    "wide and tall": [(2, 9), (9, 2), (1, 5), (5, 1), (1, 1)],
    "kernel and square": [(3, 3, 2), (7, 7)],
    "empty": [(0, 4), (3,)],
}


def problem(shapes: list[tuple[int, ...]], optimizer: Optimizer) -> TrainingProblem:
    def init(key: jax.Array, h: Any) -> list[jax.Array]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        waves = [jnp.sin(1 + jnp.arange(size, dtype=h["scale"].dtype) ** 2) for size in sizes]
        return [h["scale"] * wave.reshape(shape) for wave, shape in zip(waves, shapes, strict=True)]

    def train_loss(p: list[jax.Array], h: Any, step: jax.Array, key: jax.Array) -> jax.Array:
        wave = jnp.sin(step.astype(h["scale"].dtype))
        return jnp.stack([jnp.sum(jnp.square(jnp.tanh(x) - 0.3 * jnp.cos(x + wave))) for x in p]).sum()

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.stack([jnp.sum(jnp.square(x - 0.1)) for x in p]).sum(),
        batches=lambda step: step,
        optimizer=optimizer,
        steps=STEPS,
    )


needs_muon = pytest.mark.skipif(not hasattr(optax.contrib, "muon"), reason="this version of optax has no Muon")


def each_of(shapes: Iterable[str]) -> pytest.MarkDecorator:
    """All are slow but the one that has a little of everything."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(shapes) if name != "network"]
    return pytest.mark.parametrize("shapes", ["network", *slow])


@pytest.mark.slow
@needs_muon
@each_of(SHAPES.keys() - {"empty"})  # at which optax fails
def test_final_weights_are_those_of_optax(shapes: str) -> None:
    h = {"scale": jnp.float32(0.5)}
    chosen = {
        "ns_steps": 4,
        "beta": 0.9,
        "eps": 1e-6,
        "weight_decay": 0.3,
        "adam_b1": 0.8,
        "adam_b2": 0.95,
        "adam_eps_root": 1e-4,
        "adam_weight_decay": 0.1,
        "adam_learning_rate": 0.01,
    }
    theirs = optax.contrib.muon(0.02, nesterov=False, **chosen)
    with jax.enable_x64(True):
        wanted = train_in_floats(problem(SHAPES[shapes], lambda h: theirs), jax.tree.map(jnp.float64, h), KEY)  # type: ignore[arg-type]  # a function of h is one
    run = problem(SHAPES[shapes], muon(0.02, **chosen))  # type: ignore[arg-type]  # numbers all
    for found in (train(run, h, KEY), train_in_floats(run, h, KEY)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


@pytest.mark.slow
@each_of(SHAPES)
def test_it_reverses_to_the_bit_and_has_the_gradients_of_float64(shapes: str) -> None:
    rule = muon("rate", 5, "beta", "eps", "shrink", adam_b1="b1", adam_b2="b2", adam_learning_rate="rate2")
    h = {"scale": 0.5, "rate": 0.005, "beta": 0.9, "eps": 1e-2, "shrink": 0.3, "b1": 0.8, "b2": 0.95, "rate2": 0.03}
    run = problem(SHAPES[shapes], rule)
    found = evaluate(run, h, key=KEY)
    with jax.enable_x64(True):
        doubles = {name: jnp.asarray(np.float32(x), jnp.float64) for name, x in h.items()}
        exact = evaluate(run, doubles, key=KEY, method=Unrolled())
    assert (found.status, found.diagnostics["exact"]) == (Status.OK, True)
    assert found.gradient is not None
    assert exact.gradient is not None
    for name, slope in exact.gradient.items():
        assert abs(found.gradient[name] - slope) <= 5e-5 * abs(slope), name


@pytest.mark.slow
def test_leaves_may_have_settings_of_their_own() -> None:
    by_leaf = [{"w": "fast", "b": "slow"}, 0.95, {"w": 0.1, "b": 0.2}]

    def at(rate: Any, beta: Any, shrink: Any) -> Any:
        run = TrainingProblem(
            init=lambda key, h: {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
            train_loss=lambda p, h, batch, key: jnp.sum((p["w"] @ p["b"] - 1.5) ** 2),
            valid_loss=lambda p, h: jnp.sum(p["w"]) + jnp.sum(p["b"]),
            batches=lambda step: None,
            optimizer=muon(rate, 1, beta=beta, weight_decay=shrink, adam_weight_decay=shrink),
            steps=5,
        )
        return train(run, {"fast": 0.1, "slow": 0.01}, KEY)

    both = at(*by_leaf)
    np.testing.assert_array_equal(both["w"][0, 0] > 0, True)
    assert both["w"].shape == (2, 2)
    same = at("fast", 0.95, 0.1)
    first = np.abs(np.asarray(both["b"]) - 1).max(), np.abs(np.asarray(same["b"]) - 1).max()
    assert first[0] < 0.2 * first[1]  # the slow leaf, which Adam trains, went a shorter way


@pytest.mark.slow
def test_an_average_keeps_leaves_whole() -> None:
    run = problem(SHAPES["network"], ema(muon("rate"), "average"))
    found = evaluate(run, {"scale": 0.5, "rate": 0.02, "average": 0.9}, key=KEY)
    plain = evaluate(run, {"scale": 0.5, "rate": 0.02, "average": 0.9}, key=KEY, method=Unrolled())
    assert found.diagnostics["exact"] is True
    assert found.value == pytest.approx(plain.value, rel=1e-4)


@pytest.mark.slow
def test_all_singular_values_of_a_step_are_about_1() -> None:
    """And so a step is as long for a small gradient as for a large one."""
    run = TrainingProblem(
        init=lambda key, h: jnp.zeros((8, 8)),
        train_loss=lambda w, h, batch, key: h["size"] * jnp.sum(w * jax.random.normal(KEY, (8, 8))),
        valid_loss=lambda w, h: jnp.sum(w),
        batches=lambda step: None,
        optimizer=muon(1.0, 8),
        steps=1,
    )
    for size in (1e-3, 10.0):
        values = np.linalg.svd(np.asarray(train(run, {"size": size}, KEY)), compute_uv=False)
        assert 0.5 < values.min() < values.max() < 1.5
