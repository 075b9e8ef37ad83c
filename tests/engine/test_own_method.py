"""A method that a user could write, from what `hypergrad_search` and `hypergrad_search.hypergradient` export alone."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Cost,
    Evaluation,
    Float,
    Fold,
    Implicit,
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
from hypergrad_search.hypergradient import (
    Derived,
    Identity,
    Request,
    after_training,
    finite_or_none,
    fitted_loss,
    judge,
    left_out,
    outer_losses,
    read_by_losses,
    refuse_unseen,
    split,
    step_loss,
    trained,
    tuned,
)

KEY = jax.random.key(0)
STEPS = 10
X = np.float32(np.random.default_rng(0).normal(size=(12, 3)))


@dataclass(frozen=True)
class FiniteDifferences(Method):
    """Central differences: two more training runs for each number. It leaves all diagnostics out."""

    width: float = 2e-3

    def evaluate(self, problem: TrainingProblem, hyperparameters: Any, key: jax.Array, request: Request) -> Evaluation:
        dynamic, static = split(hyperparameters, request.space)

        def trained(dynamic: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            h = {**dynamic, **dict(static)}
            return train(problem, h, key), h

        judged = judge(outer_losses(problem, *trained(dynamic)), request.fold)
        judged = replace(judged, cost=Cost(self.cost(problem, problem.steps), 0.0))
        if not request.wants_gradient(judged):
            return judged
        gradient = {}
        for name, value in dynamic.items():
            slopes = []
            for direction in np.eye(value.size, dtype=np.float32).reshape(value.size, *value.shape):
                sides = [
                    float(
                        fitted_loss(
                            problem,
                            *trained({**dynamic, name: value + sign * self.width * direction}),
                            left_out(request.fold),
                        )
                    )
                    for sign in (1, -1)
                ]
                slopes.append((sides[0] - sides[1]) / (2 * self.width))
            gradient[name] = jnp.float32(np.reshape(slopes, value.shape))
        cost = Cost(judged.cost.gradient_evaluations * (1 + 2 * sum(x.size for x in dynamic.values())), 0.0)
        return replace(judged, gradient=finite_or_none(gradient), cost=cost)


PROBLEM = TrainingProblem(
    init=lambda key, h: h["scale"] * jnp.arange(1.0, 4.0),
    train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
    valid_loss=lambda p, h: (X @ p) ** 2 + (h["outer"] if h["kind"] == "tilted" else 0) * jnp.sum(h["target"]),
    batches=lambda step: None,
    optimizer=sgd("rate", 0.5),
    steps=STEPS,
    test_loss=lambda p, h: jnp.sum(p),
)
H = {"scale": 0.5, "target": np.array([0.1, 0.2, 0.3]), "rate": 0.1, "outer": 0.3, "kind": "tilted"}


@pytest.mark.parametrize("fold", [None, Fold(1, of=3)])
def test_it_gives_what_the_methods_of_the_package_give(fold: Fold | None) -> None:
    own = evaluate(PROBLEM, H, key=KEY, method=FiniteDifferences(), fold=fold)
    exact = evaluate(PROBLEM, H, key=KEY, method=Reversible(), fold=fold)
    assert (own.status, own.diagnostics, own.message) == (Status.OK, {}, "")
    assert own.value == pytest.approx(exact.value, rel=1e-5)
    assert own.test_loss == pytest.approx(exact.test_loss, rel=1e-5)
    assert own.standard_error == pytest.approx(exact.standard_error, rel=1e-5)
    assert (own.held_back is None) == (fold is None)
    if own.held_back is not None:
        assert own.held_back == pytest.approx(exact.held_back, rel=1e-5)
        assert own.held_back_errors == pytest.approx(exact.held_back_errors, rel=1e-5)
    assert own.usable_gradient is not None
    assert exact.gradient is not None
    assert own.usable_gradient.keys() == exact.gradient.keys()
    for name, slope in exact.gradient.items():
        np.testing.assert_allclose(own.usable_gradient[name], slope, rtol=0.02, atol=1e-3)
    assert own.cost.gradient_evaluations == STEPS * (1 + 2 * 6)


def test_what_it_inherits() -> None:
    """The parameters whose loss is the value, trained in floats; a cost; and no checkpoints."""
    method = FiniteDifferences()
    params = method.params(PROBLEM, H, key=KEY)
    value = evaluate(PROBLEM, H, key=KEY, method=method, gradient_below=-math.inf).value
    assert jnp.mean(PROBLEM.valid_loss(params, H)) == pytest.approx(value, rel=1e-5)
    assert method.cost(PROBLEM, 7) == 7
    space: Space = {"rate": Float(0.01, 1.0)}
    assert method.value(PROBLEM, H, key=KEY, space=space, left=b"") == pytest.approx(value, rel=1e-5)
    with pytest.raises(ValueError, match="FiniteDifferences has no checkpoints to go on from; leave checkpoint out"):
        evaluate(PROBLEM, H, key=KEY, method=method, checkpoint=b"")


@dataclass(frozen=True)
class Descent(Method):
    """The slope of the validation loss along the last training gradient, which is T1-T2 of a user's own."""

    def evaluate(self, problem: TrainingProblem, hyperparameters: Any, key: jax.Array, request: Request) -> Evaluation:
        dynamic, static = split(hyperparameters, request.space)
        seen = read_by_losses(problem, hyperparameters, request.space)
        refuse_unseen("Descent", tuned(hyperparameters, request.space), seen, "use Reversible()")

        def fitted(params: Any, h: dict[str, Any]) -> jax.Array:
            return fitted_loss(problem, params, {**h, **dict(static)}, left_out(request.fold))

        def slope(params: Any, h: dict[str, Any]) -> Any:
            _, step_key = jax.random.split(key)
            whole, step = {**h, **dict(static)}, jnp.int32(problem.steps - 1)
            return jax.grad(lambda params: step_loss(problem, params, None, whole, step_key, step)[0])(params)

        def differentiate(params: Any) -> Derived:
            along, direct = jax.grad(fitted, argnums=(0, 1))(params, dynamic)
            (mixed,) = jax.vjp(lambda h: slope(params, h), dynamic)[1](along)
            return Derived({name: direct[name] - mixed[name] for name in seen}, 3.0, {"mine": True})

        return after_training(problem, request, lambda: trained(problem, static, dynamic, key), differentiate)


