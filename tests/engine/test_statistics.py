"""Statistics that training carries along: batch normalisation of three libraries, and what they may depend on."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hypergrad_search import (
    Evaluation,
    Float,
    Fold,
    Hypernet,
    Int,
    Method,
    Reversible,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hypergradient import Diagonal, Joint, Linear
from hypergrad_search.hyperparameters import split
from hypergrad_search.training import exact, train_in_floats

KEY = jax.random.key(0)
STEPS = 40
H = {"rate": 0.05, "l2": 0.01, "scale": 0.8, "noise": 0.3}
DRAW = np.random.default_rng(0)
X = DRAW.normal(1.0, 2.0, (60, 4)).astype(np.float32)
Y = np.sin(X @ np.array([1.0, -0.5, 0.3, 0.1], np.float32))


@pytest.fixture(scope="module", autouse=True)
def _strict_promotion() -> None:
    """Allow what the libraries do: they combine arrays of different ranks and types."""


def data() -> tuple[jax.Array, jax.Array]:
    """Return the data in JAX's own type, which is float64 where a test enables it."""
    return jnp.asarray(X, float), jnp.asarray(Y, float)


def rows(step: jax.Array) -> jax.Array:
    return (jnp.arange(12, dtype=jnp.int32) + 12 * step) % 48


@dataclass(frozen=True)
class Model:
    """What a library does: `start` returns parameters and statistics, `apply` outputs and new statistics.

    `recorded` tells how many of the statistics the way back reads.
    """

    start: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[[Any, Any, jax.Array, bool], tuple[jax.Array, Any]]
    recorded: int


def plain(params: dict[str, Any], statistics: dict[str, Any], x: jax.Array, training: bool) -> Any:
    hidden = x @ params["w"]
    if training:
        mean, var = hidden.mean(0), hidden.var(0)
        kept = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, statistics["kept"], (mean, var))
        statistics = {"kept": kept, "count": statistics["count"] + 1}
    else:
        mean, var = statistics["kept"]
    return jnp.tanh((hidden - mean) / jnp.sqrt(var + 1e-3)) @ params["v"], statistics


def plain_start(key: jax.Array) -> Any:
    params = {"w": jax.random.normal(key, (4, 5)), "v": jnp.linspace(-1.0, 1.0, 5)}
    return params, {"kept": (jnp.zeros(5), jnp.ones(5)), "count": jnp.int32(0)}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not training, momentum=0.8)(nn.Dense(5)(x))
        return nn.Dense(1)(nn.tanh(x))[:, 0]


def linen_start(key: jax.Array) -> Any:
    variables = Linen().init(key, data()[0][:2], training=False)
    return variables["params"], variables["batch_stats"]


def linen(params: Any, statistics: Any, x: jax.Array, training: bool) -> Any:
    variables = {"params": params, "batch_stats": statistics}
    out, new = Linen().apply(variables, x, training=training, mutable=["batch_stats"])
    return out, new["batch_stats"]


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.tanh(self.norm(self.first(x))))[:, 0]


GRAPHDEF = nnx.graphdef(Nnx(nnx.Rngs(0)))


def nnx_start(key: jax.Array) -> Any:
    model = Nnx(nnx.Rngs(key))
    return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)


def flax_nnx(params: Any, statistics: Any, x: jax.Array, training: bool) -> Any:
    model = nnx.merge(GRAPHDEF, params, statistics)
    model.set_attributes(use_running_average=not training)
    return model(x), nnx.state(model, nnx.BatchStat)


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    second: eqx.nn.Linear

    def __init__(self, mode: str, key: jax.Array) -> None:
        one, two = jax.random.split(key)
        self.first, self.second = eqx.nn.Linear(4, 5, key=one), eqx.nn.Linear(5, "scalar", key=two)
        self.norm = eqx.nn.BatchNorm(5, "batch", momentum=0.8, mode=mode)  # type: ignore[arg-type]  # it is a Literal

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.first(x), state)
        return self.second(jnp.tanh(x)), state


def equinox_model(mode: str, recorded: int) -> Model:
    _, static = eqx.partition(eqx.nn.make_with_state(Equinox)(mode, KEY)[0], eqx.is_inexact_array)

    def start(key: jax.Array) -> Any:
        model, state = eqx.nn.make_with_state(Equinox)(mode, key)
        if mode == "ema":  # Equinox leaves them uninitialised
            state = jax.tree.map(lambda x: jnp.zeros_like(x) if x.dtype != bool else x, state)
        return eqx.filter(model, eqx.is_inexact_array), state

    def apply(params: Any, state: Any, x: jax.Array, training: bool) -> Any:
        model = eqx.nn.inference_mode(eqx.combine(params, static), not training)
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    return Model(start, apply, recorded)


