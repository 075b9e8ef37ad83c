"""Studies whose trials are trained several at a time are studies like others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optuna
import pytest
from optuna.samplers import GridSampler, RandomSampler
from optuna.trial import TrialState

from hypergrad_optuna import HypergradSampler, Objective, attributes, best_trial, optimize_batched
from hypergrad_search import Categorical, Float, Hypernet, Reversible, Space, TrainingProblem, from_function, sgd

SPACE: Space = {"rate": Float(1e-3, 0.4, log=True), "momentum": Float(0.6, 0.95), "target": Float(-1, 1, shape=(2, 2))}


def make(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jax.random.normal(key, (2, 2)),
        "train_loss": lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        "valid_loss": lambda p, h: jnp.sum((p - 0.5) ** 2),
        "test_loss": lambda p, h: jnp.sum((p - 0.4) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", "momentum", dampening=True),
        "steps": 20,
    }
    return TrainingProblem(**{**parts, **changes})


PROBLEM = make()


def study(seed: int = 0, **more: Any) -> optuna.Study:
    return optuna.create_study(sampler=HypergradSampler(seed=seed), **more)


def test_trials_are_what_the_objective_gives_and_steps_are_taken() -> None:
    found, objective = study(), Objective(PROBLEM, SPACE)
    optimize_batched(found, objective, batch_size=4, n_trials=22)
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 22
    for trial in found.trials:
        assert objective(trial) == pytest.approx(trial.value, rel=1e-5, abs=1e-7)
    steps = [trial for trial in found.trials if attributes.wanted(trial).parent is not None]
    assert len(steps) >= 10
    assert any(attributes.GRADIENT in trial.user_attrs for trial in steps)
    first, best = found.trials[0].value, best_trial(found).value
    assert first is not None
    assert best is not None
    assert best < 0.1 * first
    assert {trial.user_attrs["hypergrad:exact"] for trial in steps if attributes.GRADIENT in trial.user_attrs} == {True}


def test_no_two_of_a_batch_take_the_same_step() -> None:
    found = study()
    optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=4, n_trials=24)
    for start in range(0, 24, 4):
        points = [repr(trial.params) for trial in found.trials[start : start + 4]]
        assert len(set(points)) == 4


def test_another_sampler_gets_no_gradients() -> None:
    found = optuna.create_study(sampler=RandomSampler(seed=0))
    optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=2, n_trials=4)
    assert all(attributes.GRADIENT not in trial.user_attrs for trial in found.trials)
    assert [trial.user_attrs["hypergrad:cost"] for trial in found.trials] == [20] * 4


def test_each_trial_may_have_its_own_seed() -> None:
    found, objective = study(), Objective(PROBLEM, SPACE, reseed=True)
    found.enqueue_trial({"rate": 0.001, "momentum": 0.8, "target": 0.0})
    found.enqueue_trial({"rate": 0.001, "momentum": 0.8, "target": 0.0})
    optimize_batched(found, objective, batch_size=2, n_trials=2)
    assert found.trials[0].value != found.trials[1].value
    for trial in found.trials:
        assert objective(trial) == pytest.approx(trial.value, rel=1e-5)


def test_values_that_are_refused_do_the_others_no_harm() -> None:
    def init(key: jax.Array, h: dict[str, Any]) -> jax.Array:
        if h["kind"] == "bad":
            raise ValueError("not this kind")
        return jnp.ones((2, 2))

    found = study()
    for kind in ("good", "bad", "good"):
        found.enqueue_trial({"kind": kind})
    objective = Objective(make(init=init), {**SPACE, "kind": Categorical(["good", "bad"])})
    with pytest.warns(UserWarning, match="a trial failed, and the search goes on; .* not this kind"):
        optimize_batched(found, objective, batch_size=4, n_trials=3)
    assert [trial.user_attrs["hypergrad:status"] for trial in found.trials] == ["ok", "refused", "ok"]
    assert found.trials[1].value == math.inf


def test_an_error_ends_the_batch_and_fails_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    found, objective = study(), Objective(PROBLEM, SPACE)

    def breaks(*args: object) -> None:
        raise OSError("mine")

    monkeypatch.setattr(type(objective.hosted), "evaluate_batch", breaks)
    with pytest.raises(OSError, match="mine"):
        optimize_batched(found, objective, batch_size=3, n_trials=9)
    assert [trial.state for trial in found.trials] == [TrialState.FAIL] * 3


def test_a_batch_that_fails_as_such_is_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: object, **kwargs: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("hypergrad_search.hosting.evaluate_batch", too_large)
    found = study()
    with pytest.warns(UserWarning, match="a batch failed, and its trials were evaluated one by one; .*RESOURCE_EXH"):
        optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=2, n_trials=2)
    assert [trial.user_attrs["hypergrad:status"] for trial in found.trials] == ["ok", "ok"]


@pytest.mark.filterwarnings("ignore:Argument ``heartbeat_interval`` is an experimental feature")
def test_trials_of_a_batch_give_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}", heartbeat_interval=60)
    found, alive, record = study(storage=storage), set(), storage.record_heartbeat

    def noted(trial_id: int) -> None:
        alive.add(trial_id)
        record(trial_id)

    monkeypatch.setattr(storage, "record_heartbeat", noted)
    optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=2, n_trials=4)
    assert alive == {trial._trial_id for trial in found.trials}


def test_a_sampler_that_stops_the_study_ends_it_and_loses_no_trial() -> None:
    grid = GridSampler({"rate": [0.01, 0.1, 0.2], "momentum": [0.7, 0.8]}, seed=0)
    found = optuna.create_study(sampler=grid)
    space: Space = {name: SPACE[name] for name in ("rate", "momentum")}
    problem = make(train_loss=lambda p, h, batch, key: jnp.sum(p**2))
    optimize_batched(found, Objective(problem, space), batch_size=4, n_trials=100)
    assert len(found.trials) == 8  # of six points, in batches of four
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE}


def test_a_trial_that_cannot_be_told_leaves_the_others_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tell = study(), optuna.Study.tell

    def stumbles(self: optuna.Study, trial: optuna.Trial, *args: Any, **kwargs: Any) -> Any:
        if trial.number == 1:
            raise OSError("the database is away")
        return tell(self, trial, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "tell", stumbles)
    with pytest.raises(OSError, match="the database is away"):
        optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=4, n_trials=4)
    states = [trial.state for trial in found.trials]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.COMPLETE, TrialState.COMPLETE]


def test_a_key_of_the_old_kind_is_batched_too() -> None:
    found = study()
    optimize_batched(found, Objective(PROBLEM, SPACE, key=jax.random.PRNGKey(0)), batch_size=2, n_trials=2)
    # A batch that fails as such warns, which is an error here.
    assert [trial.user_attrs["hypergrad:status"] for trial in found.trials] == ["ok", "ok"]


def test_a_time_limit_ends_before_the_next_batch() -> None:
    found = study()
    optimize_batched(found, Objective(PROBLEM, SPACE), batch_size=2, timeout=0.0)
    assert found.trials == []


OBJECTIVE = Objective(PROBLEM, SPACE)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "study": (lambda: optimize_batched(None, OBJECTIVE, batch_size=2, n_trials=2), "study must be an optuna.Study"),  # type: ignore[arg-type]  # it is wrong on purpose
    "objective": (lambda: optimize_batched(study(), len, batch_size=2, n_trials=2), "objective must be an Objective"),  # type: ignore[arg-type]  # it is wrong on purpose
    "size": (lambda: optimize_batched(study(), OBJECTIVE, batch_size=0, n_trials=2), "batch_size must be .* from 1"),
    "limits": (lambda: optimize_batched(study(), OBJECTIVE, batch_size=2), "give n_trials or timeout"),
    "reports": (
        lambda: optimize_batched(study(), Objective(PROBLEM, SPACE, report_every=5), batch_size=2, n_trials=2),
        "trials of a batch do not report on their way",
    ),
    "method": (
        lambda: optimize_batched(
            study(), Objective(PROBLEM, SPACE, method=Reversible(last=3)), batch_size=2, n_trials=2
        ),
        "batches need method=Reversible\\(\\) without last",
    ),
    "hypernet": (
        lambda: optimize_batched(study(), Objective(PROBLEM, SPACE, method=Hypernet()), batch_size=2, n_trials=2),
        "batches need method=Reversible\\(\\) without last, got Hypernet",
    ),
    "function": (
        lambda: optimize_batched(
            study(), Objective(from_function(lambda h: h["x"] ** 2), {"x": Float(0, 1)}), batch_size=2, n_trials=2
        ),
        "batches need a TrainingProblem, got a function",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