def test_a_method_that_looks_at_the_end_of_training() -> None:
    space: Space = {"target": Float(-1.0, 1.0, shape=(3,)), "outer": Float(0.0, 1.0)}
    own, package = Descent(), Implicit(solver=Identity())
    found, expected = (evaluate(PROBLEM, H, key=KEY, method=method, space=space) for method in (own, package))
    assert (found.value, found.status, found.test_loss) == (expected.value, expected.status, expected.test_loss)
    assert found.gradient is not None
    assert expected.gradient is not None
    assert found.gradient.keys() == expected.gradient.keys() == space.keys()
    for name, slope in expected.gradient.items():
        np.testing.assert_allclose(found.gradient[name], slope, rtol=1e-5)
    assert found.cost.gradient_evaluations == STEPS + 3
    assert found.diagnostics == {"steps": STEPS, "exact": None, "mine": True}
    with pytest.raises(ValueError, match=r"Descent cannot tune scale, rate: use Reversible\(\)"):
        evaluate(PROBLEM, H, key=KEY, method=own)


def test_it_takes_over_where_a_reversal_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypergrad_search.hypergradient import reversible

    monkeypatch.setattr(reversible, "_is_start", lambda program, state, initial: False)
    problem = replace(PROBLEM)  # the engine remembers which problems were not reversed exactly
    fold = Fold(1, of=3)
    result = evaluate(problem, H, key=KEY, method=Reversible(fallback=FiniteDifferences()), fold=fold)
    own = evaluate(problem, H, key=KEY, method=FiniteDifferences(), fold=fold)
    assert (result.value, result.held_back) == (own.value, own.held_back)
    assert result.gradient is not None
    assert own.gradient is not None
    assert all((result.gradient[name] == slope).all() for name, slope in own.gradient.items())
    assert result.diagnostics["exact"] is False


def test_a_method_must_say_how_it_evaluates() -> None:
    class Nothing(Method):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()  # type: ignore[abstract]  # wrong on purpose
    assert Unrolled().continues is False