MODELS = {
    "plain": Model(plain_start, plain, 0),
    "linen": Model(linen_start, linen, 0),
    "nnx": Model(nnx_start, flax_nnx, 0),
    "equinox batch": equinox_model("batch", 0),
    "equinox ema": equinox_model("ema", 3),  # training normalises by what it keeps
}


def problem(model: Model, **changes: Any) -> TrainingProblem:
    # Drawn once, in float32, so that float64 begins with the same numbers.
    drawn: Any = jax.tree.map(np.asarray, model.start(KEY))

    def init(key: jax.Array, h: Any) -> Any:
        params, statistics = drawn
        params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
        kept = jax.tree.map(lambda x: x if x.dtype in (bool, jnp.int32) else jnp.asarray(x, float), statistics)
        return jax.tree.map(lambda x: h["scale"] * x, params), kept

    def train_loss(params: Any, statistics: Any, h: Any, batch: jax.Array, key: jax.Array) -> Any:
        x, y = data()
        noisy = x[batch] + h["noise"] * jax.random.normal(key, (12, 4), jnp.float32).astype(x.dtype)
        out, statistics = model.apply(params, statistics, noisy, True)
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean((out - y[batch]) ** 2) + h["l2"] * penalty, statistics

    def valid_loss(params: Any, statistics: Any, h: Any) -> jax.Array:
        x, y = data()
        out, _ = model.apply(params, statistics, x[48:], False)
        return (out - y[48:]) ** 2

    parts = {
        "init": init,
        "train_loss": train_loss,
        "valid_loss": valid_loss,
        "batches": rows,
        "optimizer": sgd("rate", 0.8),
        "steps": STEPS,
    }
    return TrainingProblem(**{**parts, **changes})


PROBLEMS = {name: problem(model) for name, model in MODELS.items()}


@functools.cache
def of_model(name: str) -> tuple[float, dict[str, Any]]:
    return in_float64(PROBLEMS[name], H)


