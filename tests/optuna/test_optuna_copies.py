"""Trials made from other trials: retried after their worker died, enqueued again, added, or copied to another study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState, create_trial

from hypergrad_optuna import (
    HypergradSampler,
    attributes,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is experimental"),
    pytest.mark.filterwarnings("ignore:Argument .* is an experimental feature"),
]


def value_of(hyperparameters: dict[str, Any]) -> float:
    return float(np.sum((hyperparameters["array"] - [0.1, 0.3, 0.5]) ** 2) + hyperparameters["number"])


def bowl(trial: Any) -> float:
    h = {"array": suggest_array(trial, "array", 3, -1, 1), "number": trial.suggest_float("number", 0, 1)}
    value = value_of(h)
    if wants_gradient(trial, value):
        report_gradient(trial, {"array": 2 * (h["array"] - [0.1, 0.3, 0.5]), "number": 1.0})
    return value


def deadly(trial: optuna.Trial) -> float:
    """Report what is wrong, and die, in the first step that moves an array."""
    array = suggest_array(trial, "array", 3, -1, 1)
    if not np.ptp(array):
        return bowl(trial)
    trial.suggest_float("number", 0, 1)
    report_gradient(trial, {"array": np.full(3, 7.0)}, cost=9.0)
    trial.set_user_attr(attributes.STATUS, "overfitted")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def storage_at(path: str) -> RDBStorage:
    again = RetryHeartbeatStaleTrialCallback()
    return RDBStorage(f"sqlite:///{path}", heartbeat_interval=1, grace_period=1, heartbeat_stale_trial_callback=again)


def begun(trials: int, sampler: BaseSampler | None = None) -> optuna.Study:
    study = optuna.create_study(sampler=sampler or HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=trials)
    return study


def step_of(study: optuna.Study) -> FrozenTrial:
    return next(t for t in study.trials if attributes.wanted(t).parent and np.ptp(hyperparameters_of(t)["array"]))


def same(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("sampler", [HypergradSampler(seed=0), RandomSampler(seed=0)], ids=lambda s: type(s).__name__)
def test_a_trial_whose_worker_was_killed_is_run_again_as_it_was(sampler: BaseSampler, tmp_path: Path) -> None:
    path = str(tmp_path / "study.db")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_optuna_copies as t; s = t.optuna.create_study("
        "study_name='s', storage=t.storage_at(sys.argv[2]), sampler=t.HypergradSampler(seed=0)); "
        "s.optimize(t.deadly, n_trials=30)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(Path(__file__).parent), path]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    time.sleep(2.5)
    study = optuna.load_study(study_name="s", storage=storage_at(path), sampler=sampler)
    study.optimize(bowl, n_trials=1)
    lost, again = study.trials[-2:]
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert np.ptp(hyperparameters_of(again)["array"]) > 0
    assert same(hyperparameters_of(again), hyperparameters_of(lost))
    assert again.value == value_of(hyperparameters_of(again))
    if isinstance(sampler, HypergradSampler):
        assert attributes.wanted(again) == attributes.wanted(lost), "it takes the step that was lost"
        assert again.user_attrs[attributes.COST] is None
        assert again.user_attrs[attributes.STATUS] is None
        gradient = again.user_attrs[attributes.GRADIENT]
        assert gradient is None or gradient["number"] == 1.0
        study.optimize(bowl, n_trials=10)
        assert any(attributes.wanted(t).parent == str(again.number) for t in study.trials) == (gradient is not None)


@pytest.mark.parametrize("sampler", [HypergradSampler(seed=1), RandomSampler(seed=1)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("first", [HypergradSampler(seed=0), RandomSampler(seed=0)], ids=lambda s: type(s).__name__)
def test_a_trial_enqueued_again_has_the_same_value(first: BaseSampler, sampler: BaseSampler) -> None:
    """From any sampler to any, in the same study and in another."""
    source = begun(12, first)
    copied = step_of(source) if isinstance(first, HypergradSampler) else source.trials[5]
    for study in (source, optuna.create_study()):
        study.sampler = sampler
        study.enqueue_trial(copied.params, user_attrs=copied.user_attrs)
        study.optimize(bowl, n_trials=1)
        again = study.trials[-1]
        assert again.value == copied.value
        assert same(hyperparameters_of(again), hyperparameters_of(copied))
        assert attributes.wanted(again).parent is None


@pytest.mark.parametrize("sampler", [HypergradSampler(seed=1), RandomSampler(seed=1)], ids=lambda s: type(s).__name__)
def test_an_array_may_be_enqueued_whole_by_elements_or_by_its_level(sampler: BaseSampler) -> None:
    study = optuna.create_study(sampler=sampler)
    array = [0.1, 0.2, 0.3]
    study.enqueue_trial({"array": array, "number": 0.0})
    study.enqueue_trial({f"array[{i}]": x for i, x in enumerate(array)} | {"number": 0.0})
    study.enqueue_trial({"array": np.array(array), "number": 0.0})
    study.enqueue_trial({"array": 0.2, "number": 0.0})
    study.optimize(bowl, n_trials=4)
    found = [hyperparameters_of(trial)["array"].tolist() for trial in study.trials]
    assert found == [array] * 3 + [[0.2] * 3]
    assert [t.value for t in study.trials] == [value_of(hyperparameters_of(t)) for t in study.trials]
    study.enqueue_trial({"array": [0.1, 0.2], "number": 0.0})
    with pytest.raises(ValueError, match=r"'array' must be a number, or an array of shape \(3,\), got \[0.1, 0.2\]"):
        study.optimize(bowl, n_trials=1)


def test_other_parameters_with_old_attributes_are_what_counts() -> None:
    study = begun(12)
    step = step_of(study)
    study.enqueue_trial({"array": 0.25, "number": 0.75}, user_attrs={**step.user_attrs, attributes.COST: 1e6})
    study.optimize(
        lambda trial: value_of({"array": suggest_array(trial, "array", 3, -1, 1), "number": 0.75}), n_trials=1
    )
    trial = study.trials[-1]
    assert hyperparameters_of(trial)["array"].tolist() == [0.25] * 3
    assert trial.value == value_of({"array": np.full(3, 0.25), "number": 0.75})
    assert trial.user_attrs[attributes.COST] is None
    assert trial.user_attrs[attributes.GRADIENT] is None
    assert trial.user_attrs["array (array)"] == "3 numbers, 0.25 to 0.25, median 0.25"


def test_a_copied_study_goes_on_as_the_first_would() -> None:
    studies = []
    for copied in (False, True):
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(
            study_name="first", storage=storage, sampler=HypergradSampler(explorer=fixed_points())
        )
        study.optimize(bowl, n_trials=15)
        if copied:
            optuna.copy_study(from_study_name="first", from_storage=storage, to_storage=storage, to_study_name="second")
            sampler = HypergradSampler(explorer=fixed_points())
            study = optuna.load_study(study_name="second", storage=storage, sampler=sampler)
        study.optimize(bowl, n_trials=10)
        studies.append([trial.value for trial in study.trials])
    assert studies[0] == studies[1]


def fixed_points() -> BaseSampler:
    class Fixed(RandomSampler):
        """It chooses by the number of the trial alone."""

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            draw = np.random.default_rng([trial.number, len(param_name)])
            return draw.uniform(param_distribution.low, param_distribution.high)

    return Fixed()


def test_merged_trials_count_and_extend_no_chain_that_is_not_theirs() -> None:
    """Their parents have other numbers here, or none."""
    source, study = begun(20), begun(5)
    for trial in source.trials[10:]:
        study.add_trial(trial)
    added = study.trials[5:]
    assert [attributes.wanted(trial).parent for trial in added] == [None] * 10
    study.optimize(bowl, n_trials=20)
    best = min(added, key=lambda t: t.value or 0.0)
    assert any(attributes.wanted(t).parent == str(best.number) for t in study.trials), "its chain goes on"


def test_a_dead_trial_with_half_of_its_parameters_is_no_step_when_it_runs_again() -> None:
    study = begun(12)
    trial = study.ask()
    suggest_array(trial, "array", 3, -1, 1)
    while attributes.wanted(trial).parent is None:
        study.tell(trial, bowl(trial))
        trial = study.ask()
        suggest_array(trial, "array", 3, -1, 1)
    dead = study._storage.get_trial(trial._trial_id)
    study.tell(trial, state=TrialState.FAIL)
    history = {"failed_trial": dead.number, "retry_history": [dead.number]}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=dead.params,
            distributions=dead.distributions,
            user_attrs=dead.user_attrs,
            system_attrs={**dead.system_attrs, **history},
        )
    )
    study.optimize(bowl, n_trials=1)
    again = study.trials[-1]
    assert attributes.wanted(again).parent is None
    assert np.array_equal(hyperparameters_of(again)["array"], hyperparameters_of(dead)["array"])
    assert again.value == value_of(hyperparameters_of(again))
