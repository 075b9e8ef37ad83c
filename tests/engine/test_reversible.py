"""Exactness is equality: what comes back from running training backwards has the very bits of the start."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Evaluation,
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adam,
    adamw,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hypergradient import reversible
from hypergrad_search.hyperparameters import split
from hypergrad_search.training import exact, train_in_floats

KEY = jax.random.key(0)
Make = Callable[..., TrainingProblem]


def relative_errors(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(np.asarray(ours[name], float) - r) / np.linalg.norm(r))
        for name, r in reference.items()
    }


def float64_gradient(
    make_problem: Make, hyperparameters: dict[str, Any], **kwargs: Any
) -> tuple[float, dict[str, Any]]:
    with jax.enable_x64(True):
        problem = make_problem(dtype=jnp.float64, **kwargs)
        # what reaches the reversible run are float32 numbers
        h = {name: jnp.asarray(np.asarray(x, np.float32), jnp.float64) for name, x in hyperparameters.items()}
        evaluation = evaluate(problem, h, method=Unrolled(), key=KEY)
    assert evaluation.gradient is not None
    return evaluation.value, evaluation.gradient


def slopes(evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.gradient is not None
    return evaluation.gradient


OPTIMIZERS: dict[str, tuple[Optimizer, dict[str, float]]] = {
    "sgd": (sgd("rate", "momentum", dampening=True), {}),
    "adam": (adam("rate", "momentum", "b2", eps=1e-6), {"rate": 3e-3, "b2": 0.999}),
    "adamw": (
        adamw("rate", "momentum", "b2", eps=1e-6, weight_decay="decay"),
        {"rate": 3e-3, "b2": 0.99, "decay": 0.1},
    ),
}
each_optimizer = pytest.mark.parametrize(
    "name", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "adamw"))]
)


FAST = [("sgd", 1), ("sgd", 100), ("sgd", 1024), ("adam", 1024)]


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("steps", "name"),
    [
        pytest.param(steps, name, marks=() if (name, steps) in FAST else pytest.mark.slow)
        for steps in (1, 100, 1024, 4000, 10_000)
        for name in OPTIMIZERS
    ],
)
def test_reversal_is_exact(
    make_problem: Make, hyperparameters: dict[str, Any], name: str, momentum: float, steps: int
) -> None:
    optimizer, others = OPTIMIZERS[name]
    problem = make_problem(steps, optimizer)
    evaluation = evaluate(problem, {**hyperparameters, **others, "momentum": momentum}, key=KEY)
    assert evaluation.diagnostics["exact"] is True
    assert evaluation.value < 2.5
    assert evaluation.gradient is not None


@each_optimizer
@pytest.mark.parametrize("steps", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_reversal_is_exact_under_jit_and_vmap(
    make_problem: Make, hyperparameters: dict[str, Any], name: str, steps: int
) -> None:
    """NaN is what `train` gives for an inexact gradient; and a batch has the bits of its members alone."""
    optimizer, others = OPTIMIZERS[name]
    problem = make_problem(steps, optimizer, sizes=(64, 8, 10), batch=50)
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {**hyperparameters, **others})
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), h) | {"momentum": jnp.asarray([0.9, 0.6])}

    def loss(h: dict[str, Any], key: jax.Array) -> jax.Array:
        return problem.valid_loss(train(problem, h, key), h)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(batch, jax.random.split(KEY))
    assert np.isfinite(values).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("last", [1, pytest.param(7, marks=pytest.mark.slow), 40, 60, 1000])
@each_optimizer
def test_a_truncated_gradient_is_that_of_the_last_steps(
    make_problem: Make, hyperparameters: dict[str, Any], name: str, last: int
) -> None:
    """Of a schedule, the last entries have the whole gradient, and the others none; at last / steps of the cost."""
    steps = 60
    optimizer, others = OPTIMIZERS[name]
    problem = make_problem(steps, optimizer)
    h = {**hyperparameters, **others, "momentum": 0.5}
    h["rate"] = np.full(steps, h["rate"])
    whole = evaluate(problem, h, key=KEY)
    truncated = evaluate(problem, h, key=KEY, method=Reversible(last=last))
    first = max(steps - last, 0)
    assert truncated.value == whole.value
    assert truncated.diagnostics["exact"] is True
    assert truncated.cost.gradient_evaluations == steps + 3 * min(last, steps)
    np.testing.assert_allclose(slopes(truncated)["rate"][first:], slopes(whole)["rate"][first:], rtol=1e-4, atol=1e-7)
    assert (slopes(truncated)["rate"][:first] == 0).all()
    assert (slopes(truncated)["scale"] == 0).all() == (first > 0)
    assert len(truncated.diagnostics["adjoint_norms"]) == min(last, steps) + 1


def test_the_spilled_bits_are_as_many_as_the_decay_destroys(
    make_problem: Make, hyperparameters: dict[str, Any]
) -> None:
    steps, h = 60, {**hyperparameters, "momentum": 0.5}  # one bit a number and step
    problem = make_problem(steps, sgd("rate", "momentum"))
    numbers = sum(x.size for x in jax.tree.leaves(problem.init(KEY, h)))
    spilled = evaluate(problem, h, key=KEY).diagnostics["spilled_bytes"] * 8 / numbers
    assert steps - 12 <= spilled <= steps


@pytest.mark.slow
@each_optimizer
def test_fraction_bits_are_the_users_choice(make_problem: Make, hyperparameters: dict[str, Any], name: str) -> None:
    """Coarser numbers give coarser weights, and reverse as exactly."""
    optimizer, others = OPTIMIZERS[name]
    problem = make_problem(100, optimizer)
    h = {**hyperparameters, **others}
    fine = evaluate(problem, h, key=KEY)
    coarsest = evaluate(problem, h, key=KEY, method=Reversible(fraction_bits={"weights": 20}))
    coarse = evaluate(problem, h, key=KEY, method=Reversible(fraction_bits={"weights": 30}), gradient_below=-math.inf)
    assert coarsest.diagnostics["exact"] is True
    assert abs(coarsest.value - fine.value) > abs(coarse.value - fine.value)
    assert abs(coarse.value - fine.value) < 1e-5
    too_coarse = evaluate(problem, h, key=KEY, method=Reversible(fraction_bits={"weights": 16}))
    assert too_coarse.status is Status.UNDERFLOW
    assert "Reversible(fraction_bits={'weights': 32})" in too_coarse.message


def test_a_method_with_fraction_bits_is_a_value() -> None:
    """It can be hashed, compared, pickled and changed, and is then the key of what it has compiled."""
    method = Reversible(fraction_bits={"weights": 40, "velocity": cast(int, np.int64(42))})
    assert method == Reversible(fraction_bits={"weights": 40, "velocity": 42})
    assert hash(method) == hash(Reversible(fraction_bits={"weights": 40, "velocity": 42}))
    assert method != Reversible(fraction_bits={"weights": 41, "velocity": 42})
    assert pickle.loads(pickle.dumps(method)) == method
    assert replace(method, last=3) == Reversible(last=3, fraction_bits={"weights": 40, "velocity": 42})


@pytest.mark.parametrize(
    ("name", "momentum", "method"),
    [
        ("sgd", 0.9, Reversible()),
        ("sgd", 0.9, Reversible(fraction_bits={"weights": 30})),
        ("adam", np.linspace(0.5, 0.99, 100), Reversible()),
        pytest.param("adamw", 0.6, Reversible(), marks=pytest.mark.slow),
    ],
)
def test_params_are_those_of_the_evaluation(
    make_problem: Make, hyperparameters: dict[str, Any], name: str, momentum: Any, method: Reversible
) -> None:
    """To the bit those at which an evaluation ends; their loss is its value up to rounding, as another program."""
    optimizer, others = OPTIMIZERS[name]
    problem, steps = make_problem(100, optimizer), 100
    h = {**hyperparameters, **others, "momentum": momentum}
    dynamic, static = split(h)
    params = method.params(problem, h, key=KEY)
    run = exact.bind(problem, static, dynamic, dict(method.fraction_bits))
    trained = reversible._train(run, dynamic, KEY, steps, None)
    weights = run.layout.unpack(exact.weights_of(run, trained.inputs, trained.state))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(weights), strict=True))
    value = evaluate(problem, h, key=KEY, method=method, gradient_below=-math.inf).value
    assert problem.valid_loss(params, h) == pytest.approx(value, rel=1e-6)


def test_params_of_unrolled_training(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(100)
    value = evaluate(problem, hyperparameters, key=KEY, method=Unrolled(), gradient_below=-math.inf).value
    params = Unrolled().params(problem, hyperparameters, key=KEY)
    assert problem.valid_loss(params, hyperparameters) == pytest.approx(value, rel=1e-5)


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


@each_optimizer
def test_gradients_are_as_good_as_those_of_float32(
    make_problem: Make, hyperparameters: dict[str, Any], name: str
) -> None:
    """Against float64 unrolling: the error of the worst hyperparameter at most three times float32 unrolling's.

    `test_table.py` and `test_optimizers.py` compare shorter runs.
    """
    steps = 1024
    optimizer, others = OPTIMIZERS[name]
    h = {**hyperparameters, **others}
    value, gradient = float64_gradient(make_problem, h, steps=steps, optimizer=optimizer)
    worst = []
    for method in (Reversible(), Unrolled()):
        evaluation = evaluate(make_problem(steps, optimizer), h, key=KEY, method=method)
        assert evaluation.value == pytest.approx(value, rel=1e-5)
        assert evaluation.gradient is not None
        worst.append(max(relative_errors(evaluation.gradient, gradient).values()))
    assert worst[0] < 3 * worst[1], worst
    assert worst[0] < 2e-3


@pytest.mark.slow
def test_gradients_of_schedules_by_leaf_agree_with_float64(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    """A schedule for one leaf, a number for another, a name, a constant and a function in one optimizer."""
    steps = 64
    optimizer = sgd(
        [{"w": "schedule", "b": 0.5}, {"w": lambda h, t: h["rate"] * 0.99 ** t.astype(h["rate"].dtype), "b": "rate"}],
        lambda h, t: h["momentum"] * (1 - 0.5 / (t.astype(h["momentum"].dtype) + 1)),
        dampening=True,
    )
    h = {**hyperparameters, "schedule": np.linspace(1.0, 0.2, steps)}
    ours = evaluate(make_problem(steps, optimizer), h, key=KEY)
    _, gradient = float64_gradient(make_problem, h, steps=steps, optimizer=optimizer)
    assert ours.gradient is not None
    assert ours.diagnostics["exact"] is True
    errors = relative_errors(ours.gradient, gradient)
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.slow
def test_train_composes_with_grad_jit_and_vmap(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(100)
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)

    def loss(h: dict[str, Any]) -> jax.Array:
        return problem.valid_loss(train(problem, h, KEY), h)

    evaluation = evaluate(problem, hyperparameters, key=KEY)
    gradient = jax.jit(jax.grad(loss))
    eager, jitted = jax.grad(loss)(h), gradient(h)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), h) | {"momentum": jnp.asarray([0.9, 0.7])}
    batched = jax.jit(jax.vmap(jax.grad(loss)))(batch)
    alone = gradient({**h, "momentum": jnp.float32(0.7)})
    for name in h:
        np.testing.assert_allclose(eager[name], slopes(evaluation)[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(jitted[name], slopes(evaluation)[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(batched[name][0], slopes(evaluation)[name], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(batched[name][1], alone[name], rtol=1e-3, atol=1e-6)


def test_a_buffer_too_small_for_traced_momentum_gives_nan(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(300)
    h = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {**hyperparameters, "momentum": 0.5})

    def loss(h: dict[str, Any]) -> jax.Array:
        return problem.valid_loss(train(problem, h, KEY, smallest_decays={"velocity": 0.95}), h)

    gradient = jax.jit(jax.grad(loss))(h)
    assert np.isnan(gradient["rate"])


def test_final_parameters_are_those_of_plain_training(make_problem: Make, hyperparameters: dict[str, Any]) -> None:
    problem = make_problem(100)
    ours, plain = train(problem, hyperparameters, KEY), train_in_floats(problem, hyperparameters, KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), ours, plain)


@pytest.mark.parametrize("tree", ["scalar", "nested", "single"])
def test_any_pytree_of_parameters(tree: str) -> None:
    make: Callable[[Any], Any] = {
        "scalar": lambda s: {"a": s * jnp.ones(()), "b": s * jnp.ones((2, 3, 4))},
        "nested": lambda s: ({"x": [s * jnp.ones(3)]}, s * jnp.ones((1, 1))),
        "single": lambda s: s * jnp.arange(5.0),
    }[tree]

    def squares(p: Any, batch: Any) -> jax.Array:
        return jnp.stack([jnp.sum((x - batch) ** 2) for x in jax.tree.leaves(p)]).sum()

    problem = TrainingProblem(
        init=lambda key, h: make(h["scale"]),
        train_loss=lambda p, h, batch, key: squares(p, batch),
        valid_loss=lambda p, h: squares(p, 0.0),
        batches=lambda step: jnp.linspace(0.0, 0.2, 20)[step],
        optimizer=sgd("rate", 0.8),
        steps=20,
    )
    h = {"scale": 0.3, "rate": 0.05}
    ours, plain = evaluate(problem, h, key=KEY), evaluate(problem, h, key=KEY, method=Unrolled())
    assert ours.diagnostics["exact"] is True
    assert max(relative_errors(slopes(ours), slopes(plain)).values()) < 1e-5


def test_quadratic_has_the_closed_form() -> None:
    """One weight, loss a w**2 / 2, one step at rate r: w1 = (1 - r a) w0, so d(w1**2)/dr = -2 a w0**2 (1 - r a)."""
    problem = TrainingProblem(
        init=lambda key, h: h["w0"] * jnp.ones(1),
        train_loss=lambda p, h, batch, key: 0.5 * h["a"] * jnp.sum(p**2),
        valid_loss=lambda p, h: jnp.sum(p**2),
        batches=lambda step: None,
        optimizer=sgd("r", 0.9),
        steps=1,
    )
    r, a, w0 = 0.25, 1.5, 0.5
    gradient = slopes(evaluate(problem, {"r": r, "a": a, "w0": w0}, key=KEY))
    left = 1 - r * a
    expected = {"r": -2 * a * w0**2 * left, "a": -2 * r * w0**2 * left, "w0": 2 * w0 * left**2}
    for name, value in expected.items():
        assert gradient[name] == pytest.approx(value, rel=1e-6)