def in_float64(run: TrainingProblem, h: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the validation loss and its gradient, from plain unrolling in float64."""
    with jax.enable_x64(True):
        result = evaluate(run, h, key=KEY, method=Unrolled())
        assert result.gradient is not None
        return result.value, result.gradient


def assert_close(found: Evaluation, value: float, gradient: dict[str, Any], tolerance: float = 2e-4) -> None:
    assert found.status == Status.OK
    assert found.value == pytest.approx(value, rel=tolerance)
    assert found.gradient is not None
    for name, wanted in gradient.items():
        np.testing.assert_allclose(found.gradient[name], wanted, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("method", [Reversible(), Unrolled(), Unrolled(checkpoints=5)], ids=str)
@pytest.mark.parametrize("name", [n if n == "plain" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_batch_normalisation_has_the_gradient_of_float64(name: str, method: Method) -> None:
    found = evaluate(PROBLEMS[name], H, key=KEY, method=method)
    assert found.diagnostics["exact"] in (None, True)
    assert_close(found, *of_model(name))


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back_keeps_no_more_statistics_than_it_reads(name: str) -> None:
    dynamic, static = split(H)
    assert len(exact.bind(PROBLEMS[name], static, dynamic, {}).recorded) == MODELS[name].recorded


@pytest.mark.parametrize("name", ["plain", pytest.param("equinox batch", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_train_returns_statistics_and_its_gradient_is_that_of_evaluate(name: str) -> None:
    run = PROBLEMS[name]

    def loss(h: dict[str, Any]) -> tuple[jax.Array, Any]:
        params, statistics = train(run, h, KEY)
        return jnp.mean(run.valid_loss(params, statistics, h)), (params, statistics)

    (value, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(H)
    found = evaluate(run, H, key=KEY)
    assert found.value == pytest.approx(float(value), rel=1e-6)
    assert_close(found, float(value), gradient, 1e-4)
    plain_floats = train_in_floats(run, H, KEY)
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(np.shape, x) for x in (ours, plain_floats)))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(plain_floats), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_runs_with_statistics_can_be_batched() -> None:
    run = PROBLEMS["plain"]

    def loss(rate: jax.Array) -> jax.Array:
        params, statistics = train(run, {**H, "rate": rate}, KEY)
        return jnp.mean(run.valid_loss(params, statistics, H))

    rates = jnp.array([0.02, 0.05])
    batched = jax.vmap(jax.value_and_grad(loss))(rates)
    for i, rate in enumerate(rates):
        value, slope = jax.value_and_grad(loss)(rate)
        np.testing.assert_allclose([batched[0][i], batched[1][i]], [value, slope], rtol=1e-4)


def averaged(momentum: Callable[[Any], Any], start: Callable[[Any], Any], **changes: Any) -> TrainingProblem:
    """Return a problem whose statistic is an average of its weights, which decays by a hyperparameter."""

    def train_loss(w: jax.Array, mean: jax.Array, h: Any, batch: Any, key: jax.Array) -> Any:
        share = momentum(h)
        return jnp.sum((w - h["target"]) ** 2), share * mean + (1 - share) * w

    parts: dict[str, Any] = {
        "init": lambda key, h: (jnp.linspace(0.0, 1.0, 3), start(h) * jnp.ones(3)),
        "train_loss": train_loss,
        "valid_loss": lambda w, mean, h: jnp.sum((mean - 0.3) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd(0.05, 0.5),
        "steps": 30,
    }
    return TrainingProblem(**{**parts, **changes})


@pytest.mark.parametrize("method", [Reversible(), Unrolled()], ids=str)
def test_how_statistics_decay_and_start_may_be_tuned(method: Method) -> None:
    run = averaged(lambda h: h["momentum"], lambda h: h["start"])
    h = {"target": 0.7, "momentum": 0.9, "start": 0.2}
    found = evaluate(run, h, key=KEY, method=method)
    assert_close(found, *in_float64(run, h))
    assert float(found.gradient["momentum"]) != 0  # type: ignore[index]  # it was just compared
    dynamic, static = split(h)
    assert exact.bind(run, static, dynamic, {}).recorded == (0,)


def test_a_truncated_gradient_leaves_out_earlier_statistics() -> None:
    run = averaged(lambda h: 0.9, lambda h: h["start"])
    h = {"target": 0.7, "start": 0.2}
    whole, last = (evaluate(run, h, key=KEY, method=Reversible(last=n)).gradient for n in (30, 5))
    assert whole is not None
    assert last is not None
    assert float(last["start"]) == 0
    assert 0 < abs(float(last["target"])) < abs(float(whole["target"]))


@pytest.mark.slow
def test_everything_else_works_with_statistics() -> None:
    run = problem(MODELS["equinox ema"], test_loss=PROBLEMS["equinox ema"].valid_loss)
    seen: list[float] = []
    found = evaluate(
        run, H, key=KEY, fold=Fold(1, 3), report=lambda now: seen.append(now.loss), report_every=STEPS // 2
    )
    assert found.test_loss == found.value
    assert found.held_back is not None
    assert len(found.held_back) == 3
    assert len(seen) == 1
    params, statistics = Reversible().params(run, H, key=KEY)
    assert float(jnp.mean(run.valid_loss(params, statistics, H))) == pytest.approx(found.value, rel=1e-6)
    params, statistics = Unrolled().params(run, H, key=KEY)
    assert float(jnp.mean(run.valid_loss(params, statistics, H))) == pytest.approx(found.value, rel=1e-3)


def test_a_gradient_compiled_by_itself_has_the_same_statistics() -> None:
    run = PROBLEMS["equinox ema"]
    dynamic, static = split(H)
    values = []
    for isolated in (False, True):
        program = exact.bind(run, static, dynamic, {}, isolated=isolated)
        params, statistics, settings, _ = exact.prepare(run, static, dynamic, KEY)
        schedule, _ = exact.plan_schedule(program.optimizer, settings, STEPS)
        inputs = exact.Inputs(dynamic, KEY, schedule, statistics)
        state = exact.start(program, program.layout.pack(params), statistics)
        state = jax.jit(lambda s, p=program, i=inputs: exact.run_forward(p, i, s, 8, early=True))(state)
        values.append((state.statistics, state.record))
    for x, y in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [1e3, math.nan])
def test_failed_training_has_a_status(rate: float) -> None:
    found = evaluate(PROBLEMS["plain"], {**H, "rate": rate, "l2": 1.0}, key=KEY)
    assert found.status in (Status.OVERFLOW, Status.NAN)
    assert found.value == math.inf


def test_infinite_statistics_have_a_status() -> None:
    run = averaged(lambda h: 3e38, lambda h: 1.0)
    for method in (Reversible(), Unrolled()):
        assert evaluate(run, {"target": 0.7}, key=KEY, method=method).status in (Status.NAN, Status.DIVERGED)


# Hypernetworks


def normalised(**changes: Any) -> TrainingProblem:
    """Return a problem that is solved by hand: the weights go to `target`, and the statistic to their double."""

    def train_loss(w: jax.Array, kept: jax.Array, h: Any, batch: Any, key: jax.Array) -> Any:
        return jnp.sum((w - h["target"]) ** 2), 0.9 * kept + 0.1 * (2 * w)

    parts: dict[str, Any] = {
        "init": lambda key, h: (jnp.zeros(2), jnp.zeros(2)),
        "train_loss": train_loss,
        "valid_loss": lambda w, kept, h: jnp.sum((kept - jnp.array([0.8, 1.2])) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd(0.05, 0.5),
        "steps": 1500,
    }
    return TrainingProblem(**{**parts, **changes})


BOX: Space = {"target": Float(0.0, 1.0, shape=(2,))}


RATES: dict[str, Any] = {"optimizer": optax.adam(1e-2), "hyper_optimizer": optax.adam(1e-3)}


@pytest.mark.parametrize(
    "method",
    [Hypernet(network=Diagonal(), **RATES), Hypernet(network=Linear(), algorithm=Joint(centred=False), **RATES)],
)
def test_hypernetworks_follow_statistics_to_where_they_settle(method: Hypernet) -> None:
    run = normalised()
    found = evaluate(run, {"target": np.array([0.9, 0.1])}, key=KEY, method=method, space=BOX)
    assert found.refined is not None
    np.testing.assert_allclose(found.refined["target"], [0.4, 0.6], atol=5e-3)
    assert found.value < 5e-3
    again = evaluate(run, found.refined, key=KEY, method=method, space=BOX, checkpoint=found.checkpoint)
    assert again.value < 5e-3
    _, kept = method.params(run, found.refined, key=KEY, space=BOX, checkpoint=found.checkpoint)
    assert float(jnp.sum((kept - jnp.array([0.8, 1.2])) ** 2)) == pytest.approx(found.value, abs=1e-6)


@pytest.mark.slow
def test_hypernetworks_tune_a_network_with_batch_normalisation() -> None:
    run = problem(MODELS["nnx"], steps=300)
    space: Space = {"l2": Float(1e-4, 1.0, log=True)}
    start, end = ({**H, "l2": l2} for l2 in (0.5, 1.0))
    slope = evaluate(run, start, key=KEY).gradient
    assert slope is not None
    assert slope["l2"] < 0  # so the largest penalty is the best one nearby
    method = Hypernet(network=Linear(), optimizer=optax.adam(1e-2), finetune=5)
    found = evaluate(run, start, key=KEY, method=method, space=space)
    assert found.refined is not None
    assert found.refined["l2"] == pytest.approx(1.0)
    assert found.value == pytest.approx(evaluate(run, end, key=KEY).value, rel=0.02)


def test_hypernetworks_charge_for_the_slope_of_statistics() -> None:
    assert Hypernet().cost(normalised(), 10) == 50
    plainly = TrainingProblem(
        lambda key, h: jnp.zeros(2), lambda w, h, b, k: jnp.sum(w**2), lambda w, h: jnp.sum(w), rows, sgd(0.1, 0.5), 10
    )
    assert Hypernet().cost(plainly, 10) == 40


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": lambda key, h: jnp.zeros(2)}, r"init must return a pair \(params, statistics\)"),
        ({"init": lambda key, h: (jnp.zeros(2), "none")}, "init: statistics must be an array, got 'none'"),
        ({"train_loss": lambda w, s, h, b, k: jnp.sum(w)}, r"train_loss must return a pair \(scalar, statistics\)"),
        ({"train_loss": lambda w, s, h, b, k: (jnp.sum(w), (s, s))}, "train_loss: the statistics were .*, and are"),
        (
            {"train_loss": lambda w, s, h, b, k: (jnp.sum(w), s[:1])},
            r"statistics had shape \(2,\) .* have shape \(1,\)",
        ),
        ({"train_loss": lambda w, s, h, b, k: (jnp.sum(w), s > 0)}, "dtype float32, .* and dtype bool after a step"),
    ],
)
@pytest.mark.parametrize("method", [Reversible(), Unrolled()], ids=str)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str, method: Method) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(normalised(**changes), {"target": jnp.zeros(2)}, key=KEY, method=method)
    assert "\n" not in str(caught.value)


def test_outer_losses_must_take_statistics_too() -> None:
    with pytest.raises(ValueError, match=r"valid_loss must take \(params, statistics, hyperparameters\)"):
        normalised(valid_loss=lambda w, h: jnp.sum(w))


# Batches and steps that depend on hyperparameters


@pytest.mark.slow
def test_batches_may_depend_on_hyperparameters() -> None:
    def batches(step: jax.Array, h: Any) -> tuple[jax.Array, jax.Array]:
        x, y = data()
        noise = jax.random.normal(jax.random.fold_in(KEY, step), (h["size"], 4), jnp.float32)
        some = (jnp.arange(h["size"], dtype=jnp.int32) + h["size"] * step) % 48
        return x[some] + h["noise"] * noise.astype(x.dtype), y[some]

    run = TrainingProblem(
        init=lambda key, h: jnp.zeros(4),
        train_loss=lambda w, h, batch, key: jnp.mean((batch[0] @ w - batch[1]) ** 2),
        valid_loss=lambda w, h: (data()[0][48:] @ w - data()[1][48:]) ** 2,
        batches=batches,
        optimizer=sgd("rate", 0.8),
        steps=STEPS,
    )
    space: Space = {"rate": Float(1e-3, 1.0), "noise": Float(0.0, 1.0), "size": Int(1, 48)}
    methods: list[Method] = [Reversible(), Unrolled()]
    values = set()
    for size in (6, 24):
        h = {"rate": 0.01, "noise": 0.4, "size": size}
        with jax.enable_x64(True):
            wanted = evaluate(run, h, key=KEY, method=Unrolled(), space=space)
        assert wanted.gradient is not None
        assert float(wanted.gradient["noise"]) != 0
        for method in methods:
            assert_close(evaluate(run, h, key=KEY, method=method, space=space), wanted.value, wanted.gradient)
        values.add(wanted.value)
    assert len(values) == 2


def test_a_default_of_batches_is_no_hyperparameter() -> None:
    table = jnp.arange(3)
    run = normalised(batches=lambda step, table=table: table[step % 3])
    assert evaluate(run, {"target": jnp.zeros(2)}, key=KEY).status == Status.OK


@pytest.mark.parametrize("method", [pytest.param(Reversible(), marks=pytest.mark.slow), Unrolled()], ids=str)
def test_steps_may_be_a_hyperparameter(method: Method) -> None:
    run = averaged(lambda h: 0.9, lambda h: 0.0, steps="epochs")
    space: Space = {"target": Float(0.0, 1.0), "epochs": Int(1, 100)}
    for steps in (7, 30):
        found = evaluate(run, {"target": 0.7, "epochs": steps}, key=KEY, method=method, space=space)
        fixed = evaluate(averaged(lambda h: 0.9, lambda h: 0.0, steps=steps), {"target": 0.7}, key=KEY, method=method)
        assert found.value == fixed.value
        assert found.gradient is not None
        assert fixed.gradient is not None
        assert found.gradient.keys() == {"target"}
        assert float(found.gradient["target"]) == float(fixed.gradient["target"])
        assert found.diagnostics["steps"] == steps
        assert found.cost.gradient_evaluations == fixed.cost.gradient_evaluations
        ours = method.params(run, {"target": 0.7, "epochs": steps}, key=KEY, space=space)
        assert float(jnp.sum((ours[1] - 0.3) ** 2)) == pytest.approx(found.value, rel=1e-6)
    assert run.at({"epochs": 7}) is run.at({"epochs": np.int64(7)})


@pytest.mark.parametrize(
    ("h", "message"),
    [
        ({}, "steps names the hyperparameter 'epochs', which is not among"),
        ({"epochs": 0}, "hyperparameter 'epochs', the number of steps, must be a whole number from 1, got 0"),
        ({"epochs": 2.5}, "hyperparameter 'epochs', the number of steps, must be a whole number from 1, got 2.5"),
    ],
)
def test_steps_that_are_no_number_are_named(h: dict[str, Any], message: str) -> None:
    run = averaged(lambda h: 0.9, lambda h: 0.0, steps="epochs")
    with pytest.raises(ValueError, match=message):
        evaluate(run, {"target": 0.7, **h}, key=KEY)
