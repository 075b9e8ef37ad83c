"""Parameters of real frameworks that cannot be trained reversibly are refused, with the reason and a way out."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from hypergrad_search import Reversible, TrainingProblem, Unrolled, evaluate, sgd

X = jnp.linspace(-1, 1, 20).reshape(5, 4)


class LinenNetwork(linen.Module):
    norm: Any

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(1)(self.norm(linen.Dense(3)(x)))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, dropout: nnx.Dropout | None = None) -> None:
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = dropout


class EquinoxNetwork(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key: jax.Array) -> None:
        self.linear = eqx.nn.Linear(4, 3, key=key)
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")


def problem(init: Any, train_loss: Any = None) -> TrainingProblem:
    def squares(params: Any, *_: Any) -> jax.Array:
        return jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)]).sum()

    return TrainingProblem(
        init=lambda key, h: init(key),
        train_loss=train_loss or squares,
        valid_loss=squares,
        batches=lambda step: X,
        optimizer=sgd("rate", 0.9),
        steps=3,
    )


def refusal(init: Any, train_loss: Any = None) -> str:
    """Return the message of every method, which must be the same."""
    messages = set()
    for method in (Reversible(), Unrolled()):
        with pytest.raises(ValueError, match=r"^(init|train_loss)") as caught:
            evaluate(problem(init, train_loss), {"rate": 0.01}, key=jax.random.key(0), method=method)
        messages.add(str(caught.value))
    (message,) = messages
    return message


def nnx_network(key: jax.Array) -> NnxNetwork:
    return NnxNetwork(nnx.Rngs(key))


def equinox_without_functions(key: jax.Array) -> Any:
    return eqx.partition(EquinoxNetwork(key), eqx.is_inexact_array)[0]


def equinox_and_state(key: jax.Array) -> Any:
    return eqx.partition(eqx.nn.make_with_state(EquinoxNetwork)(key), eqx.is_inexact_array)[0]


@pytest.mark.parametrize(
    ("init", "name"),
    [
        (lambda key: LinenNetwork(linen.BatchNorm(False)).init(key, X), "params['batch_stats']['norm']['mean']"),
        (lambda key: nnx.state(nnx_network(key)), "params['norm']['mean']"),
        (nnx_network, "params.norm.mean"),
        (lambda key: nnx.split(nnx_network(key), nnx.BatchStat, ...)[1:], "params[0]['norm']['mean']"),
        (equinox_without_functions, "params.norm.batch_state_index"),
        (equinox_and_state, "params[1]"),
    ],
)
def test_running_statistics_are_refused(init: Any, name: str) -> None:
    message = refusal(init)
    assert message.startswith(f"init: {name} holds running statistics, which training carries along but does not")
    assert "return (params, statistics), and give train_loss and valid_loss a second argument" in message


@pytest.mark.parametrize(
    ("init", "name", "got"),
    [
        (lambda key: eqx.nn.MLP(4, 1, 3, 1, key=key), "params.activation", "must be an array, got "),
        (lambda key: {"net": (jnp.ones(3), jnp.tanh)}, "params['net'][1]", "must be an array, got <"),
        (lambda key: {"net": (jnp.ones(3), "tanh")}, "params['net'][1]", "must be an array, got 'tanh'"),
        (lambda key: [jnp.ones(3), jnp.arange(3)], "params[1]", "must be floating-point, got int32"),
        (lambda key: [jnp.ones(3), key], "params[1]", "must be floating-point, got key<fry>"),
        (
            lambda key: nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(key))),
            "params['rngs']['count'].value",
            "must be floating-point, got uint32",
        ),
    ],
)
def test_leaves_that_cannot_be_trained_are_refused(init: Any, name: str, got: str) -> None:
    message = refusal(init)
    assert message.startswith(f"init: {name} {got}")
    assert "eqx.partition(model, eqx.is_inexact_array)[0]" in message
    assert "nnx.state(model, nnx.Param)" in message
    assert 'variables["params"]' in message


def test_a_loss_that_returns_statistics_too_is_refused() -> None:
    model = LinenNetwork(linen.BatchNorm(False))
    variables = model.init(jax.random.key(0), X)

    def train_loss(params: Any, h: Any, batch: jax.Array, key: jax.Array) -> Any:
        out, updated = model.apply({**variables, "params": params}, batch, mutable=["batch_stats"])
        return jnp.mean(out**2), updated

    message = refusal(lambda key: variables["params"], train_loss)
    assert message.startswith("train_loss must return a floating-point scalar alone, got PyTreeDef((*, {'batch_stats'")
    assert "let train_loss take (params, statistics, hyperparameters, batch, key)" in message


def test_statistics_of_the_batch_alone_are_trained() -> None:
    """Batch normalisation needs no running statistics where the loss normalises by the batch alone."""
    model = LinenNetwork(linen.BatchNorm(use_running_average=False))
    variables = model.init(jax.random.key(0), X)

    def train_loss(params: Any, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        out, _ = model.apply({**variables, "params": params}, batch, mutable=["batch_stats"])
        return jnp.mean((out - 1) ** 2)

    result = evaluate(problem(lambda key: variables["params"], train_loss), {"rate": 0.01}, key=jax.random.key(0))
    assert result.diagnostics["exact"] is True
    assert result.gradient is not None


def test_an_nnx_module_of_parameters_alone_is_trained_whole() -> None:
    result = evaluate(problem(lambda key: nnx.Linear(4, 3, rngs=nnx.Rngs(key))), {"rate": 0.01}, key=jax.random.key(0))
    assert result.diagnostics["exact"] is True
