"""What cannot be run backwards is evaluated by the fallback, with all that was asked for, and never without a trace."""

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Evaluation,
    Float,
    Fold,
    Hypernet,
    Method,
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adam,
    adamw,
    evaluate,
    proximal_sgd,
    sgd,
)
from hypergrad_search.hypergradient import Progress, reversible
from hypergrad_search.hypergradient.base import Request

KEY = jax.random.key(0)
STEPS = 12
H = {"rate": 0.05, "decay": 0.5, "shrink": 0.1}


def problem_of(optimizer: Optimizer, dtype: Any = jnp.float32) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: {"w": jnp.linspace(-1.0, 1.0, 4).astype(dtype)},
        train_loss=lambda p, h, batch, key: jnp.sum(jnp.square(p["w"].astype(jnp.float32) - 0.3)),
        valid_loss=lambda p, h: jnp.square(p["w"].astype(jnp.float32) - 0.1),
        batches=lambda step: None,
        optimizer=optimizer,
        steps=STEPS,
    )


SGD = problem_of(sgd("rate", "decay"))
ADAM = problem_of(adam("rate", "decay", 0.9))
ADAMW = problem_of(adamw("rate", 0.8, "decay", weight_decay="shrink"))
WITH_FALLBACK = Reversible(fallback=Unrolled())


@pytest.mark.parametrize(
    ("problem", "change", "name"),
    [
        (SGD, {"decay": 0.0}, "momentum"),
        (SGD, {"decay": 1e-3}, "momentum"),
        (SGD, {"decay": np.linspace(0.0, 0.9, STEPS)}, "momentum"),
        (ADAM, {"decay": 0.0}, "b1"),
        (ADAMW, {"decay": 0.0}, "b2"),
        (ADAMW, {"shrink": 20.0}, r"1 - learning_rate \* weight_decay"),
        (ADAMW, {"shrink": 30.0}, r"1 - learning_rate \* weight_decay"),
    ],
)
def test_settings_that_cannot_be_reversed(problem: TrainingProblem, change: dict[str, Any], name: str) -> None:
    h = {**H, **change}
    with pytest.raises(ValueError, match=f"{name} must be from") as refused:
        evaluate(problem, h, key=KEY)
    found = evaluate(problem, h, key=KEY, method=WITH_FALLBACK)
    expected = evaluate(problem, h, key=KEY, method=Unrolled())
    assert np.isfinite(found.value)
    assert (found.status, found.message, found.value) == (expected.status, expected.message, expected.value)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.gradient, expected.gradient))
    assert found.diagnostics == {"steps": STEPS, "exact": False, "fallback": str(refused.value)}
    assert found.cost.gradient_evaluations == expected.cost.gradient_evaluations
    params = WITH_FALLBACK.params(problem, h, key=KEY)
    assert jnp.mean(problem.valid_loss(params, h)) == pytest.approx(found.value, rel=1e-6)


def test_a_setting_that_is_nan_is_a_failed_run() -> None:
    for problem in (SGD, ADAM, ADAMW):
        found = evaluate(problem, {**H, "decay": math.nan}, key=KEY, method=WITH_FALLBACK)
        assert (found.status, found.value) == (Status.NAN, math.inf)
        assert found.diagnostics["fallback"].startswith(("momentum must be", "b1 must be", "b2 must be"))


@pytest.mark.parametrize(("problem", "name"), [(ADAM, "b1"), (ADAMW, "b2")])
def test_a_beta_of_1_divides_by_0_as_in_optax(problem: TrainingProblem, name: str) -> None:
    found = evaluate(problem, {**H, "decay": 1.0}, key=KEY, method=WITH_FALLBACK)
    assert (found.status, found.value, found.diagnostics["exact"]) == (Status.NAN, math.inf, None)
    assert found.message.startswith(
        r"there is NaN in the update of params['w'] at step 1, and none in its gradient: change the settings, which are"
    )
    assert f"{name} 1, " in found.message
    assert evaluate(problem, {**H, "decay": 1.0}, key=KEY, method=Unrolled()).status is Status.NAN


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (problem_of(sgd("rate", "decay", nesterov=True)), r"sgd\(nesterov=True\) loses bits"),
        (problem_of(proximal_sgd("rate", momentum="decay")), "proximal_sgd loses bits"),
        (problem_of(sgd("rate", "decay"), jnp.bfloat16), r"params\['w'\] must be float32 .* got bfloat16"),
    ],
)
def test_a_problem_that_cannot_be_reversed_is_said_once(problem: TrainingProblem, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        evaluate(problem, H, key=KEY)
    with pytest.warns(
        UserWarning, match=f"Unrolled differentiates this problem in place of Reversible. .*{reason}"
    ) as warned:
        found = evaluate(problem, H, key=KEY, method=WITH_FALLBACK)
    assert warned[0].filename == __file__
    expected = evaluate(problem, H, key=KEY, method=Unrolled())
    assert (found.value, found.gradient) == (expected.value, expected.gradient)
    assert found.diagnostics["exact"] is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(problem, H, key=KEY, method=WITH_FALLBACK).value == found.value
        WITH_FALLBACK.params(problem, H, key=KEY)


@dataclass(frozen=True)
class Recording(Method):
    """Remembers what it was asked for."""

    requests: list[Request] = field(default_factory=list)

    def evaluate(self, problem: TrainingProblem, hyperparameters: Any, key: jax.Array, request: Request) -> Evaluation:
        self.requests.append(request)
        return Unrolled().evaluate(problem, hyperparameters, key, request)


SPACE = {"rate": Float(0.01, 1.0), "decay": Float(0.0, 1.0), "shrink": Float(0.0, 1.0)}


def report(now: Progress) -> None:
    pass


def test_the_fallback_is_asked_for_all_that_was_asked_for() -> None:
    recording = Recording()
    found = evaluate(
        SGD,
        {**H, "decay": 0.0},
        key=KEY,
        method=Reversible(fallback=recording),
        gradient_below=-1.0,
        fold=Fold(1, of=2),
        report=report,
        report_every=3,
        space=SPACE,
    )
    assert recording.requests == [Request(-1.0, Fold(1, of=2), report, 3, SPACE, None)]
    assert found.gradient is None
    assert found.cost.gradient_evaluations == STEPS


@pytest.mark.filterwarnings("ignore:nothing in this problem reads")
def test_a_repeated_evaluation_keeps_what_was_asked_for_and_reports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reversible, "_is_start", lambda program, state, initial: False)
    recording, problem = Recording(), problem_of(sgd("rate", "decay"))
    reported: list[int] = []
    found = evaluate(
        problem,
        H,
        key=KEY,
        method=Reversible(fallback=recording),
        gradient_below=100.0,
        fold=Fold(1, of=2),
        report=lambda now: reported.append(now.step),
        report_every=5,
        space=SPACE,
    )
    assert reported == [5, 10]
    (asked,) = recording.requests
    assert replace(asked, report=None) == Request(fold=Fold(1, of=2), report_every=5, space=SPACE)
    assert asked.report is not None
    for step in (10, STEPS + 1):  # reports that were made are not made again
        asked.report(Progress(step, 0.0))
    assert reported == [5, 10, STEPS + 1]
    assert found.gradient is not None
    # A run there and back, another with one more gradient for each step back, and the fallback's.
    assert found.cost.gradient_evaluations == (4 + 5 + 4) * STEPS
    assert "did not end at its initial state" in found.diagnostics["fallback"]


def test_a_fallback_that_moves_the_hyperparameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fallback must train at the given .* and Hypernet moves them"):
        Reversible(fallback=Hypernet())
