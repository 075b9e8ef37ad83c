"""What all methods share that go on from checkpoints: plain values, and starts on the faces of the box."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Float, Hypernet, Int, OnePass, Persistent, RealTime, Space, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient.continuing import Continuing
from hypergrad_search.hypergradient.on_the_way import moved

KEY = jax.random.key(0)
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.full(2, 0.3),
    train_loss=lambda p, h, b, k: jnp.mean((p - 1) ** 2) + h["penalty"] * jnp.mean(p**2),
    valid_loss=lambda p, h: (p - 0.5) ** 2,
    batches=lambda step: None,
    optimizer=sgd(0.3, 0.5),
    steps="steps",
)
METHODS = [Hypernet(), OnePass(), Persistent(), RealTime()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_params_and_value_where_the_number_of_steps_is_a_hyperparameter(method: Continuing) -> None:
    space: Space = {"penalty": Float(0.01, 1.0), "steps": Int(10, 20)}
    result = evaluate(PROBLEM, {"penalty": 0.1, "steps": 10}, key=KEY, method=method, space=space)
    assert result.refined is not None
    assert result.checkpoint is not None
    left: Any = result.checkpoint
    assert method.value(PROBLEM, result.refined, key=KEY, space=space, left=left) == result.value
    params = method.params(PROBLEM, result.refined, key=KEY, space=space, checkpoint=left)
    assert float(jnp.mean((params - 0.5) ** 2)) == pytest.approx(result.value, rel=1e-6)


@pytest.mark.parametrize("method", [OnePass, RealTime])
def test_a_start_on_a_face_of_the_box_has_its_whole_slope(method: Any) -> None:
    """A box that goes on beyond the start gives the same first move, measured in natural units."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.full(2, 0.3),
        train_loss=lambda p, h, b, k: jnp.mean((p - 1) ** 2) + h["penalty"] * jnp.mean(p**2),
        valid_loss=lambda p, h: (p - 0.2) ** 2,
        batches=lambda step: None,
        optimizer=sgd(0.3, 0.5),
        steps=10,
    )
    mover = method(every=10, optimizer=optax.sgd(0.1))
    moves = []
    for low in (0.5, -0.5):
        space: Space = {"penalty": Float(low, low + 2.0)}
        refined = evaluate(problem, {"penalty": 0.5}, key=KEY, method=mover, space=space).refined
        assert refined is not None
        moves.append(refined["penalty"] - 0.5)
    assert moves[0] > 0.001
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-4)


def test_an_infinite_move_is_nan_and_not_an_end_of_the_box() -> None:
    point = jnp.array([0.5, 0.5, 0.5])
    rule = optax.sgd(1.0)
    after, _ = moved(rule, jnp.array([jnp.inf, 2.0, 0.25]), rule.init(point), point)
    np.testing.assert_array_equal(after, [np.nan, 0.0, 0.25])
