"""Losses with derivatives of their own: `Reversible` agrees with `Unrolled`, where the order of derivatives matters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Reversible, Status, TrainingProblem, Unrolled, adamw, evaluate
from hypergrad_search.custom_derivatives import has_custom_derivatives

Rule = Callable[[jax.Array], jax.Array]
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
Y = np.sin(X[:, 0] + 0.5 * X[:, 1]).astype(np.float32)
H = {"rate": 0.02, "decay": 0.1, "penalty": 1e-2}


@jax.custom_vjp
def scaled(x: jax.Array) -> jax.Array:
    """The identity, with a gradient of another length and sign."""
    return x


scaled.defvjp(lambda x: (x, None), lambda _, g: (-0.3 * g,))


@jax.custom_vjp
def straight(x: jax.Array) -> jax.Array:
    """Rounding whose slope is taken for 1."""
    return jnp.round(4 * x) / 4


straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))  # the function is called in its own rule


@jax.custom_jvp
def forwards(x: jax.Array) -> jax.Array:
    """The same in forward mode."""
    return jnp.round(4 * x) / 4


@forwards.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.round(4 * primals[0]) / 4, tangents[0]


@jax.custom_jvp
def by_parts(x: jax.Array) -> jax.Array:
    """The same by the short form, which JAX uses for its own functions too."""
    return jnp.round(4 * x) / 4


by_parts.defjvps(lambda tangent, result, x: tangent)

RULES: dict[str, Rule] = {
    "custom_vjp": scaled,
    "custom_vjp that calls itself": straight,
    "custom_jvp": forwards,
    "defjvps": by_parts,
    "in a loop": lambda x: jax.lax.fori_loop(0, 2, lambda i, x: forwards(x), x),
    "in a branch": lambda x: jax.lax.cond(jnp.sum(x) > 0, straight, jnp.tanh, x),
}
OF_JAX: dict[str, Rule] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "stop_gradient": lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
}


def problem(rule: Rule) -> TrainingProblem:
    def init(key: jax.Array, h: Any) -> dict[str, jax.Array]:
        first, last = jax.random.split(key)
        return {"first": 0.5 * jax.random.normal(first, (6, 8)), "last": 0.3 * jax.random.normal(last, (8,))}

    def losses(params: Any, rows: Any) -> jax.Array:
        found: jax.Array = (jnp.tanh(rule(jnp.asarray(X)[rows] @ params["first"])) @ params["last"] - Y[rows]) ** 2
        return found

    def train_loss(params: Any, h: Any, batch: Any, key: jax.Array) -> jax.Array:
        penalty = h["penalty"] * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        loss: jax.Array = jnp.mean(losses(params, np.arange(20))) + penalty
        return loss

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda params, h: losses(params, np.arange(20, 40)),
        batches=lambda step: (),
        optimizer=adamw("rate", eps=1e-3, weight_decay="decay"),
        steps=20,
    )


@pytest.mark.parametrize("rule", [*RULES, *OF_JAX])
def test_they_are_told_from_those_of_jax(rule: str) -> None:
    assert has_custom_derivatives({**RULES, **OF_JAX}[rule], jnp.ones((3, 4))) == (rule in RULES)


@pytest.mark.parametrize(
    "rule",
    [
        *("custom_vjp", "custom_jvp"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("custom_vjp that calls itself", "defjvps", "in a loop")
        ),
    ],
)
def test_the_hypergradient_is_that_of_unrolling(rule: str) -> None:
    run = problem(RULES[rule])
    ours, wanted = (evaluate(run, H, key=jax.random.key(0), method=m) for m in (Reversible(), Unrolled()))
    assert (ours.status, ours.diagnostics["exact"]) == (Status.OK, True)
    assert ours.gradient is not None
    assert wanted.gradient is not None
    for name in H:
        np.testing.assert_allclose(ours.gradient[name], wanted.gradient[name], rtol=2e-3, err_msg=name)
