"""Optimizers of optax: weights as optax's own loop has them, hypergradients as float64 has them, refusals by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Hypernet, Reversible, TrainingProblem, Unrolled, evaluate
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 25
DRAWN = np.random.default_rng(0)
X, Y, X_VALID, Y_VALID = (DRAWN.normal(size=s) for s in ((40, 4), 40, (40, 4), 40))
H = {"rate": 0.03, "l2": np.array([0.1, 0.2, 0.05, 0.3]), "clip": 0.8, "decay": 0.02}

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda h: optax.adam(h["rate"]),
    "clip, adamw, warm-up": lambda h: optax.chain(
        optax.clip_by_global_norm(h["clip"]),
        optax.adamw(lambda step: h["rate"] * jnp.minimum((step + 1) / 5, 1.0), weight_decay=h["decay"]),
    ),
    "nesterov": lambda h: optax.sgd(h["rate"], 0.9, nesterov=True),
    "rmsprop": lambda h: optax.rmsprop(h["rate"], eps=1e-4),
    "adagrad": lambda h: optax.adagrad(h["rate"]),
    "adabelief": lambda h: optax.adabelief(h["rate"], eps_root=1e-8),
    "lion": lambda h: optax.lion(h["rate"], weight_decay=h["decay"]),
    "lamb": lambda h: optax.lamb(h["rate"], weight_decay=h["decay"]),
    "masked": lambda h: optax.chain(
        optax.masked(optax.add_decayed_weights(h["decay"]), {"w": True, "b": False}), optax.sgd(h["rate"], 0.9)
    ),
    "multi_transform": lambda h: optax.multi_transform(
        {"fast": optax.adam(h["rate"]), "slow": optax.sgd(0.1 * h["rate"])}, {"w": "fast", "b": "slow"}
    ),
    "inject_hyperparams": lambda h: optax.inject_hyperparams(optax.adam)(learning_rate=h["rate"]),
    "schedule_free": lambda h: optax.contrib.schedule_free_sgd(h["rate"]),
    "prodigy": lambda h: optax.contrib.prodigy(h["rate"]),
    "every second step": lambda h: optax.MultiSteps(optax.adam(h["rate"]), 2).gradient_transformation(),
}
#: Their steps are the same whatever the size of a gradient, so that rounding decides some of them.
SIGNS = {"lion"}


def init(key: jax.Array, h: Any) -> dict[str, jax.Array]:
    return {"w": 0.3 * jnp.ones(4, h["rate"].dtype), "b": jnp.zeros((), h["rate"].dtype)}


def squares(params: Any, x: np.ndarray, y: np.ndarray) -> jax.Array:
    dtype = params["w"].dtype
    mean: jax.Array = jnp.mean((jnp.asarray(x, dtype) @ params["w"] + params["b"] - jnp.asarray(y, dtype)) ** 2)
    return mean


def train_loss(params: Any, h: Any, batch: Any, key: jax.Array) -> jax.Array:
    loss: jax.Array = squares(params, X, Y) + jnp.sum(h["l2"] * params["w"] ** 2) + 0.05 * params["b"]
    return loss


def problem(name: str) -> TrainingProblem:
    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda params, h: squares(params, X_VALID, Y_VALID),
        batches=lambda step: None,
        optimizer=OPTIMIZERS[name],
        steps=STEPS,
    )


def optax_loop(name: str, h: Any) -> Any:
    transformation = optax.with_extra_args_support(OPTIMIZERS[name](h))
    params = init(KEY, h)
    state = transformation.init(params)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        value, gradient = jax.value_and_grad(train_loss)(params, h, None, KEY)
        updates, state = transformation.update(gradient, state, params, value=value, grad=gradient)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), None, length=STEPS)[0][0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_are_those_of_the_loop_of_optax(name: str) -> None:
    h = jax.tree.map(jnp.float32, H)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = jax.jit(lambda h: optax_loop(name, h))(h)
    found = jax.jit(lambda h: train_in_floats(problem(name), h, KEY))(h)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hypergradients_are_those_of_float64(name: str) -> None:
    found = evaluate(problem(name), H, key=KEY, method=Unrolled())
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        h = jax.tree.map(jnp.float64, H)
        wanted = jax.jit(jax.grad(lambda h: squares(optax_loop(name, h), X_VALID, Y_VALID)))(h)
    assert found.gradient is not None
    tolerance = 0.02 if name in SIGNS else 1e-3
    for setting, slope in wanted.items():
        size = float(np.abs(slope).max())
        np.testing.assert_allclose(found.gradient[setting], slope, rtol=tolerance, atol=tolerance * size + 1e-7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "clip, adamw, warm-up",
            r"clip_by_global_norm, scale_by_adam, .*nearest that can is hypergrad_search.adamw",
        ),
        ("nesterov", r"trace.* cannot be run backwards; the nearest that can is hypergrad_search.sgd"),
        ("lion", "scale_by_lion.* cannot be run backwards; the nearest that can is hypergrad_search.adamw"),
        ("prodigy", "prodigy.* cannot be run backwards; no exact optimizer is near"),
        ("multi_transform", "scale_by_adam.* cannot be run backwards; the nearest that can is hypergrad_search.adam"),
    ],
)
def test_reversal_refuses_by_name(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(problem(name), H, key=KEY)
    with pytest.warns(UserWarning, match="Unrolled differentiates this problem in place of Reversible"):
        result = evaluate(problem(name), H, key=KEY, method=Reversible(fallback=Unrolled()))
    assert result.value == evaluate(problem(name), H, key=KEY, method=Unrolled()).value


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optax.adam(0.1), "got the transformation itself; write lambda h"),
        (lambda: optax.adam(0.1), "optimizer must be an Optimizer, .* or a function of the hyperparameters"),
        ("adam", "optimizer must be an Optimizer, .* or a function"),
    ],
)
def test_a_problem_takes_a_function(optimizer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingProblem(init, train_loss, lambda w, h: squares(w, X, Y), lambda step: None, optimizer, 3)


def test_what_is_no_transformation_is_named() -> None:
    wrong = TrainingProblem(init, train_loss, lambda w, h: squares(w, X, Y), lambda step: None, lambda h: 0.1, 3)
    with pytest.raises(ValueError, match=r"a function must return a transformation of optax, .*got 0.1"):
        evaluate(wrong, H, key=KEY, method=Unrolled())


def test_hypernetworks_do_not_use_it() -> None:
    from hypergrad_search import Float

    space = {"l2": Float(1e-3, 1.0, log=True, shape=(4,))}
    result = evaluate(problem("lion"), H, key=KEY, method=Hypernet(steps=3), space=space)
    assert result.refined is not None
