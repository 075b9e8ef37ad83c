"""Parameters of several floating-point types train as in optax, each leaf to the precision of its own type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adabelief,
    adam,
    adamw,
    evaluate,
    rmsprop,
    sgd,
)
from hypergrad_search.optimizers import resolve
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 40
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)), RNG.normal(size=40)

Params = dict[str, jax.Array]
Dtypes = tuple[str, str, str]

TYPES: list[Dtypes] = [
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float16", "float16", "float16"),
    ("bfloat16", "float16", "float32"),
    ("float32", "bfloat16", "float16"),
]
PRECISION = {"float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}
OPTIMIZERS: dict[str, tuple[Optimizer, optax.GradientTransformation]] = {
    "sgd": (sgd("rate", 0.9), optax.sgd(0.05, 0.9)),
    "nesterov": (sgd("rate", 0.9, nesterov=True), optax.sgd(0.05, 0.9, nesterov=True)),
    "adam": (adam("rate"), optax.adam(0.05)),
    "adamw": (adamw("rate", 0.9, 0.99, weight_decay=0.3), optax.adamw(0.05, 0.9, 0.99, weight_decay=0.3)),
    "adabelief": (adabelief("rate", 0.9, 0.99, 1e-2), optax.adabelief(0.05, 0.9, 0.99, 1e-2)),
    "rmsprop": (
        rmsprop(lambda h, t: 0.2 * h["rate"], eps=1e-2, momentum=0.5),
        optax.rmsprop(0.01, eps=1e-2, momentum=0.5),
    ),
}


def loss(p: Params) -> jax.Array:
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    a, b, c = (p[name].astype(jnp.float32) for name in ("a", "b", "c"))
    return jnp.mean((x @ a + jnp.tanh(x @ b) + jnp.sin(x @ c) - y) ** 2)


def problem_of(dtypes: Dtypes, optimizer: Optimizer) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: {name: jnp.full(6, 0.125, dtype) for name, dtype in zip("abc", dtypes, strict=True)},
        train_loss=lambda p, h, batch, key: loss(p),
        valid_loss=lambda p, h: loss(p),
        batches=lambda step: step,
        optimizer=optimizer,
        steps=STEPS,
    )


def in_optax(dtypes: Dtypes, transform: optax.GradientTransformation) -> Params:
    params: Params = problem_of(dtypes, sgd(0.1, 0.9)).init(KEY, {})

    @jax.jit
    def step(params: Params, state: Any) -> Any:
        updates, state = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        for _ in range(STEPS):
            params, state = step(params, state)
    return params


@pytest.mark.parametrize("dtypes", TYPES, ids="-".join)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("nesterov", "adamw") else n for n in OPTIMIZERS]
)
def test_weights_are_those_of_optax(name: str, dtypes: Dtypes) -> None:
    ours, transform = OPTIMIZERS[name]
    found = jax.jit(lambda: train_in_floats(problem_of(dtypes, ours), {"rate": jnp.float32(0.05)}, KEY))()
    expected = in_optax(dtypes, transform)
    coarsest = max(PRECISION[dtype] for dtype in dtypes)
    for leaf in expected:
        assert found[leaf].dtype == expected[leaf].dtype
        off = np.abs(np.asarray(found[leaf], float) - np.asarray(expected[leaf], float))
        assert off.max() < 8 * coarsest, leaf  # each of the steps rounds


@pytest.mark.parametrize("name", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_hypergradients_in_half_precision_are_close_to_those_in_float32(name: str) -> None:
    h = {"rate": 0.05}
    wide, narrow = (
        evaluate(problem_of(dtypes, OPTIMIZERS[name][0]), h, key=KEY, method=Unrolled())
        for dtypes in (TYPES[0], TYPES[3])
    )
    assert wide.gradient is not None
    assert narrow.gradient is not None
    assert narrow.value == pytest.approx(wide.value, rel=0.01)
    assert narrow.gradient["rate"] == pytest.approx(wide.gradient["rate"], rel=0.05)


def test_settings_keep_their_precision() -> None:
    """Of half precision's leaves the settings are float32; float64's make all of them float64."""
    params = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2, jnp.float16)}
    settings, _ = resolve(adam("rate"), {"rate": jnp.float32(1e-3)}, params, STEPS)
    assert settings["b2"].dtype == jnp.float32
    assert settings["b2"][0, 0] == np.float32(0.999)
    with jax.enable_x64(True):
        for rate, leaf, dtype in [
            (1e-3, "float32", "float32"),
            (np.float64(1e-3), "float32", "float64"),
            (1e-3, "float64", "float64"),
        ]:
            settings, _ = resolve(adam(rate), {}, {"a": jnp.zeros(2, leaf)}, STEPS)
            assert {x.dtype for x in settings.values()} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_exact_training_has_settings_in_float32_where_x64_is_on() -> None:
    problem = problem_of(TYPES[0], OPTIMIZERS["adam"][0])
    off = evaluate(problem, {"rate": 0.05}, key=KEY)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        on = evaluate(problem, {"rate": 0.05}, key=KEY, method=Reversible())
    assert (off.status, on.status) == (Status.OK, Status.OK)
    assert on.value == pytest.approx(off.value, rel=1e-5)
