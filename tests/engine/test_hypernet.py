"""The hypernetwork mode: closed forms, what it refuses, and stretches that go on from one another."""

import functools
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from hypergrad_search import Evaluation, Float, Hypernet, Int, Status, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import (
    Algorithm,
    Diagonal,
    Global,
    Joint,
    Linear,
    Local,
    LowRank,
    OneHidden,
    Response,
)

Array = np.ndarray[Any, Any]

KEY = jax.random.key(0)
FEATURES = 8
SPACE = {"penalty": Float(1e-3, 10.0, log=True, shape=(FEATURES,))}
MIDDLE = {"penalty": np.full(FEATURES, 0.1)}
SMALL = Hypernet(network=Linear(), steps=20)


class Ridge:
    """Regression with a penalty for each feature, of which half mean nothing; everything is known in closed form."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        weights = rng.normal(size=FEATURES) * (np.arange(FEATURES) % 2)
        self.x, self.x_valid = rng.normal(size=(30, FEATURES)), rng.normal(size=(200, FEATURES))
        self.y = self.x @ weights + rng.normal(size=30)
        self.y_valid = self.x_valid @ weights + rng.normal(size=200)

    @functools.cached_property
    def plain(self) -> TrainingProblem:
        """The same object each time, so that it compiles once."""
        return self.problem()

    def problem(self, **changes: Any) -> TrainingProblem:
        x, y = np.float32(self.x), np.float32(self.y)
        x_valid, y_valid = np.float32(self.x_valid), np.float32(self.y_valid)
        parts = {
            "init": lambda key, h: jnp.zeros(FEATURES),
            "train_loss": lambda p, h, b, k: jnp.mean((x @ p - y) ** 2) + jnp.sum(h["penalty"] * p**2),
            "valid_loss": lambda p, h: jnp.mean((x_valid @ p - y_valid) ** 2),
            "batches": lambda step: None,
            "optimizer": sgd(0.1, 0.9),
            "steps": 20,
        }
        return TrainingProblem(**{**parts, **changes})

    def solution(self, penalty: Array) -> Array:
        return np.linalg.solve(self._hessian(penalty), self.x.T @ self.y / len(self.x))

    def jacobian(self, penalty: Array) -> Array:
        """Of the solution, by the penalties."""
        return np.asarray(-np.linalg.inv(self._hessian(penalty)) @ np.diag(self.solution(penalty)))

    def valid_loss(self, penalty: Array) -> float:
        return float(np.mean((self.x_valid @ self.solution(penalty) - self.y_valid) ** 2))

    def optimum(self) -> float:
        starts = np.random.default_rng(1).random((5, FEATURES))
        ends = [minimize(lambda u: self.valid_loss(1e-3 * 1e4**u), u, bounds=[(0, 1)] * FEATURES).fun for u in starts]
        return float(min(ends))

    def _hessian(self, penalty: Array) -> Array:
        return np.asarray(self.x.T @ self.x / len(self.x) + np.diag(penalty))


@pytest.fixture(scope="module")
def ridge() -> Ridge:
    return Ridge()


def stretch(ridge: Ridge, method: Hypernet, h: Any = MIDDLE, **request: Any) -> Evaluation:
    return evaluate(ridge.plain, h, method=method, key=KEY, space=SPACE, **request)


@pytest.mark.parametrize("network", [Linear(), LowRank(20)])
def test_joint_ends_at_the_optimum(ridge: Ridge, network: Any) -> None:
    result = stretch(ridge, Hypernet(network=network, steps=4000))
    assert ridge.valid_loss(MIDDLE["penalty"]) > 1.1 * ridge.optimum()
    assert ridge.valid_loss(refined(result)["penalty"]) <= 1.01 * ridge.optimum()
    assert result.value == pytest.approx(ridge.valid_loss(refined(result)["penalty"]), rel=0.01)


@pytest.mark.parametrize("network", [Linear(), LowRank(FEATURES), OneHidden(50)])
def test_the_local_response_has_the_true_slope(ridge: Ridge, network: Any) -> None:
    method = Hypernet(network=network, algorithm=Local(hyper_steps=1), steps=4000)
    problem = ridge.plain
    result = evaluate(problem, MIDDLE, method=method, key=KEY, space=SPACE)

    def weights(penalty: jax.Array) -> jax.Array:
        h = {"penalty": penalty}
        return jnp.asarray(method.params(problem, h, space=SPACE, key=KEY, checkpoint=result.checkpoint))

    slope, truth = jax.jacobian(weights)(jnp.full(FEATURES, 0.1)), ridge.jacobian(MIDDLE["penalty"])
    assert np.linalg.norm(slope - truth) <= 0.05 * np.linalg.norm(truth)


def test_a_diagonal_response_has_the_true_slope_where_weights_do_not_mix() -> None:
    """The best weight is target / (1 + penalty), each with a penalty of its own."""
    target = jnp.float32(np.array([1.0, -2.0, 0.5]))
    problem = TrainingProblem(
        init=lambda key, h: {"a": jnp.zeros(2), "b": [jnp.zeros(())]},
        train_loss=lambda p, h, batch, key: (
            jnp.sum((p["a"] - target[:2]) ** 2 + h["penalty"][:2] * p["a"] ** 2)
            + (p["b"][0] - target[2]) ** 2
            + h["penalty"][2] * p["b"][0] ** 2
        ),
        valid_loss=lambda p, h: jnp.sum((p["a"] - 0.2) ** 2) + p["b"][0] ** 2,
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.9),
        steps=20,
    )
    penalty = np.array([0.1, 0.3, 1.0])
    space = {"penalty": Float(1e-2, 10.0, log=True, shape=(3,))}
    method = Hypernet(network=Diagonal(), algorithm=Local(hyper_steps=1), steps=3000)
    result = evaluate(problem, {"penalty": penalty}, method=method, key=KEY, space=space)

    def weights(penalty: jax.Array) -> jax.Array:
        params = method.params(problem, {"penalty": penalty}, space=space, key=KEY, checkpoint=result.checkpoint)
        return jnp.stack([*params["a"], params["b"][0]])

    slope = jax.jacobian(weights)(jnp.float32(penalty))
    np.testing.assert_allclose(slope, np.diag(-target / (1 + penalty) ** 2), atol=0.01)
    np.testing.assert_allclose(weights(jnp.float32(penalty)), target / (1 + penalty), atol=0.01)


def test_a_diagonal_response_needs_a_hyperparameter_for_each_weight(ridge: Ridge) -> None:
    message = r"Diagonal: needs one hyperparameter for each weight, got 1 for 8 weights; use LowRank\(10\)"
    with pytest.raises(ValueError, match=message):
        evaluate(
            ridge.plain,
            {"penalty": 0.1},
            method=Hypernet(network=Diagonal()),
            key=KEY,
            space={"penalty": Float(1e-3, 1.0)},
        )


@pytest.mark.parametrize("network", [Linear(), LowRank(3), OneHidden(5), Diagonal()], ids=lambda x: type(x).__name__)
def test_a_network_begins_with_no_change(network: Response) -> None:
    weights = network.init(KEY, 4, 4)
    assert (network(weights, jnp.linspace(-1.0, 1.0, 4)) == jnp.zeros(4)).all()
    assert isinstance(hash(network), int)


def test_the_global_response_follows_the_true_curve(ridge: Ridge) -> None:
    """One penalty for all features, over the whole box."""
    space, problem = {"penalty": Float(1e-2, 10.0, log=True)}, ridge.plain
    method = Hypernet(network=OneHidden(50), algorithm=Global(hyper_steps=500), steps=4000)
    result = evaluate(problem, {"penalty": 5.0}, method=method, key=KEY, space=space)
    penalties = np.geomspace(2e-2, 5, 10)
    true = [ridge.valid_loss(np.full(FEATURES, penalty)) for penalty in penalties]
    curve = [
        float(
            problem.valid_loss(
                method.params(problem, {"penalty": p}, space=space, key=KEY, checkpoint=result.checkpoint), {}
            )
        )
        for p in penalties
    ]
    np.testing.assert_allclose(curve, true, rtol=0.03)
    lowest = minimize(lambda u: ridge.valid_loss(np.full(FEATURES, 1e-2 * 1e3 ** u[0])), [0.5], bounds=[(0, 1)]).fun
    assert ridge.valid_loss(np.full(FEATURES, refined(result)["penalty"])) <= 1.01 * lowest


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"algorithm": Joint(centred=False)}, 0.8),
        ({"algorithm": Joint(centred=False, scale=0.0)}, 0.99),  # it hardly learns the slope
        ({"algorithm": Joint(centred=False, entropy=1e-3)}, 0.8),
        ({"algorithm": Joint(entropy=1e-3)}, 0.75),
        ({"network": OneHidden(20)}, 0.8),
    ],
)
def test_every_variant_descends(ridge: Ridge, changes: dict[str, Any], share: float) -> None:
    start = np.full(FEATURES, 0.02)
    result = stretch(ridge, Hypernet(**{"network": Linear(), "steps": 3000, **changes}), {"penalty": start})
    assert result.status == Status.OK
    assert ridge.valid_loss(refined(result)["penalty"]) < share * ridge.valid_loss(start)


def test_the_scale_is_learned_where_there_is_an_entropy_bonus(ridge: Ridge) -> None:
    """The weight of the bonus decides how far out the sampling goes."""
    narrow, wide = (
        _scales(stretch(ridge, Hypernet(network=Linear(), algorithm=Joint(centred=False, entropy=entropy), steps=2000)))
        for entropy in (1e-4, 1e-1)
    )
    assert (narrow < 0.05).mean() > 0.5
    assert ((wide > 0.1) & (wide <= 0.5)).all()


def refined(result: Evaluation) -> dict[str, Any]:
    assert result.refined is not None
    return result.refined


def _scales(result: Evaluation) -> Array:
    assert result.checkpoint is not None
    with np.load(io.BytesIO(result.checkpoint)) as file:
        return np.asarray(np.exp(file["arr_4"]))  # after base, network, point and origin


def test_the_value_is_that_of_a_usable_model(ridge: Ridge) -> None:
    result, problem = stretch(ridge, SMALL), ridge.plain
    params = SMALL.params(problem, refined(result), space=SPACE, key=KEY, checkpoint=result.checkpoint)
    assert result.value == pytest.approx(float(problem.valid_loss(params, {})), rel=1e-6)
    assert result.gradient is None


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        (Hypernet(steps=20), 80),
        (Hypernet(steps=20, algorithm=Joint(centred=False)), 40),
        (Hypernet(steps=20, algorithm=Local(centred=False, hyper_steps=5)), 20),
        (Hypernet(steps=20, algorithm=Local(hyper_steps=5)), 15 * 3 + 5),
        (Hypernet(steps=20, algorithm=Global(hyper_steps=5)), 20),
        (Hypernet(), 80),
    ],
)
def test_costs(ridge: Ridge, method: Hypernet, cost: float) -> None:
    assert method.cost(ridge.plain, 20) == cost


def test_a_stretch_costs_its_steps_and_those_of_fine_tuning(ridge: Ridge) -> None:
    assert stretch(ridge, SMALL).cost.gradient_evaluations == 80
    assert stretch(ridge, replace(SMALL, finetune=7)).cost.gradient_evaluations == 87
    halfway = Hypernet(steps=20, algorithm=Local(hyper_steps=5))
    assert [halfway.cost(ridge.plain, steps) for steps in (0, 10, 15, 18)] == [0, 30, 45, 48]


def test_a_stretch_goes_on_from_a_checkpoint(ridge: Ridge) -> None:
    whole = stretch(ridge, Hypernet(network=Linear(), steps=40))
    first = stretch(ridge, SMALL)
    second = stretch(ridge, SMALL, refined(first), checkpoint=first.checkpoint)
    anew = stretch(ridge, SMALL, refined(first))
    assert second.value == pytest.approx(whole.value, rel=1e-4)
    np.testing.assert_allclose(refined(second)["penalty"], refined(whole)["penalty"], rtol=1e-3)
    assert abs(anew.value - whole.value) > 0.01
    compiled: list[str] = []
    listening = True

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if listening and "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)  # older versions of JAX cannot take it back
    stretch(ridge, SMALL, refined(second), checkpoint=second.checkpoint)
    assert not compiled
    stretch(ridge, replace(SMALL, finetune=3))
    assert compiled  # the listener hears
    listening = False


def test_a_stretch_starts_where_it_is_told(ridge: Ridge) -> None:
    first = stretch(ridge, SMALL)
    elsewhere = stretch(ridge, SMALL, {"penalty": np.full(FEATURES, 5.0)}, checkpoint=first.checkpoint)
    assert (refined(elsewhere)["penalty"] > 2.0).all()


def test_fine_tuning_is_for_the_value_alone(ridge: Ridge) -> None:
    plain, tuned = (stretch(ridge, Hypernet(network=Linear(), steps=20, finetune=n)) for n in (0, 3000))
    assert plain.checkpoint == tuned.checkpoint
    method = Hypernet(network=Linear(), steps=20, finetune=3000)
    params = method.params(ridge.plain, refined(tuned), space=SPACE, key=KEY, checkpoint=tuned.checkpoint)
    assert float(ridge.plain.valid_loss(params, {})) == pytest.approx(tuned.value, rel=1e-6)
    assert tuned.value == pytest.approx(ridge.valid_loss(refined(tuned)["penalty"]), rel=1e-3)
    assert abs(plain.value - tuned.value) > 0.1


def test_reports_come_on_the_way_and_change_nothing(ridge: Ridge) -> None:
    seen: list[tuple[int, float]] = []
    watched = stretch(ridge, SMALL, report=lambda now: seen.append((now.step, now.loss)), report_every=8)
    assert [step for step, _ in seen] == [8, 16]
    assert all(math.isfinite(loss) for _, loss in seen)
    assert watched.checkpoint == stretch(ridge, SMALL).checkpoint


def test_the_same_key_gives_the_same_bits(ridge: Ridge) -> None:
    assert stretch(ridge, SMALL).checkpoint == stretch(ridge, SMALL).checkpoint
    other = evaluate(ridge.plain, MIDDLE, method=SMALL, key=jax.random.key(1), space=SPACE)
    assert other.checkpoint != stretch(ridge, SMALL).checkpoint


def test_minibatches_of_both_kinds_and_any_pytree(ridge: Ridge) -> None:
    x, y, xv, yv = (jnp.asarray(a, jnp.float32) for a in (ridge.x, ridge.y, ridge.x_valid, ridge.y_valid))
    seen: list[Any] = []

    def valid_batch_loss(params: Any, h: Any, step: jax.Array) -> jax.Array:
        seen.append(step)
        rows = (jnp.arange(20) + 20 * step) % 200
        return jnp.mean((xv[rows] @ params["layer"]["w"] + params["b"][0] - yv[rows]) ** 2)

    problem = ridge.problem(
        init=lambda key, h: {"layer": {"w": jnp.zeros(FEATURES)}, "b": [jnp.zeros(())]},
        train_loss=lambda p, h, rows, key: (
            jnp.mean((x[rows] @ p["layer"]["w"] + p["b"][0] - y[rows]) ** 2)
            + jnp.sum(h["penalty"] * p["layer"]["w"] ** 2)
        ),
        valid_loss=lambda p, h: jnp.mean((xv @ p["layer"]["w"] + p["b"][0] - yv) ** 2),
        valid_batch_loss=valid_batch_loss,
        batches=lambda step: (jnp.arange(10) + 10 * step) % 30,
    )
    method = Hypernet(network=LowRank(3), steps=1500)
    result = evaluate(problem, MIDDLE, method=method, key=KEY, space=SPACE)
    assert seen
    assert result.value < 1.2 * ridge.optimum()
    params = method.params(problem, refined(result), space=SPACE, key=KEY, checkpoint=result.checkpoint)
    assert jax.tree.map(jnp.shape, params) == {"layer": {"w": (FEATURES,)}, "b": [()]}


def test_optimizer_and_initial_hyperparameters_are_refused_by_name(ridge: Ridge) -> None:
    problem = ridge.problem(optimizer=sgd("rate", 0.9), init=lambda key, h: h["size"] * jnp.ones(FEATURES))
    space = {**SPACE, "rate": Float(1e-3, 1.0), "size": Float(0.0, 1.0)}
    with pytest.raises(ValueError, match=r"cannot tune rate, size: .* use Reversible\(\)"):
        evaluate(problem, {**MIDDLE, "rate": 0.1, "size": 0.1}, method=SMALL, key=KEY, space=space)
    held = evaluate(problem, {**MIDDLE, "rate": 0.1, "size": 0.1}, method=SMALL, key=KEY, space=SPACE)
    assert held.status == Status.OK  # what is not in the space is not tuned


def test_what_enters_by_comparison_alone_may_be_tuned(ridge: Ridge) -> None:
    """A dropout rate: where it has no gradient of its own in the training loss, NaN would not show that it matters."""

    def train_loss(params: jax.Array, h: Any, batch: None, key: jax.Array) -> jax.Array:
        kept = jnp.where(jax.random.bernoulli(key, 1 - h["rate"], params.shape), params, 0.0)
        return jnp.mean((jnp.float32(ridge.x) @ kept - jnp.float32(ridge.y)) ** 2)

    problem, method = ridge.problem(train_loss=jax.jit(train_loss)), Hypernet(steps=5, algorithm=Joint(centred=False))
    result = evaluate(problem, {"rate": 0.3}, method=method, key=KEY, space={"rate": Float(0.0, 0.9)})
    assert result.status == Status.OK
    space = {"rate": Float(0.0, 0.9), **SPACE}
    with pytest.raises(ValueError, match="cannot tune penalty: "):
        evaluate(problem, {"rate": 0.3, **MIDDLE}, method=method, key=KEY, space=space)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_other_types(ridge: Ridge, dtype: Any) -> None:
    problem = ridge.problem(init=lambda key, h: jnp.zeros(FEATURES, dtype))
    with jax.numpy_dtype_promotion("standard"):  # the loss multiplies data in float32 with such parameters
        result = evaluate(problem, MIDDLE, method=SMALL, key=KEY, space=SPACE)
        params = SMALL.params(problem, MIDDLE, space=SPACE, key=KEY, checkpoint=result.checkpoint)
    assert result.status == Status.OK
    assert params.dtype == dtype


def test_boxes_of_any_width_and_of_none(ridge: Ridge) -> None:
    space = {"penalty": Float(1e-30, 1e10, log=True, shape=(FEATURES,)), "other": Float(2.0, 2.0)}
    problem = ridge.problem(train_loss=lambda p, h, b, k: jnp.sum((p - h["other"]) ** 2) + jnp.sum(h["penalty"] * p**2))
    result = evaluate(problem, {"penalty": np.full(FEATURES, 1e-3), "other": 2}, method=SMALL, key=KEY, space=space)
    assert result.status == Status.OK
    assert refined(result)["other"] == 2.0


def test_the_scale_stays_where_it_is_not_learned(ridge: Ridge) -> None:
    decaying = Hypernet(network=Linear(), steps=20, hyper_optimizer=optax.adamw(1e-3, weight_decay=0.1))
    np.testing.assert_allclose(_scales(stretch(ridge, decaying)), 0.05, rtol=1e-6)


def test_the_default_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Hypernet())) == Hypernet()


def test_divergence_is_a_status(ridge: Ridge) -> None:
    result = stretch(ridge, Hypernet(network=Linear(), optimizer=optax.sgd(1e4), steps=60))
    assert result.status in (Status.NAN, Status.DIVERGED)
    assert (result.value, result.refined, result.checkpoint) == (math.inf, None, None)


def test_points_stay_in_the_box(ridge: Ridge) -> None:
    result = stretch(ridge, Hypernet(network=Linear(), steps=200, hyper_optimizer=optax.sgd(1e3)))
    assert ((refined(result)["penalty"] >= 1e-3) & (refined(result)["penalty"] <= 10)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "linear"}, "network must be a Response"),
        ({"algorithm": "joint"}, r"algorithm must be Joint\(...\), Local\(...\) or Global\(...\), got 'joint'"),
        ({"algorithm": Joint}, r"algorithm must be Joint\(...\)"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"finetune": -1}, "finetune must be a whole number from 0"),
        ({"optimizer": "adam"}, "optimizer must be a transformation of optax"),
        ({"hyper_optimizer": "adam"}, "hyper_optimizer must be a transformation of optax"),
    ],
)
def test_bad_settings_get_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Hypernet(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Joint(scale=-1.0), "Joint: scale must be a number from 0 to 0.5, got -1.0"),
        (lambda: Joint(scale=0.6), "Joint: scale must be a number from 0"),
        (lambda: Joint(scale=math.nan), "Joint: scale must be a number from 0"),
        (
            lambda: Joint(scale="small"),  # type: ignore[arg-type]  # wrong on purpose
            "Joint: scale must be a number from 0 .* got 'small'",
        ),
        (lambda: Joint(scale=0.0), "scale=0 draws nothing, which needs centred=False and entropy=None"),
        (lambda: Joint(scale=0.0, centred=False, entropy=0.1), "scale=0 draws nothing"),
        (lambda: Joint(entropy=-1.0), "Joint: entropy must be a number from 0"),
        (lambda: Joint(entropy=True), "Joint: entropy must be a number from 0"),
        (lambda: Local(scale=math.nan), "Local: scale must be a number from 0"),
        (lambda: Local(scale=0.0), "Local: scale must be above 0"),
        (
            lambda: Local(hyper_steps=1.5),  # type: ignore[arg-type]  # wrong on purpose
            "Local: hyper_steps must be a whole number from 1, got 1.5",
        ),
        (lambda: Global(hyper_steps=0), "Global: hyper_steps must be a whole number from 1, got 0"),
    ],
)
def test_bad_algorithms_get_one_line(make: Callable[[], Algorithm], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Local(entropy=1.0),  # type: ignore[call-arg]  # wrong on purpose
        lambda: Global(centred=True),  # type: ignore[call-arg]  # wrong on purpose
        lambda: Global(scale=0.1),  # type: ignore[call-arg]  # wrong on purpose
        lambda: Joint(hyper_steps=5),  # type: ignore[call-arg]  # wrong on purpose
        lambda: Joint(0.05),  # type: ignore[call-arg]  # wrong on purpose
    ],
)
def test_an_algorithm_takes_its_own_settings_alone_and_by_name(make: Callable[[], Algorithm]) -> None:
    with pytest.raises(TypeError):
        make()


def test_bad_requests_get_one_line(ridge: Ridge) -> None:
    with pytest.raises(ValueError, match="needs space="):
        evaluate(ridge.plain, MIDDLE, method=SMALL, key=KEY)
    with pytest.raises(ValueError, match="lack 'penalty' of the space"):
        stretch(ridge, SMALL, {})
    with pytest.raises(ValueError, match="no Float"):
        evaluate(ridge.plain, {**MIDDLE, "width": 1}, method=SMALL, key=KEY, space={"width": Int(1, 2)})
    with pytest.raises(ValueError, match="checkpoint is of another"):
        stretch(ridge, Hypernet(network=LowRank(3), steps=20), checkpoint=stretch(ridge, SMALL).checkpoint)
    checkpoint = stretch(ridge, SMALL).checkpoint
    assert checkpoint is not None
    with pytest.raises(ValueError, match="checkpoint is of another"):
        stretch(ridge, Hypernet(network=Linear(), algorithm=Joint(centred=False), steps=20), checkpoint=checkpoint)
    space = {"penalty": Float(1e-3, 1.0, log=True, shape=(FEATURES,))}
    with pytest.raises(ValueError, match="checkpoint is of another"):
        evaluate(ridge.plain, MIDDLE, method=SMALL, key=KEY, space=space, checkpoint=checkpoint)
    for junk in (b"", b"junk", checkpoint[:100]):
        with pytest.raises(ValueError, match="must be bytes that Hypernet has written"):
            stretch(ridge, SMALL, checkpoint=junk)
    with pytest.raises(ValueError, match="Reversible has no checkpoints"):
        evaluate(ridge.plain, MIDDLE, key=KEY, checkpoint=checkpoint)
    for outside in (100.0, 1e-9):
        with pytest.raises(ValueError, match="outside of its bounds"):
            stretch(ridge, SMALL, {"penalty": np.full(FEATURES, outside)})
    with pytest.raises(ValueError, match=r"must have shape \(8,\), got \(1,\)"):
        stretch(ridge, SMALL, {"penalty": np.ones(1)})
    with pytest.raises(ValueError, match="of the 20 steps of a stretch the last hyper_steps=100"):
        stretch(ridge, Hypernet(algorithm=Local(), steps=20))
    problem = ridge.problem(valid_batch_loss=lambda params, h, step: params[None])
    with pytest.raises(ValueError, match="valid_batch_loss must"):
        evaluate(problem, MIDDLE, method=SMALL, key=KEY, space=SPACE)
    with pytest.raises(ValueError, match="rank must be a whole number from 1, got 0"):
        LowRank(0)


@pytest.mark.slow
def test_millions_of_weights_fit_in_low_rank() -> None:
    """Two million weights and as many penalties: a matrix would have 4e12 elements."""
    size = 2_000_000
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(size),
        train_loss=lambda p, h, b, k: jnp.mean((p - 1) ** 2) + jnp.mean(h["penalty"] * p**2),
        valid_loss=lambda p, h: jnp.mean((p - 0.5) ** 2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.9),
        steps=5,
    )
    space = {"penalty": Float(1e-3, 10.0, log=True, shape=(size,))}
    method = Hypernet(network=LowRank(5), optimizer=optax.sgd(0.1))
    result = evaluate(problem, {"penalty": np.full(size, 0.1)}, method=method, key=KEY, space=space)
    assert result.status == Status.OK
