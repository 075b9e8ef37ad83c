"""Exactness is equality: what comes back from running training backwards has the very bits of the start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Status, TrainingProblem, Unrolled, evaluate, sgd, train
from hypergrad_search.training.unrolled import train_unrolled

KEY = jax.random.key(0)
Make = Callable[..., TrainingProblem]


def relative_errors(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(np.asarray(ours[name], float) - r) / np.linalg.norm(r))
        for name, r in reference.items()
    }


def float64_gradient(make_problem: Make, hyperparameters: dict[str, Any], **kwargs: Any) -> tuple[float, dict]:
    with jax.enable_x64(True):
        problem = make_problem(dtype=jnp.float64, **kwargs)
        # what reaches the reversible run are float32 numbers
        h = {name: jnp.asarray(np.asarray(x, np.float32), jnp.float64) for name, x in hyperparameters.items()}
        evaluation = evaluate(problem, h, method=Unrolled(), key=KEY)
    assert evaluation.gradient is not None
    return evaluation.value, evaluation.gradient


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("steps", [1, 100, 1000])
def test_reversal_is_exact(make_problem: Make, hyperparameters: dict[str, Any], momentum: float, steps: int) -> None:
    evaluation = evaluate(make_problem(steps), {**hyperparameters, "momentum": momentum}, key=KEY)
    assert evaluation.diagnostics["exact"] is True
    assert evaluation.status == Status.OK
    assert evaluation.gradient is not None


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.98])
def test_reversal_is_exact_for_4000_steps(make_problem: Make, hyperparameters: dict[str, Any], momentum: float) -> None:
    evaluation = evaluate(make_problem(4000), {**hyperparameters, "momentum": momentum}, key=KEY)
    assert evaluation.diagnostics["exact"] is True


@pytest.mark.parametrize("steps", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_reversal_is_exact_for_schedules(make_problem: Make, hyperparameters: dict[str, Any], steps: int) -> None:
    rng = np.random.default_rng(0)
    momentum = rng.uniform(0.4, 0.99, steps)
    rate = np.linspace(1.0, 0.1, steps)
    evaluation = evaluate(make_problem(steps), {**hyperparameters, "momentum": momentum, "rate": rate}, key=KEY)
    assert evaluation.diagnostics["exact"] is True
    assert evaluation.gradient is not None
    assert evaluation.gradient["momentum"].shape == (steps,)
    assert evaluation.gradient["rate"].shape == (steps,)


def test_a_changed_bit_is_noticed(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    """The comparison is of bits: a start that differs in the last place is not the true one."""
    from hypergrad_search.training import fixed_point, reversible

    weights = [jnp.full((3,), 0.1, jnp.float32)]
    state = reversible.start(sgd(0.1, 0.9), weights, 1)
    assert bool(reversible._is_start(state.leaves, weights))
    leaf = state.leaves[0]
    nudged = leaf._replace(weights=fixed_point.Fixed(leaf.weights.high, leaf.weights.low.at[1].add(1)))
    assert not bool(reversible._is_start([nudged], weights))
    slot = leaf.slots["velocity"]
    nudged = leaf._replace(slots={"velocity": fixed_point.Fixed(slot.high, slot.low.at[0].set(1))})
    assert not bool(reversible._is_start([nudged], weights))


@pytest.mark.parametrize("dampening", [False, True])
@pytest.mark.parametrize(("steps", "tolerance"), [(100, 1e-5), (1000, 2e-4)])
def test_gradients_agree_with_float64(
    make_problem: Make, hyperparameters: dict[str, Any], dampening: bool, steps: int, tolerance: float
) -> None:
    optimizer = sgd("rate", "momentum", dampening=dampening)
    h = hyperparameters if dampening else {**hyperparameters, "rate": 0.1}
    ours = evaluate(make_problem(steps, optimizer), h, key=KEY)
    value, gradient = float64_gradient(make_problem, h, steps=steps, optimizer=optimizer)
    assert ours.value == pytest.approx(value, rel=1e-5)
    assert ours.gradient is not None
    errors = relative_errors(ours.gradient, gradient)
    assert max(errors.values()) < tolerance, errors


def test_gradients_of_schedules_by_leaf_agree_with_float64(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    """A schedule for one leaf, a number for another, a name, a constant and a function in one optimizer."""
    steps = 60
    optimizer = sgd(
        [{"w": "schedule", "b": 0.5}, {"w": lambda h, t: h["rate"] * 0.99**t, "b": "rate"}],
        lambda h, t: h["momentum"] * (1 - 0.5 / (t + 1.0)),
        dampening=True,
    )
    h = {**hyperparameters, "schedule": np.linspace(1.0, 0.2, steps)}
    ours = evaluate(make_problem(steps, optimizer), h, key=KEY)
    _, gradient = float64_gradient(make_problem, h, steps=steps, optimizer=optimizer)
    assert ours.gradient is not None
    assert ours.diagnostics["exact"] is True
    errors = relative_errors(ours.gradient, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_train_composes_with_grad_jit_and_vmap(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(50)
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)

    def loss(h: dict[str, Any]) -> jax.Array:
        return problem.valid_loss(train(problem, h, KEY))

    evaluation = evaluate(problem, hyperparameters, key=KEY)
    eager, jitted = jax.grad(loss)(h), jax.jit(jax.grad(loss))(h)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), h) | {"momentum": jnp.asarray([0.9, 0.7])}
    batched = jax.jit(jax.vmap(jax.grad(loss)))(batch)
    alone = jax.grad(loss)({**h, "momentum": jnp.float32(0.7)})
    for name in h:
        np.testing.assert_allclose(eager[name], evaluation.gradient[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(jitted[name], evaluation.gradient[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(batched[name][0], evaluation.gradient[name], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(batched[name][1], alone[name], rtol=1e-3, atol=1e-6)


def test_a_buffer_too_small_for_traced_momentum_gives_nan(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(300)
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {**hyperparameters, "momentum": 0.5})
    gradient = jax.jit(jax.grad(lambda h: problem.valid_loss(train(problem, h, KEY, smallest_momentum=0.95))))(h)
    assert np.isnan(gradient["rate"])


def test_final_parameters_are_those_of_plain_training(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(100)
    exact, plain = train(problem, hyperparameters, KEY), train_unrolled(problem, hyperparameters, KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), exact, plain)


@pytest.mark.parametrize("tree", ["scalar", "nested", "single"])
def test_any_pytree_of_parameters(tree: str) -> None:
    make = {
        "scalar": lambda s: {"a": s * jnp.ones(()), "b": s * jnp.ones((2, 3, 4))},
        "nested": lambda s: ({"x": [s * jnp.ones(3)]}, s * jnp.ones((1, 1))),
        "single": lambda s: s * jnp.arange(5.0),
    }[tree]
    problem = TrainingProblem(
        init=lambda key, h: make(h["scale"]),
        train_loss=lambda p, h, batch, key: sum(jnp.sum((x - batch) ** 2) for x in jax.tree.leaves(p)),
        valid_loss=lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)),
        batches=lambda step: jnp.linspace(0.0, 0.2, 20)[step],
        optimizer=sgd("rate", 0.8),
        steps=20,
    )
    h = {"scale": 0.3, "rate": 0.05}
    exact, plain = evaluate(problem, h, key=KEY), evaluate(problem, h, key=KEY, method=Unrolled())
    assert exact.diagnostics["exact"] is True
    assert max(relative_errors(exact.gradient, plain.gradient).values()) < 1e-5


def test_quadratic_has_the_closed_form() -> None:
    """One weight, loss a w**2 / 2, one step at rate r: w1 = (1 - r a) w0, so d(w1**2)/dr = -2 a w0**2 (1 - r a)."""
    problem = TrainingProblem(
        init=lambda key, h: h["w0"] * jnp.ones(1),
        train_loss=lambda p, h, batch, key: 0.5 * h["a"] * jnp.sum(p**2),
        valid_loss=lambda p: jnp.sum(p**2),
        batches=lambda step: None,
        optimizer=sgd("r", 0.9),
        steps=1,
    )
    r, a, w0 = 0.25, 1.5, 0.5
    gradient = evaluate(problem, {"r": r, "a": a, "w0": w0}, key=KEY).gradient
    left = 1 - r * a
    expected = {"r": -2 * a * w0**2 * left, "a": -2 * r * w0**2 * left, "w0": 2 * w0 * left**2}
    for name, value in expected.items():
        assert gradient[name] == pytest.approx(value, rel=1e-6)
