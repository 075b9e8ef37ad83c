"""`freeze-thaw` pauses and resumes training runs exactly, pays for each step once, and finds good configurations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes
from hypergrad_search import Categorical, Evaluation, Float, HostBatches, Int, Space, TrainingProblem, evaluate, sgd
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.hypergradient import Progress
from hypergrad_studies import optuna_backend
from hypergrad_studies.freeze_thaw import (
    STARTUP,
    FreezeThawSampler,
    Runs,
    StretchPruner,
    expected_entropies,
    next_run,
    stretch,
    to_end,
)
from hypergrad_studies.learning_curves import Array, Curves, Forecast
from hypergrad_studies.obstacles import obstacle
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import PRUNED, Record
from hypergrad_studies.resuming import Resuming
from hypergrad_studies.rivals import DEAR
from hypergrad_studies.spending import Budget
from hypergrad_studies.tasks import TrainingTask

RIVAL = DEAR["freeze-thaw"]
STEPS = 40
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = X @ np.array([1.0, -0.5, 0.3], np.float32)


def load(step: int) -> tuple[Any, Any]:
    rows = (np.arange(10) + 10 * step) % 40
    return X[rows], Y[rows]


def train_loss(params: Any, h: Mapping[str, Any], batch: Any, key: jax.Array) -> jax.Array:
    penalty = jnp.abs if h.get("penalty") == "sizes" else jnp.square
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2) + jnp.sum(
        h["l2"] * penalty(params["w"]) ** h.get("power", 1)
    )


def valid_loss(params: Any, h: Mapping[str, Any]) -> jax.Array:
    return jnp.mean((jnp.asarray(X[40:]) @ params["w"] - jnp.asarray(Y[40:])) ** 2)


SPACE = {"rate": Float(1e-3, 0.3, log=True), "l2": Float(1e-4, 1.0, log=True)}


def small(batches: Any, space: Space, valid_loss: Callable[..., Any] = valid_loss) -> TrainingTask:
    """Return a task of linear regression."""
    problem = TrainingProblem(
        init=lambda key, h: {"w": jax.random.normal(key, (3,))},
        train_loss=train_loss,
        valid_loss=valid_loss,
        batches=batches,
        optimizer=sgd("rate", 0.5),
        steps=STEPS,
    )
    return TrainingTask("small", problem, space)


def on_device(step: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = (jnp.arange(10, dtype=jnp.int32) + 10 * step) % 40
    return jnp.asarray(X)[rows], jnp.asarray(Y)[rows]


def run(task: TrainingTask, budget: int, seed: int = 0) -> list[Record]:
    seen: list[Record] = []
    optuna_backend.run(task, RIVAL, seed, Budget(budget), seen.append)
    return seen


def what_was_found(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.value, r.test_value, r.gradient_evaluations, r.status) for r in records]


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """Return the studies that are made."""
    made: list[optuna.Study] = []
    create = optuna.create_study

    def keep(**settings: Any) -> optuna.Study:
        made.append(create(**settings))
        return made[-1]

    monkeypatch.setattr(optuna, "create_study", keep)
    return made


def curves_of(study: optuna.Study) -> list[list[FrozenTrial]]:
    """Return the trials of each configuration."""
    curves: dict[Any, list[FrozenTrial]] = {}
    for trial in study.trials:
        curves.setdefault(tuple(trial.params.items()), []).append(trial)
    return list(curves.values())


def test_what_is_paused_and_resumed_has_the_losses_of_what_is_not_to_the_bit(studies: list[optuna.Study]) -> None:
    task = PROBLEMS["digits-mlp"]()
    records = run(task, 500, seed=3)
    problem, space = task.posed()
    curves = curves_of(studies[0])
    whole = [curve for curve in curves if curve[-1].state is TrialState.COMPLETE]
    assert whole
    for curve in (*whole, max((c for c in curves if c not in whole), key=len)):
        losses: dict[int, float] = {}

        def note(now: Progress, losses: dict[int, float] = losses) -> None:
            losses[now.step] = now.loss

        found = evaluate(
            problem,
            curve[0].params,
            method=DEFAULT_METHOD,
            key=jax.random.key(3),
            gradient_below=-math.inf,
            report=note,
            report_every=10,
            space=space,
        )
        paused = {t.last_step: t.value for t in curve if t.state is TrialState.PRUNED}
        assert len(paused) > 1
        assert paused == {step: loss for step, loss in losses.items() if step in paused}
        if curve in whole:
            record = records[curve[-1].number]
            assert (record.value, record.test_value, record.status) == (found.value, found.test_loss, "ok")
            assert list(paused) == list(range(10, 100, 10))


def test_an_evaluation_goes_on_where_the_last_one_at_its_point_was_pruned() -> None:
    problem, space = small(on_device, SPACE).posed()
    points = [{"rate": 0.1, "l2": 0.01}, {"rate": 0.2, "l2": 0.01}]
    method = Resuming(DEFAULT_METHOD)
    steps: list[int] = []

    def stop(now: Progress) -> None:
        steps.append(now.step)
        raise optuna.TrialPruned

    def go_on(point: dict[str, float], report: Callable[[Progress], None]) -> Evaluation:
        key = jax.random.key(0)
        return evaluate(problem, point, method=method, key=key, report=report, report_every=10, space=space)

    for point in (*points, *points):
        with pytest.raises(optuna.TrialPruned):
            go_on(point, stop)
    assert steps == [10, 10, 20, 20]
    found = go_on(points[0], lambda now: steps.append(now.step))
    assert steps[4:] == [30]
    whole = evaluate(problem, points[0], method=DEFAULT_METHOD, key=jax.random.key(0), space=space)
    assert (found.value, found.cost.gradient_evaluations) == (whole.value, whole.cost.gradient_evaluations)
    go_on(points[0], lambda now: steps.append(now.step))
    assert steps[5:] == [10, 20, 30]  # it has ended, and is trained anew


def test_each_step_is_trained_and_paid_for_once(studies: list[optuna.Study]) -> None:
    loaded: list[int] = []

    def noting(step: int) -> tuple[Any, Any]:
        loaded.append(step)
        return load(step)

    of_trials: list[set[int]] = []
    seen: list[Record] = []

    def on_record(record: Record) -> None:
        of_trials.append(set(loaded))
        loaded.clear()
        seen.append(record)

    task = small(HostBatches(noting, ahead=0), SPACE)
    optuna_backend.run(task, RIVAL, 0, Budget(8 * STEPS), on_record)
    assert any(r.status == "ok" for r in seen)
    for curve in curves_of(studies[0]):
        for i, trial in enumerate(curve):
            assert of_trials[trial.number] <= set(range(4 * i, 4 * (i + 1)))  # some batches are still at hand
    assert [r.gradient_evaluations for r in seen] == list(range(4, 8 * STEPS + 1, 4))


@pytest.mark.parametrize("budget", [10, 100, 110])
def test_the_budget_is_not_overspent(budget: int) -> None:
    seen = run(small(on_device, SPACE), budget)
    assert seen[-1].gradient_evaluations == 4 * math.ceil(budget / 4)


def test_the_last_of_the_budget_trains_what_has_begun_to_the_end() -> None:
    """With two training runs' worth, one is for ten beginnings, and the other for the end of the best of them."""
    seen = run(small(on_device, SPACE), 2 * STEPS)
    assert [r.status for r in seen] == [PRUNED] * 18 + ["ok", PRUNED]


