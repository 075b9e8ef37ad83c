"""A training function of the user's own: its gradient, how lazy it is, what it costs, and what is refused."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Categorical,
    Evaluation,
    Float,
    Fold,
    Int,
    Reversible,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    check_gradient,
    evaluate,
    fold,
    from_function,
)

KEY = jax.random.key(0)
STEPS, BATCH, VALID = 12, 10, 20
_DRAWN = np.random.default_rng(0)
X: Any = _DRAWN.normal(size=(STEPS * BATCH + VALID, 4))
Y: Any = _DRAWN.normal(size=STEPS * BATCH + VALID)
SPACE: Space = {
    "rate": Float(1e-3, 1.0, log=True),
    "momentum": Float(0.0, 0.95),
    "penalty": Float(0.0, 1.0, shape=(4,)),
}
H: dict[str, Any] = {"rate": 0.05, "momentum": 0.8, "penalty": np.array([0.1, 0.2, 0.3, 0.4])}


def squares(weights: Any, x: Any, y: Any) -> Any:
    return (jnp.asarray(x, weights.dtype) @ weights - jnp.asarray(y, weights.dtype)) ** 2


def train_loss(weights: Any, h: Any, batch: Any) -> Any:
    return jnp.mean(squares(weights, *batch)) + jnp.sum(h["penalty"] * weights**2)


def optimizer(h: Any) -> optax.GradientTransformation:
    return optax.sgd(h["rate"], h["momentum"])


@jax.jit
def step(weights: Any, state: Any, batch: Any, h: Any) -> Any:
    updates, state = optimizer(h).update(jax.grad(train_loss)(weights, h, batch), state)
    return optax.apply_updates(weights, updates), state


def train(h: Any) -> Any:
    """A Python loop over NumPy batches; it trains in the precision of the hyperparameters."""
    weights = jnp.ones(4, h["rate"].dtype)
    state = optimizer(h).init(weights)
    for start in range(0, STEPS * BATCH, BATCH):
        weights, state = step(weights, state, (X[start : start + BATCH], Y[start : start + BATCH]), h)
    return squares(weights, X[-VALID:], Y[-VALID:])


PROBLEM = from_function(train)

TWIN = TrainingProblem(
    init=lambda key, h: jnp.ones(4),
    train_loss=lambda weights, h, batch, key: train_loss(weights, h, batch),
    valid_loss=lambda weights, h: squares(weights, X[-VALID:], Y[-VALID:]),
    batches=lambda step: tuple(jax.lax.dynamic_slice_in_dim(jnp.float32(z), step * BATCH, BATCH) for z in (X, Y)),
    optimizer=optimizer,
    steps=STEPS,
)


def gradient_of(evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.gradient is not None
    return evaluation.gradient


@pytest.mark.parametrize("held_back", [None, Fold(1, of=4)])
def test_it_is_the_training_problem_unrolled(held_back: Fold | None) -> None:
    found = evaluate(PROBLEM, H, space=SPACE, fold=held_back)
    wanted = evaluate(TWIN, H, space=SPACE, fold=held_back, key=KEY, method=Unrolled())
    assert found.status is Status.OK
    for name in ("value", "standard_error", "held_back", "held_back_errors"):
        if getattr(wanted, name) is not None:
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5)
    assert gradient_of(found).keys() == H.keys()
    for name, slope in gradient_of(wanted).items():
        np.testing.assert_allclose(gradient_of(found)[name], slope, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_float64_and_of_finite_differences() -> None:
    found = gradient_of(evaluate(PROBLEM, H))
    with jax.enable_x64(True):
        wanted = gradient_of(evaluate(PROBLEM, H))
        moved = [
            evaluate(PROBLEM, {**H, "rate": H["rate"] + side}, gradient_below=-math.inf).value for side in (1e-6, -1e-6)
        ]
    assert wanted["rate"] == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6)
    for name, slope in wanted.items():
        assert slope.dtype == np.float64
        np.testing.assert_allclose(found[name], slope, rtol=1e-4, atol=1e-6)


def test_the_check_of_gradients_takes_it() -> None:
    result = check_gradient(PROBLEM, H, SPACE, directions=2)
    assert result.agrees, str(result)


class Watched:
    """A function that notes for each call whether JAX traces it."""

    def __init__(self, function: Any) -> None:
        self.function, self.traced = function, list[bool]()

    def __call__(self, h: Any) -> Any:
        self.traced.append(isinstance(h["x"], jax.core.Tracer))
        return self.function(h)


@pytest.mark.parametrize(
    ("wishes", "traced", "has_gradient"),
    [
        ({}, [True], True),
        ({"gradient_below": -math.inf}, [False], False),
        ({"gradient_below": 3.9}, [False], False),
        ({"gradient_below": 4.1}, [False, True], True),
        ({"fold": Fold(0, of=2)}, [True], True),
        ({"fold": Fold(0, of=2, below=4.1)}, [False, True], True),
        ({"fold": Fold(0, of=2, below=3.9)}, [False], False),
    ],
)
def test_the_gradient_is_computed_where_it_is_wanted(
    wishes: dict[str, Any], traced: list[bool], has_gradient: bool
) -> None:
    function = Watched(lambda h: h["x"] ** 2 * jnp.ones(4))
    result = evaluate(from_function(function), {"x": 2.0}, **wishes)
    assert function.traced == traced
    assert result.value == 4.0
    assert (None if result.gradient is None else float(result.gradient["x"])) == (4.0 if has_gradient else None)
    assert result.status == ("overfitted" if "fold" in wishes and not has_gradient else "ok")


def test_a_fold_is_left_out_of_the_gradient() -> None:
    examples = np.arange(6, dtype=np.float32)
    problem = from_function(lambda h: h["x"] * examples)
    kept = examples[fold.order(6) % 3 != 1]
    result = evaluate(problem, {"x": 2.0}, fold=Fold(1, of=3))
    assert gradient_of(result)["x"] == pytest.approx(kept.mean())
    assert result.held_back is not None
    assert result.held_back[1] == pytest.approx(2 * examples[fold.order(6) % 3 == 1].mean())
    with pytest.raises(ValueError, match="6 validation examples cannot be split into of=7 parts"):
        evaluate(problem, {"x": 2.0}, fold=Fold(1, of=7))
    scalar = evaluate(from_function(lambda h: 3 * h["x"]), {"x": 2.0}, fold=Fold(0, of=4, below=-1.0))
    assert (float(gradient_of(scalar)["x"]), scalar.status, scalar.held_back) == (3.0, "ok", None)


@pytest.mark.parametrize("gradient_below", [math.inf, 1e9])
@pytest.mark.parametrize(
    ("function", "status", "value"),
    [
        (lambda h: jnp.log(-h["x"]), Status.NAN, math.inf),
        (lambda h: h["x"] / 0.0, Status.DIVERGED, math.inf),
        (lambda h: -h["x"] / 0.0, Status.DIVERGED, math.inf),
        (lambda h: jnp.sqrt(h["x"] - 2.0), Status.EXPLODED, 0.0),
    ],
)
def test_what_is_not_finite_is_a_status(function: Any, status: Status, value: float, gradient_below: float) -> None:
    result = evaluate(from_function(function), {"x": 2.0}, gradient_below=gradient_below)
    assert (result.status, result.value, result.gradient) == (status, value, None)
    assert result.message


def test_hyperparameters_come_as_the_space_says() -> None:
    space: Space = {
        "x": Float(0.0, 3.0),
        "a": Float(0.0, 1.0, shape=(2,)),
        "n": Int(1, 3),
        "kind": Categorical(["k", 1]),
    }
    seen = []

    def function(h: Any) -> Any:
        seen.append({name: (value, isinstance(value, jax.Array)) for name, value in h.items()})
        if h["x"] > 1.0:  # a branch on a value is no conversion
            return h["n"] * h["x"] + jnp.sum(h["a"])
        return h["x"]

    h = {"x": 2, "a": np.ones(2), "n": np.int64(3), "kind": "k"}
    result = evaluate(from_function(function), h, space=space, gradient_below=100.0)
    assert {name: (float(g) if g.shape == () else g.tolist()) for name, g in gradient_of(result).items()} == {
        "x": 3.0,
        "a": [1.0, 1.0],
    }
    for values in seen:
        assert {name: is_array for name, (_, is_array) in values.items()} == {
            "x": True,
            "a": True,
            "n": False,
            "kind": False,
        }
        assert (type(values["n"][0]), values["kind"][0]) == (int, "k")
        assert (values["x"][0].dtype, values["a"][0].shape) == (jnp.float32, (2,))
    with pytest.raises(ValueError, match="hyperparameters lack 'kind' of the space"):
        evaluate(from_function(function), {"x": 2, "a": np.ones(2), "n": 3}, space=space)
    with pytest.raises(TypeError) as caught:
        evaluate(from_function(lambda h: jnp.sum(jnp.ones(h["n"]) * h["x"])), {"x": 2.0, "n": 3})
    assert "n: whole numbers were taken for floats" in caught.value.__notes__[0]


# what is refused


def while_loop(h: Any) -> Any:
    return jax.lax.while_loop(lambda x: x < 3, lambda x: x + h["x"], h["x"])


def called_back(h: Any) -> Any:
    return jax.pure_callback(np.square, h["x"], h["x"])


STAYS = "the loss must stay a JAX array on the whole way"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h: h["x"] * float(h["x"]), rf"<lambda> makes a Python number or .*ConcretizationTypeError.*{STAYS}"),
        (lambda h: h["x"] * math.sqrt(h["x"]), rf"a Python number or .*ConcretizationTypeError.*{STAYS}"),
        (lambda h: h["x"] * np.sqrt(h["x"]), rf"a NumPy array .*TracerArrayConversionError.*{STAYS}"),
        (lambda h: h["x"] * jnp.float32(np.asarray(h["x"])), rf"a NumPy array .*TracerArrayConversionError.*{STAYS}"),
        (lambda h: float(h["x"]), rf"<lambda> must return a JAX array, .*got 2.0; {STAYS}"),
        (while_loop, "JAX cannot differentiate while_loop .ValueError: Reverse-mode differentiation does not work"),
        (called_back, "JAX cannot differentiate called_back .ValueError: Pure callbacks do not support JVP"),
    ],
)
def test_what_cannot_be_differentiated_is_named(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"from_function: .*{message}") as caught:
        evaluate(from_function(function), {"x": 2.0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gradient_below", [math.inf, -math.inf])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got None; does it lack a return"),
        (0.5, "got 0.5; the loss must stay a JAX array on the whole way, so leave out float"),
        (np.float32(0.5), r"got np.float32\(0.5\); the loss must stay a JAX array"),
        (np.ones(3), r"got array\(\[1., 1., 1.\]\); the loss must stay a JAX array"),
        ((0.5, {"accuracy": 0.9}), r"got \(0.5, {'accuracy': 0.9}\); return the loss alone"),
        (jnp.int32(1), r"got shape \(\) and dtype int32; make it floating-point"),
        (jnp.ones((2, 3)), r"got shape \(2, 3\) and dtype float32; take the mean over all other axes"),
        (jnp.ones(0), r"got shape \(0,\) and dtype float32; take the mean"),
    ],
)
def test_what_is_no_loss_is_named(value: Any, message: str, gradient_below: float) -> None:
    with pytest.raises(ValueError, match=f"from_function: <lambda> must return a JAX array, .*{message}") as caught:
        evaluate(from_function(lambda h: value), {"x": 2.0}, gradient_below=gradient_below)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_values_stays_as_it_is() -> None:
    def function(h: Any) -> Any:
        if h["x"] > 1.0:
            raise ValueError("x is too large")
        return h["x"]

    for gradient_below in (math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"^x is too large$"):
            evaluate(from_function(function), {"x": 2.0}, gradient_below=gradient_below)


@pytest.mark.parametrize("function", [lambda h: jax.lax.stop_gradient(h["x"]), lambda h: jnp.float32(h["x"].item())])
def test_a_gradient_of_zeros_is_a_warning_once(function: Any) -> None:
    problem = from_function(function)
    words = "the gradient of <lambda> is 0 in all hyperparameters.*stop_gradient"
    with pytest.warns(UserWarning, match=words) as said:
        assert gradient_of(evaluate(problem, {"x": 2.0}))["x"] == 0.0
    assert said[0].filename == __file__
    assert gradient_of(evaluate(problem, {"x": 2.0}))["x"] == 0.0  # where a second warning would be an error


def test_the_check_of_gradients_finds_what_is_lost_on_the_way() -> None:
    """JAX takes the result of `.item()` for a constant, without a word."""
    problem = from_function(lambda h: h["x"] * h["y"].item())
    space: Space = {"x": Float(0.0, 3.0), "y": Float(0.0, 3.0)}
    result = check_gradient(problem, {"x": 2.0, "y": 1.0}, space)
    verdicts = {direction.name: direction.verdict for direction in result.directions}
    assert verdicts["x"].startswith("agrees")
    assert "the derivative is missing" in verdicts["y"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"method": Reversible()}, "method is for a TrainingProblem.*since JAX differentiates the function itself"),
        ({"key": KEY}, "key is for a TrainingProblem.*since the function draws its own random numbers"),
        ({"report": print}, "report is for a TrainingProblem.*since nobody sees the function's steps"),
        ({"checkpoint": b"x"}, "checkpoint is for a TrainingProblem.*since each call of the function starts anew"),
    ],
)
def test_settings_of_training_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"evaluate: {why}; leave it out"):
        evaluate(PROBLEM, H, **settings)


# what it costs

N_SPACE: Space = {"x": Float(0.0, 3.0), "n": Int(1, 9)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still but where a function moves it."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(sys.modules["hypergrad_search.hypergradient.direct"], "time", clock)
    return clock


def test_a_gradient_costs_what_it_takes(clock: SimpleNamespace) -> None:
    compiled = set()

    def function(h: Any) -> Any:
        traced = isinstance(h["x"], jax.core.Tracer)
        if (traced, h["n"]) not in compiled:
            compiled.add((traced, h["n"]))
            clock.now += 1000.0
        clock.now += h["n"] * (12.0 if traced else 2.0)
        return h["x"]

    def cost(n: int, below: float) -> tuple[float, float]:
        spent = evaluate(problem, {"x": 2.0, "n": n}, gradient_below=below, space=space).cost
        return spent.gradient_evaluations, spent.seconds

    problem, space = from_function(function), N_SPACE
    never, both, at_once = -math.inf, 10.0, math.inf
    assert cost(1, at_once) == (4, 1012)  # assumed
    assert cost(1, never) == (1, 1002)
    assert cost(1, at_once) == (4, 12)  # the only value so far has compiled
    assert cost(1, never) == (1, 2)
    assert cost(1, at_once) == (6, 12)  # measured
    assert cost(1, both) == (7, 14)
    assert cost(5, both) == (7, 2070)  # other plain values compile again
    clock.now += 10.0
    assert cost(5, both) == (7, 70)


def test_the_ratio_is_a_median(clock: SimpleNamespace) -> None:
    seconds = iter([1, 1, 9, 1, 2, 2, 2, 50, 6, 6])  # of values and of gradients, the first of each to be left out

    def function(h: Any) -> Any:
        clock.now += next(seconds)
        return h["x"]

    problem = from_function(function)
    for _ in range(6):
        evaluate(problem, {"x": 2.0}, gradient_below=-math.inf)
    costs = [evaluate(problem, {"x": 2.0}).cost.gradient_evaluations for _ in range(4)]
    assert costs == [4, 50 / 2, 28 / 2, 6 / 2]  # values: 1, 9, 1, 2, 2
