"""Outer losses take the hyperparameters: what they do with them directly is a part of the hypergradient.

Training is a linear map here, so that everything is known in closed form.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Float, Hypernet, Method, Reversible, Status, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_search.hypergradient import Joint, Linear

KEY = jax.random.key(0)
STEPS = 20
MOMENTUM = 0.5
START = np.array([1.0, 0.5, -0.5, 2.0])
H: dict[str, Any] = {"rate": 0.05, "scale": 0.8, "data": np.array([0.3, -0.2, 0.1, 0.9]), "outer": 0.7, "double": True}

PROBLEM = TrainingProblem(
    init=lambda key, h: h["scale"] * jnp.float32(START),
    train_loss=lambda p, h, batch, key: jnp.sum((p - h["data"]) ** 2),
    # `data` acts through training and directly, `outer` directly alone
    valid_loss=lambda p, h: (2 if h["double"] else 1) * jnp.sum((p - 0.3 * h["data"]) ** 2) + h["outer"] * jnp.sum(p),
    batches=lambda step: None,
    optimizer=sgd("rate", MOMENTUM),
    steps=STEPS,
    test_loss=lambda p, h: h["outer"] * jnp.sum(h["data"] * p),
)


def left_of_a_difference(steps: int, rate: float) -> float:
    """What is left, after so many steps, of a difference between weights and data, where the velocity was 0."""
    difference, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = MOMENTUM * velocity + 2 * difference
        difference -= rate * velocity
    return difference


def closed_form(last: int) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """The final weights, and the hypergradient through the last steps and the outer loss."""
    left, data, rate = left_of_a_difference(STEPS, H["rate"]), H["data"], H["rate"]
    weights = data + left * (H["scale"] * START - data)
    for_weights = 4 * (weights - 0.3 * data) + H["outer"]
    gradient = {
        "data": (1 - left_of_a_difference(last, rate)) * for_weights - 1.2 * (weights - 0.3 * data),
        "outer": weights.sum(),
        "scale": np.float64(0.0),
    }
    if last == STEPS:
        slope = (left_of_a_difference(STEPS, rate + 1e-6) - left_of_a_difference(STEPS, rate - 1e-6)) / 2e-6
        gradient["scale"] = left * for_weights @ START
        gradient["rate"] = slope * for_weights @ (H["scale"] * START - data)
    return weights, gradient


@pytest.mark.parametrize(
    ("method", "last"),
    [(Reversible(), STEPS), (Unrolled(), STEPS), (Reversible(last=7), 7), (Reversible(last=1), 1)],
)
def test_the_gradient_has_the_direct_derivative(method: Method, last: int) -> None:
    result = evaluate(PROBLEM, H, key=KEY, method=method)
    weights, expected = closed_form(last)
    assert result.status == Status.OK
    assert result.gradient is not None
    assert result.gradient.keys() == H.keys() - {"double"}
    value = 2 * np.sum((weights - 0.3 * H["data"]) ** 2) + H["outer"] * weights.sum()
    assert result.value == pytest.approx(value, rel=1e-5)
    assert result.test_loss == pytest.approx(H["outer"] * H["data"] @ weights, rel=1e-5)
    for name, slope in expected.items():
        np.testing.assert_allclose(result.gradient[name], slope, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_plain_values_reach_the_outer_loss(method: Method) -> None:
    weights, _ = closed_form(STEPS)
    value = np.sum((weights - 0.3 * H["data"]) ** 2) + H["outer"] * weights.sum()
    assert evaluate(PROBLEM, {**H, "double": False}, key=KEY, method=method).value == pytest.approx(value, rel=1e-5)


FAST = Hypernet(network=Linear(), algorithm=Joint(), steps=1500)


def followed(**losses: Any) -> Any:
    """Where `Hypernet` ends that follows such outer losses, for training that carries `data` into the weights."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["data"]) ** 2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.9),
        steps=10,
        **losses,
    )
    space = {"data": Float(0.0, 1.0, shape=(2,)), "outer": Float(0.01, 1.0, log=True)}
    result = evaluate(problem, {"data": np.full(2, 0.5), "outer": 0.1}, key=KEY, method=FAST, space=space)
    assert result.status == Status.OK
    assert result.refined is not None
    return result.refined


def split_between(params: jax.Array, h: dict[str, Any], *_: jax.Array) -> jax.Array:
    """Lowest, where the weights are the data, at data of (0.4, 0.6): halfway between what the two terms want alone."""
    wanted = jnp.float32(np.array([0.1, 0.9]))
    direct = jnp.sum((h["data"] - (1 - wanted) + jnp.float32(np.array([0.2, -0.2]))) ** 2)
    return jnp.sum((params - wanted) ** 2) + direct + (jnp.log(h["outer"]) - jnp.log(0.3)) ** 2


def test_hypernet_follows_the_direct_derivative() -> None:
    """`outer` is not refused: the outer loss alone depends on it."""
    refined = followed(valid_loss=split_between)
    np.testing.assert_allclose(refined["data"], [0.4, 0.6], atol=0.01)
    assert refined["outer"] == pytest.approx(0.3, rel=0.02)


def test_hypernet_follows_the_direct_derivative_of_a_minibatch() -> None:
    refined = followed(
        valid_loss=lambda p, h: jnp.sum(p**2) + h["outer"], valid_batch_loss=lambda p, h, s: split_between(p, h)[None]
    )
    np.testing.assert_allclose(refined["data"], [0.4, 0.6], atol=0.01)
    assert refined["outer"] == pytest.approx(0.3, rel=0.02)