def test_seeds_repeat() -> None:
    first, again, other = (what_was_found(run(small(on_device, SPACE), 3 * STEPS, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_training_that_diverges_costs_and_does_not_count(studies: list[optuna.Study]) -> None:
    seen = run(small(on_device, {**SPACE, "rate": Float(1e-3, 1e6, log=True)}), 8 * STEPS)
    values = [t.value for t in studies[0].trials]
    assert any(value is None or value > 1e6 for value in values)
    found = min(r.value for r in seen if r.sound)
    assert found < 0.1
    costs = np.diff([0, *(r.gradient_evaluations or 0 for r in seen)])
    assert (costs > 0).all()


def test_where_all_training_diverges_the_search_goes_on() -> None:
    seen = run(small(on_device, SPACE, lambda params, h: jnp.float32(jnp.nan) * params["w"][0]), 3 * STEPS)
    assert seen[-1].gradient_evaluations == 3 * STEPS
    assert not any(r.sound for r in seen)


def test_parameters_of_all_kinds_are_searched(studies: list[optuna.Study]) -> None:
    space: Space = {
        "rate": Float(1e-3, 0.3, log=True),
        "l2": Float(1e-4, 1.0, shape=(3,)),
        "penalty": Categorical(["squares", "sizes"]),
        "power": Int(1, 2),
    }
    run(small(on_device, space), 4 * STEPS)
    trials = studies[0].trials
    assert trials[0].params.keys() == {"rate", "l2[0]", "l2[1]", "l2[2]", "penalty", "power"}
    assert STARTUP < len(curves_of(studies[0])) < len(trials) == 40


def test_a_space_of_few_points_is_searched(studies: list[optuna.Study]) -> None:
    """All three points are trained to the end, and then something is trained again."""
    few: Space = {"rate": Float(0.1, 0.1), "l2": Float(0.01, 0.01), "penalty": Categorical(["squares", "sizes", ""])}
    seen = run(small(on_device, few), 4 * STEPS)
    assert len({tuple(t.params.items()) for t in studies[0].trials if t.state is TrialState.COMPLETE}) == 3
    assert (np.diff([0, *(r.gradient_evaluations or 0 for r in seen)]) == 4).all()


@pytest.mark.slow
def test_hundreds_of_numbers_are_searched(studies: list[optuna.Study]) -> None:
    run(PROBLEMS["digits-l2"](), 100)
    assert len(studies[0].trials[-1].params) == 650
    assert len(curves_of(studies[0])) < len(studies[0].trials)


def toy_search(seed: int, runs: int) -> tuple[float, int]:
    """Return the best loss after the last step that was found in so many runs' worth, and how many were begun.

    Its curves fall at the same rate from heights that tell nothing of where they end, nor of the heights nearby.
    """
    steps = 20
    study = optuna.create_study(
        sampler=FreezeThawSampler(seed, steps=steps, budget=runs * steps), pruner=StretchPruner()
    )
    reached: dict[tuple[float, float], int] = {}

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        end = (x - 0.3) ** 2 + (y - 0.8) ** 2
        start = reached.get((x, y), 0)
        stop = reached[x, y] = start + stretch(steps)
        loss = end + (1 + 1e4 * x % 1) * math.exp(-0.2 * stop)
        trial.set_user_attr(attributes.COST, stop)  # of all stretches so far
        if stop < steps:
            trial.report(loss, stop)
            assert trial.should_prune()
            raise optuna.TrialPruned
        return loss

    while sum(t.user_attrs[attributes.COST] for t in study.trials) < runs * steps:
        study.optimize(objective, n_trials=1)
    assert sum(t.user_attrs[attributes.COST] for t in study.trials) == runs * steps
    return study.best_value, len(reached)


def at_random(seed: int, runs: int) -> float:
    x, y = np.random.default_rng(seed).random((2, runs))
    end = (x - 0.3) ** 2 + (y - 0.8) ** 2
    return float((end + (1 + 1e4 * x % 1) * math.exp(-0.2 * 20)).min())


def test_it_finds_better_configurations_than_whole_runs_at_random_do() -> None:
    found, begun = zip(*(toy_search(seed, 10) for seed in range(3)), strict=True)
    assert max(found) < np.median([at_random(seed, 10) for seed in range(100)])
    assert min(begun) > 10


def known(losses: Array, reached: Array) -> Runs:
    """Return runs of ten stretches, far from one another, which were seen once each."""
    points = np.linspace(0, 1, len(losses))[:, None]
    times = np.asarray(reached, np.float64)
    logarithms = np.log([0.01, 1.0, 1.0, 1.0, 1.0, 1e-6])
    return Runs(Forecast(Curves(points, times[:, None], losses[:, None]), logarithms), times, 10.0)


def test_the_best_forecast_that_can_still_end_is_trained_to_the_end() -> None:
    runs = known(np.array([-1.0, 0.0, 1.0, -2.0]), np.array([1, 5, 9, 10]))
    assert [to_end(runs, affordable) for affordable in (10, 9, 8, 5, 4, 1, 0.5)] == [0, 0, 1, 1, 2, 2, None]


def test_what_has_ended_does_not_go_on() -> None:
    """Where the space has no other points, nothing is left to do."""
    runs = known(np.array([-1.0, 0.0, 1.0]), np.array([10, 10, 4]))
    rng = np.random.default_rng(0)

    def nearest(point: Array) -> Array:
        points = runs.forecast.curves.points
        near: Array = points[np.abs(points - point).sum(axis=1).argmin()]
        return near

    assert next_run(runs, nearest, rng) == 2
    assert next_run(replace(runs, reached=np.full(3, 10.0)), nearest, rng) is None


def test_the_expected_entropy_is_that_of_two_normal_losses() -> None:
    """One of two independent losses is seen, exactly or with noise as large as itself, or something else is."""
    rng = np.random.default_rng(0)
    with_next = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = expected_entropies(np.zeros(2), np.eye(2), with_next, np.array([1.0, 2.0, 1.0]), rng)
    z = np.random.default_rng(1).normal(size=100_000)

    def expected(seen: float) -> float:
        """Return the mean entropy of which is lower, where this share of the variance of one is seen."""
        at = math.sqrt(seen) * z / math.sqrt(2 - seen)
        p = np.array([0.5 * math.erfc(a / math.sqrt(2)) for a in at])
        return float(-np.mean(p * np.log(p) + (1 - p) * np.log(1 - p)))

    np.testing.assert_allclose(found, [expected(1.0), expected(0.5), math.log(2)], atol=0.03)


def test_it_is_refused_where_it_cannot_resume() -> None:
    def reason(problem: str, backend: str = "optuna", budget: str = "1000") -> str:
        return str(obstacle(RIVAL, PROBLEMS[problem](), backend, Budget.parse(budget)))

    assert reason("digits-mlp") == "None"
    assert reason("digits-noisy").endswith("digits-noisy needs a new one each trial; leave out one of them")
    assert reason("digits-mlp", budget="60s") == "freeze-thaw needs a budget in gradient evaluations; leave it out"
    assert reason("digits-mlp", backend="ray").startswith("freeze-thaw does not run in ray")
