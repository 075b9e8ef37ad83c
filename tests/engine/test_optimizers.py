"""The optimizers are optax's, forwards; and each of their settings is a hyperparameter with a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    AdditiveOptimizer,
    Evaluation,
    Optimizer,
    TrainingProblem,
    Unrolled,
    adabelief,
    adam,
    adamw,
    evaluate,
    rmsprop,
    sgd,
    train,
)
from hypergrad_search.training import train_in_floats

KEY = jax.random.key(0)
STEPS = 49
DIMENSION = 5
Params = dict[str, jax.Array]


def quadratic(optimizer: Optimizer, steps: int = STEPS) -> TrainingProblem:
    """An ill-conditioned quadratic in two leaves, one weight of which has no gradient."""

    def train_loss(p: Params, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        curvature = jnp.array([0.0, 1e-4, 0.1, 1.0, 3.0], p["w"].dtype)
        return jnp.sum(curvature * (p["w"] - batch) ** 2) + jnp.sum(p["b"] ** 2)

    return TrainingProblem(
        init=lambda key, h: {"w": jnp.linspace(-1.0, 1.0, DIMENSION), "b": jnp.full(3, 0.5)},
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.sum((p["w"] - 0.1) ** 2) + jnp.sum(p["b"] ** 2),
        batches=lambda step: 0.1 * jnp.sin(step.astype(float)),
        optimizer=optimizer,
        steps=steps,
    )


def train_with_optax(transform: optax.GradientTransformation, problem: TrainingProblem, dtype: Any) -> Any:
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), problem.init(KEY, {}))
    state = transform.init(params)
    gradient = jax.jit(jax.grad(problem.train_loss))
    for step in range(problem.steps):
        slope = gradient(params, {}, problem.batches(jnp.int32(step)), KEY)
        updates, state = transform.update(slope, state, params)
        params = optax.apply_updates(params, updates)
    return params


OPTAX = {
    "sgd": (sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": (sgd(0.1, 0.9, True), optax.sgd(0.1, 0.9, True)),
    "adam": (adam(0.01), optax.adam(0.01)),
    "adam, all settings": (adam(0.01, 0.8, 0.9, 1e-3, 1e-4), optax.adam(0.01, 0.8, 0.9, 1e-3, 1e-4)),
    "adamw": (adamw(0.01), optax.adamw(0.01)),
    "adamw, strong": (adamw(0.01, weight_decay=1.0), optax.adamw(0.01, weight_decay=1.0)),
    "adamw, masked": (
        adamw(0.01, weight_decay={"w": 0.5, "b": 0.0}),
        optax.adamw(0.01, weight_decay=0.5, mask={"w": True, "b": False}),
    ),
    "adabelief": (adabelief(0.01), optax.adabelief(0.01)),
    "adabelief, all settings": (
        adabelief(0.01, 0.8, 0.9, 1e-3, 1e-6),
        optax.adabelief(0.01, 0.8, 0.9, 1e-3, 1e-6),
    ),
    "rmsprop": (rmsprop(0.003, momentum=0.8), optax.rmsprop(0.003, momentum=0.8)),
    "rmsprop, all settings": (
        rmsprop(0.01, 0.95, 1e-4, momentum=0.5),
        optax.rmsprop(0.01, 0.95, 1e-4, momentum=0.5),
    ),
    "rmsprop, schedule": (
        rmsprop(lambda h, t: 0.01 / (1 + 0.1 * t), momentum=0.5),
        optax.rmsprop(lambda t: 0.01 / (1 + 0.1 * t), momentum=0.5),
    ),
    "schedule": (
        adamw(lambda h, t: 0.01 / (1 + 0.1 * t), weight_decay=0.3),
        optax.adamw(lambda t: 0.01 / (1 + 0.1 * t), weight_decay=0.3),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("adamw, strong", "rmsprop, schedule") else n for n in OPTAX],
)
def test_final_weights_are_those_of_optax(name: str) -> None:
    ours, theirs = OPTAX[name]
    problem = quadratic(ours)
    # optax mixes integers and floats, and so do schedules as users write them
    with jax.numpy_dtype_promotion("standard"):
        found = [train_in_floats(problem, {}, KEY)]
        if isinstance(ours, AdditiveOptimizer):
            found.append(train(problem, {}, KEY))
        in_float32 = train_with_optax(theirs, problem, jnp.float32)
        with jax.enable_x64(True):
            in_float64 = train_with_optax(theirs, problem, jnp.float64)
    # optax's own float32 is off by 1e-5: it takes 1 - b2 from Python's 0.999, and 1 - b2**t from float32's
    for params in found:
        assert largest_difference(params, in_float32) < 5e-6
        assert largest_difference(params, in_float64) < 1e-6


def largest_difference(x: Any, y: Any) -> float:
    return float(
        max(
            jax.tree.leaves(
                jax.tree.map(lambda a, b: float(np.max(np.abs(np.asarray(a, float) - np.asarray(b)))), x, y)
            )
        )
    )


def test_a_weight_without_gradient_stays_where_it_is() -> None:
    """Its moments stay 0 to the bit: no noise of the arithmetic is divided by their root."""
    problem = quadratic(adam(0.1), steps=500)
    assert train(problem, {}, KEY)["w"][0] == -1.0


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
def test_tiny_gradients_move_weights_as_in_floats(size: float) -> None:
    """Adam divides by their size, so they count as much as large ones, down to eps."""

    def train_loss(p: jax.Array, h: Any, batch: Any, key: jax.Array) -> jax.Array:
        return jnp.sum(jnp.array([1.0, size]) * (p - 3) ** 2)

    problem = TrainingProblem(
        lambda key, h: jnp.zeros(2), train_loss, lambda p, h: jnp.sum(p**2), lambda step: None, adam(0.01), 200
    )
    np.testing.assert_allclose(train(problem, {}, KEY), train_in_floats(problem, {}, KEY), rtol=1e-5)


MAKE: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adabelief": adabelief,
    "rmsprop": rmsprop,
}
H = {"rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-2, "root": 1e-3, "decay": 0.2}
NAMED: dict[str, Optimizer] = {
    "sgd": sgd("rate", "b1"),
    "adam": adam("rate", "b1", "b2", "eps", "root"),
    "adamw": adamw("rate", "b1", "b2", "eps", "root", weight_decay="decay"),
    "adabelief": adabelief("rate", "b1", "b2", "eps", "root"),
    "rmsprop": rmsprop("rate", "b2", "eps", momentum="b1"),
}


# Each of them with a schedule, and two with one for each leaf.
FAST = [*((name, "schedule") for name in NAMED), ("sgd", "both"), ("adam", "both")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.slow)
        for name in NAMED
        for kind in ("schedule", "by leaf", "both")  # `test_table.py` has numbers for all leaves
    ],
)
def test_every_setting_has_the_gradient_of_float64(name: str, kind: str) -> None:
    names = {k: str(v) for k, v in NAMED[name].settings.items()}
    leaf: Any = np.linspace(1.0, 1.02, STEPS) if kind in ("schedule", "both") else 1.0
    h = {
        f"{k}/{part}": np.float32(leaf * H[k] * s)
        for k in names.values()
        for part, s in (("w", 1.0), ("b", 0.97))
        if kind != "schedule" or part == "w"
    }
    by_leaf = {k: {"w": f"{v}/w", "b": f"{v}/b"} for k, v in names.items()}
    settings = by_leaf if kind in ("by leaf", "both") else {k: f"{v}/w" for k, v in names.items()}
    problem = quadratic(MAKE[name](**settings))
    ours = evaluate(problem, h, key=KEY)
    with jax.enable_x64(True):
        # the weights of init are float32 by their literals only where x64 is off
        exact = evaluate(problem, {k: jnp.asarray(v, float) for k, v in h.items()}, key=KEY, method=Unrolled())
    assert ours.diagnostics["exact"] is True
    assert ours.gradient is not None
    assert set(ours.gradient) == set(h)
    assert all(ours.gradient[setting].shape == np.shape(value) for setting, value in h.items())
    errors = relative_errors(ours, exact)
    if max(errors.values()) > 1e-5:  # where float32 itself is off, it must not be much better
        plain = relative_errors(evaluate(problem, h, key=KEY, method=Unrolled()), exact)
        assert all(error <= max(5 * plain[setting], 1e-5) for setting, error in errors.items()), (errors, plain)


def relative_errors(found: Evaluation, exact: Evaluation) -> dict[str, float]:
    assert found.gradient is not None
    assert exact.gradient is not None
    return {
        setting: float(np.linalg.norm(found.gradient[setting] - slope) / np.linalg.norm(slope))
        for setting, slope in exact.gradient.items()
    }


def test_nesterov_is_refused_where_it_cannot_be_reversed() -> None:
    problem = quadratic(sgd(0.1, 0.9, nesterov=True))
    with pytest.raises(ValueError, match=r"nesterov=True\) loses bits .*; use method=Unrolled\(\)"):
        evaluate(problem, {}, key=KEY)
    with pytest.raises(ValueError, match=r"nesterov=True\) loses bits"):
        train(problem, {}, KEY)
    assert np.isfinite(evaluate(problem, {}, key=KEY, method=Unrolled()).value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"b1": 0.0}, "b1 must be from"),
        ({"b2": 1.2}, "b2 must be from"),
        ({"weight_decay": 200.0}, r"1 - learning_rate \* weight_decay must be from"),
        ({"weight_decay": -1.0}, r"1 - learning_rate \* weight_decay must be from"),
    ],
)
def test_decays_that_cannot_be_reversed_are_refused(settings: dict[str, Any], message: str) -> None:
    problem = quadratic(adamw(0.01, **settings))
    with pytest.raises(ValueError, match=message):
        evaluate(problem, {}, key=KEY)
    with pytest.raises(ValueError, match=r"train: the decay of (mu|nu|weights) must be from"):
        train(problem, {}, KEY)


@pytest.mark.parametrize(("name", "decay"), [("velocty", 0.5), ("velocity", 0.0), ("velocity", 1.5)])
def test_smallest_decays_are_checked(name: str, decay: float) -> None:
    with pytest.raises(ValueError, match=f"train: smallest_decays: '?{name}'? "):
        train(quadratic(sgd(0.1, 0.9)), {}, KEY, smallest_decays={name: decay})


def test_settings_of_the_wrong_kind_are_named() -> None:
    with pytest.raises(ValueError, match="adam: b2 must be numbers, names"):
        adam(0.1, b2=None)
    with pytest.raises(ValueError, match="adamw: weight_decay must be numbers, names"):
        adamw(0.1, weight_decay=b"x")
