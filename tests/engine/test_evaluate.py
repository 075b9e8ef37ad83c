"""What an evaluation returns, how failures are named, and what it refuses."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Categorical,
    Evaluation,
    InexactReversalError,
    Int,
    Method,
    Reversible,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    adam,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hypergradient import Progress

KEY = jax.random.key(0)


def quadratic(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.full((4,), h["scale"]),
        "train_loss": lambda p, h, batch, key: jnp.sum((p - 1) ** 2),
        "valid_loss": lambda p, h: jnp.sum((p - 1) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", "momentum"),
        "steps": 30,
    }
    return TrainingProblem(**{**parts, **changes})


def slopes(evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.gradient is not None
    return evaluation.gradient


H = {"scale": 0.1, "rate": 0.05, "momentum": 0.5}
PLAIN = quadratic(test_loss=lambda p, h: jnp.sum(p))  # shared, so that it compiles once
each_method = pytest.mark.parametrize("method", [Reversible(), Unrolled()])


@each_method
def test_a_full_evaluation(method: Method) -> None:
    result = evaluate(PLAIN, H, method=method, key=KEY)
    assert result.status == Status.OK
    assert set(slopes(result)) == set(H)
    assert result.usable_gradient is result.gradient
    assert result.cost.gradient_evaluations == 4 * 30
    assert result.test_loss == pytest.approx(4, abs=0.1)
    assert result.message == ""
    assert result.refined is None
    assert result.checkpoint is None
    assert (result.standard_error, result.test_standard_error) == (None, None)
    assert (result.held_back, result.held_back_errors) == (None, None)


@each_method
def test_a_gradient_that_is_not_wanted_costs_nothing(method: Method) -> None:
    result = evaluate(PLAIN, H, method=method, key=KEY, gradient_below=0.0)
    assert result.gradient is None
    assert result.cost.gradient_evaluations == 30
    assert result.status == Status.OK


def test_lazy_and_eager_gradients_are_the_same() -> None:
    eager = evaluate(PLAIN, H, key=KEY)
    lazy = evaluate(PLAIN, H, key=KEY, gradient_below=eager.value + 1)
    assert lazy.gradient == eager.gradient
    assert lazy.cost.gradient_evaluations == eager.cost.gradient_evaluations


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"rate": 1e4}, Status.OVERFLOW),
        ({"rate": math.nan}, Status.NAN),
        ({"scale": 1e6}, Status.OVERFLOW),
        ({"scale": math.nan}, Status.NAN),
    ],
)
def test_failures_are_statuses(change: dict[str, float], status: Status) -> None:
    result = evaluate(PLAIN, {**H, **change}, key=KEY)
    assert result.value == math.inf
    assert result.status == status
    assert result.gradient is None
    assert result.message
    assert result.cost.gradient_evaluations <= 30


HEIGHT = quadratic(
    train_loss=lambda p, h, batch, key: h["height"] * jnp.sum((p - 1) ** 2), valid_loss=lambda p, h: 0.0 * jnp.sum(p)
)
LEAVES = quadratic(
    init=lambda key, h: {"a": jnp.zeros(4), "b": jnp.zeros(2)},
    train_loss=lambda p, h, batch, key: jnp.sum(p["a"] ** 2) + h["height"] * jnp.sum(p["b"]),
    valid_loss=lambda p, h: 0.0 * jnp.sum(p["a"]),
)


@pytest.mark.parametrize(
    ("problem", "change", "message"),
    [
        (HEIGHT, {"rate": 1e4}, r"weights of params left the range of \+-8192 at step \d+; lower .*{'weights': 44}\)"),
        (
            HEIGHT,
            {"rate": 1e-9, "height": 1e6},
            r"velocity of params left the range of \+-\d+ at step 1; .*fraction_bits={'velocity': 40}\)",
        ),
        (HEIGHT, {"height": math.nan}, "NaN in the update of params at step 1; more: python -m hypergrad_search nan$"),
        (
            HEIGHT,
            {"rate": math.nan},
            "at step 1, and none in its gradient: .* learning_rate nan, momentum 0.5 there; "
            "more: python -m hypergrad_search nan$",
        ),
        (HEIGHT, {"scale": 1e6}, "weights of params left the range of .* at the start"),
        (HEIGHT, {"scale": math.nan}, "NaN in the update of params at the start"),
        (LEAVES, {"height": math.inf}, r"velocity of params\['b'\] left the range"),
    ],
)
def test_a_failure_names_the_leaf_the_step_and_the_setting(
    problem: TrainingProblem, change: dict[str, float], message: str
) -> None:
    result = evaluate(problem, {**H, "height": 1.0, **change}, key=KEY)
    assert re.search(message, result.message), result.message
    assert "\n" not in result.message


def test_a_wider_range_is_what_the_message_says() -> None:
    problem = quadratic(train_loss=lambda p, h, b, k: 1e4 * jnp.sum(p - 1), valid_loss=lambda p, h: jnp.sum(p**2))
    h = {**H, "rate": 1e-6, "momentum": 0.99}
    assert evaluate(problem, h, key=KEY).status == Status.OVERFLOW
    wider = evaluate(problem, h, key=KEY, method=Reversible(fraction_bits={"velocity": 36}))
    assert wider.status == Status.OK
    assert wider.diagnostics["exact"] is True


def test_an_infinite_validation_loss_is_divergence() -> None:
    result = evaluate(quadratic(valid_loss=lambda p, h: jnp.sum(p) / 0.0), H, key=KEY)
    assert (result.value, result.status) == (math.inf, Status.DIVERGED)
    result = evaluate(quadratic(valid_loss=lambda p, h: jnp.sum(p) * jnp.nan), H, key=KEY)
    assert (result.value, result.status) == (math.inf, Status.NAN)


def test_an_exploded_gradient_is_dropped_but_the_value_stays() -> None:
    # the square root has an infinite slope where the weights end, at 0
    problem = quadratic(
        init=lambda key, h: jnp.zeros(2) * h["scale"],
        train_loss=lambda p, h, batch, key: jnp.sum(p**2),
        valid_loss=lambda p, h: jnp.sum(jnp.sqrt(jnp.abs(p))),
    )
    result = evaluate(problem, H, key=KEY)
    assert (result.value, result.status, result.gradient) == (0.0, Status.EXPLODED, None)
    assert "useless: it is not finite" in result.message
    unrolled = evaluate(problem, H, key=KEY, method=Unrolled())
    assert (unrolled.value, unrolled.status, unrolled.gradient) == (0.0, Status.EXPLODED, None)


def test_chaos_is_seen_on_the_way_back() -> None:
    """The logistic map as training, `p <- 4 p (1 - p)`: each step doubles a difference, on average."""
    problem = quadratic(
        init=lambda key, h: jnp.full((2,), h["scale"]) * jnp.array([1.0, 0.7]),
        train_loss=lambda p, h, b, key: jnp.sum(4 * p**3 / 3 - 3 * p**2 / 2),
        valid_loss=lambda p, h: jnp.sum(p),
        optimizer=sgd("rate", 0.004),
        steps=40,
    )
    chaotic = evaluate(problem, {"scale": 0.3, "rate": 1.0}, key=KEY)
    norms = chaotic.diagnostics["adjoint_norms"]
    assert len(norms) == 41
    assert norms[-1] == pytest.approx(math.sqrt(2))
    assert max(norms) > 1e6
    assert chaotic.status == Status.EXPLODED
    assert chaotic.gradient is not None
    assert chaotic.usable_gradient is None
    assert "grew by a factor of" in chaotic.message
    assert math.isfinite(chaotic.value)
    calm = evaluate(problem, {"scale": 0.3, "rate": 0.2}, key=KEY)
    assert calm.status == Status.OK
    assert max(calm.diagnostics["adjoint_norms"]) < 10


def test_overflow_poisons_train() -> None:
    assert np.isnan(train(PLAIN, {**H, "rate": 1e4}, KEY)).all()


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, math.nan])
def test_momentum_that_cannot_be_reversed_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum must be .*use method=Unrolled\(\)"):
        evaluate(PLAIN, {**H, "momentum": momentum}, key=KEY)


def test_unrolled_takes_momentum_0() -> None:
    result = evaluate(PLAIN, {**H, "momentum": 0.0}, key=KEY, method=Unrolled())
    assert result.status == Status.OK
    assert np.isfinite(slopes(result)["momentum"])


def test_a_mismatch_raises_or_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypergrad_search.hypergradient import reversible

    monkeypatch.setattr(reversible, "_is_start", lambda program, state, initial: False)
    problem = quadratic()
    with pytest.raises(InexactReversalError, match="did not end at its initial state"):
        evaluate(problem, H, key=KEY)
    result = evaluate(problem, H, key=KEY, method=Reversible(fallback=Unrolled()))
    expected = evaluate(problem, H, key=KEY, method=Unrolled())
    assert result.gradient == expected.gradient
    # what the failed reversal cost is not forgotten; the second time, the problem is known for it
    assert result.cost.gradient_evaluations == 5 * 30 + expected.cost.gradient_evaluations
    assert result.diagnostics["exact"] is False


@pytest.mark.slow
def test_a_gradient_that_is_compiled_differently_is_compiled_by_itself() -> None:
    """XLA rounds a layer normalisation's gradient differently in the two directions, beside Adam's step."""
    rng = np.random.default_rng(1)
    x, into, out = (rng.normal(size=shape).astype(np.float32) for shape in ((100, 16), (16, 32), (32, 10)))

    def outputs(p: dict[str, jax.Array]) -> jax.Array:
        hidden = x @ p["w"] + p["b"][None, :]
        centred = hidden - jnp.mean(hidden, axis=1, keepdims=True)
        variance = jnp.maximum(0.0, jnp.mean(hidden**2, axis=1) - jnp.mean(hidden, axis=1) ** 2)
        return jnp.tanh(centred * jax.lax.rsqrt(variance + 1e-6)[:, None] * p["scale"][None, :]) @ p["out"]

    problem = TrainingProblem(
        init=lambda key, h: {
            "w": jnp.asarray(0.3 * into),
            "b": jnp.zeros(32),
            "scale": jnp.ones(32),
            "out": jnp.asarray(0.3 * out),
        },
        train_loss=lambda p, h, batch, key: jnp.mean((outputs(p) - jnp.sin(x[:, :10])) ** 2),
        valid_loss=lambda p, h: jnp.mean(outputs(p) ** 2),
        batches=lambda step: None,
        optimizer=adam("rate", eps=1e-3),
        steps=100,
    )
    result = evaluate(problem, {"rate": 0.01}, key=KEY)
    again = evaluate(problem, {"rate": 0.01}, key=KEY)
    assert result.diagnostics["exact"] is True
    assert again.gradient == result.gradient
    reference = evaluate(problem, {"rate": 0.01}, key=KEY, method=Unrolled())
    assert slopes(result)["rate"] == pytest.approx(slopes(reference)["rate"], rel=1e-3)


def test_reports_come_in_between_and_may_end_the_evaluation() -> None:
    seen: list[int] = []
    with_reports = evaluate(PLAIN, H, key=KEY, report=lambda now: seen.append(now.step), report_every=8)
    assert seen == [8, 16, 24]
    assert with_reports.gradient == evaluate(PLAIN, H, key=KEY).gradient

    class Enough(Exception):
        pass

    def stop(now: Progress) -> None:
        raise Enough

    with pytest.raises(Enough):
        evaluate(PLAIN, H, key=KEY, report=stop, report_every=8)


def test_integers_and_categoricals_shape_the_model() -> None:
    problem = quadratic(init=lambda key, h: jnp.full((h["width"],), h["scale"] if h["kind"] == "ones" else 0.0))
    for width in (2, 5):
        space: Space = {"width": Int(1, 5), "kind": Categorical(["ones", "zeros"])}
        result = evaluate(problem, {**H, "width": width, "kind": "ones"}, key=KEY, space=space)
        assert result.value == pytest.approx(evaluate(PLAIN, H, key=KEY).value * width / 4, rel=1e-4)
        assert set(slopes(result)) == set(H)


def test_data_is_a_hyperparameter_like_any_other() -> None:
    problem = quadratic(train_loss=lambda p, h, batch, key: jnp.sum((p - h["data"]) ** 2))
    h = {**H, "data": np.linspace(0, 1, 4)}
    result = evaluate(problem, h, key=KEY)
    numeric = []
    for i in range(4):
        sides = []
        for sign in (1, -1):
            data = h["data"] + sign * 1e-2 * np.eye(4)[i]
            sides.append(evaluate(problem, {**h, "data": data}, key=KEY, gradient_below=-math.inf).value)
        numeric.append((sides[0] - sides[1]) / 2e-2)
    np.testing.assert_allclose(slopes(result)["data"], numeric, rtol=1e-3, atol=1e-4)


def test_each_step_has_its_own_key() -> None:
    """Noise in the training loss is replayed exactly in reverse, and differs from step to step."""
    problem = quadratic(train_loss=lambda p, h, b, key: jnp.sum((p - jax.random.normal(key, p.shape)) ** 2))
    exact = evaluate(problem, H, key=KEY)
    plain = evaluate(problem, H, key=KEY, method=Unrolled())
    assert exact.diagnostics["exact"] is True
    assert exact.value == pytest.approx(plain.value, rel=1e-5)
    assert exact.value != evaluate(problem, H, key=jax.random.key(1)).value


def test_dropout_is_replayed_exactly() -> None:
    def train_loss(p: jax.Array, h: Any, batch: Any, key: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(key, 0.5, p.shape)
        return jnp.sum(jnp.where(kept, jnp.tanh(3 * p) - h["target"], 0.0) ** 2)

    problem = quadratic(train_loss=train_loss, init=lambda key, h: jnp.full((50,), h["scale"]), steps=200)
    h = {**H, "target": 0.3}
    exact = evaluate(problem, h, key=KEY)
    plain = evaluate(problem, h, key=KEY, method=Unrolled())
    assert exact.diagnostics["exact"] is True
    for name in h:
        assert slopes(exact)[name] == pytest.approx(slopes(plain)[name], rel=2e-3, abs=1e-6)


def test_a_second_evaluation_does_not_compile_again() -> None:
    evaluate(PLAIN, H, key=KEY)
    # These convert a seed and a numpy number, and copy nothing for a way back; each takes a small program once.
    evaluate(PLAIN, {**H, "momentum": np.float32(0.5)}, key=jax.random.key(2), gradient_below=-math.inf)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)  # older versions of JAX cannot take it back
    for momentum in (0.02, 0.6, 0.999, np.float32(0.9)):  # from many planes to none
        evaluate(PLAIN, {**H, "rate": 0.01, "momentum": momentum}, key=jax.random.key(3))
        evaluate(PLAIN, {**H, "momentum": momentum}, key=KEY, gradient_below=-math.inf)
    assert not compiled
    evaluate(quadratic(), H, key=KEY)
    assert compiled  # the listener hears


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_loss": lambda p, h, b, k: p},
            r"train_loss must return a floating-point scalar, got shape \(4,\)",
        ),
        (
            {"valid_loss": lambda p, h: p[None]},
            r"valid_loss must return a floating-point scalar or one loss for each example, .*got shape \(1, 4\)",
        ),
        ({"valid_loss": lambda p, h: p[:0]}, r"valid_loss must return .*, got shape \(0,\)"),
        (
            {"valid_loss": lambda p, h: jnp.int32(p[0])},
            r"valid_loss must return .* got shape \(\) and dtype int32; return a smooth loss",
        ),
        (
            {"valid_loss": lambda p, h: (p, p)},
            r"valid_loss must return a floating-point scalar or .* alone, got PyTreeDef\(\(\*, \*\)\)",
        ),
        ({"test_loss": lambda p, h: p[None]}, "test_loss must return a floating-point scalar or one loss for each"),
        ({"init": lambda k, h: jnp.zeros(3, int)}, "must be floating-point, got int32"),
        (
            {
                "init": lambda k, h: {"w": jnp.zeros(3, jnp.float16)},
                "train_loss": lambda p, h, b, k: jnp.sum(p["w"]),
                "valid_loss": lambda p, h: jnp.sum(p["w"]),
            },
            r"params\['w'\] must be float32 .* got float16",
        ),
        ({"init": lambda k, h: []}, "at least one array"),
        (
            {"optimizer": sgd("rat", "momentum")},
            "learning_rate names the hyperparameter 'rat', which is not among",
        ),
        ({"optimizer": sgd("long", "momentum")}, r"a schedule of length steps=30 .* got shape \(7,\)"),
        ({"optimizer": sgd({"w": "rate"}, "momentum")}, "a pytree prefix of the parameters"),
    ],
)
def test_a_problem_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    problem = quadratic(**change)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(problem, {**H, "long": np.ones(7)}, key=KEY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quadratic(steps=0), "steps must be a whole number from 1, got 0"),
        (lambda: quadratic(steps=2.5), "steps must be a whole number from 1, got 2.5"),
        (lambda: quadratic(init=None), "init must be a function"),
        (lambda: quadratic(optimizer=0.1), "optimizer must be an Optimizer, as sgd, adam and adamw"),
        (lambda: Reversible(last=0), "last must be a whole number from 1, got 0"),
        (
            lambda: Reversible(last=2.5),  # type: ignore[arg-type]  # wrong on purpose
            "last must be a whole number from 1, got 2.5",
        ),
        (
            lambda: evaluate(PLAIN, H, key=KEY, method=Reversible(fraction_bits={"mu": 40})),
            r"fraction_bits: 'mu' is not among \['velocity', 'weights'\]",
        ),
        (
            lambda: evaluate(PLAIN, H, key=KEY, method=Reversible(fraction_bits={"weights": 99})),
            "weights must be a whole number from 16 to 84, got 99",
        ),
        (lambda: sgd(b"x", 0.9), "learning_rate must be numbers, names"),
        (lambda: sgd(None, 0.9), "learning_rate must be numbers, names"),
        (lambda: sgd(0.1, {"w": b"x"}), "momentum must be numbers, names"),
        (
            lambda: evaluate(None, H, key=KEY),  # type: ignore[arg-type]  # wrong on purpose
            "problem must be a TrainingProblem",
        ),
        (
            lambda: evaluate(PLAIN, H, key=KEY, method=Reversible),  # type: ignore[arg-type]  # wrong on purpose
            "method must be a Method such as",
        ),
        (
            lambda: evaluate(PLAIN, [1.0], key=KEY),  # type: ignore[arg-type]  # wrong on purpose
            "hyperparameters must be a dict",
        ),
        (
            lambda: evaluate(PLAIN, {**H, "i": np.array(["a", "b"])}, key=KEY),
            "hyperparameter 'i' must be numbers or a plain value",
        ),
        (
            lambda: evaluate(PLAIN, {**H, "i": {"a": 0.5, "b": 2}}, key=KEY),
            "hyperparameter 'i' must be .* a nested one gives each of its values a name: 'i/a'",
        ),
        (lambda: evaluate(PLAIN, H, key=KEY, report_every=0), "report_every must be"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_leaf_of_another_type_does_not_round_the_settings(other: Any) -> None:
    def start(key: jax.Array, h: dict[str, Any]) -> dict[str, jax.Array]:
        return {"a": jnp.ones(2, other), "w": jnp.ones(3)}

    problem = quadratic(
        init=start,
        train_loss=lambda p, h, batch, key: jnp.sum((p["w"] - 0.1) ** 2),
        valid_loss=lambda p, h: jnp.sum(p["w"] ** 2),
    )
    alone = quadratic(
        init=lambda key, h: jnp.ones(3),
        train_loss=lambda p, h, batch, key: jnp.sum((p - 0.1) ** 2),
        valid_loss=lambda p, h: jnp.sum(p**2),
    )
    h = {**H, "rate": 0.0503}
    found, expected = (evaluate(p, h, method=Unrolled(), key=KEY) for p in (problem, alone))
    assert found.value == pytest.approx(expected.value, rel=1e-6)


@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_plain_values_that_compare_equal_are_programs_of_their_own(method: Any) -> None:
    problem = quadratic(valid_loss=lambda p, h: jnp.sum(p**2) * (10.0 if h["flag"] is True else 1.0))
    one, true = (evaluate(problem, {**H, "flag": flag}, method=method, key=KEY).value for flag in (1, True))
    assert true == pytest.approx(10 * one)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ([1e5, 10.0], "grew by a factor of 1e\\+04 on its way back"),
        ([math.inf, 10.0], "grew beyond float32's range on its way back"),
        ([math.inf, math.inf], "that of the final weights is beyond float32's range$"),
        ([5.0, 0.0], "^$"),
        ([5.0, 1.0], "^$"),
    ],
)
def test_why_a_gradient_is_useless(norms: list[float], message: str) -> None:
    from hypergrad_search.hypergradient import reversible

    assert re.search(message, reversible.why_useless({"rate": np.ones(())}, norms))
