import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend

from hypergrad_optuna import (
    HypergradSampler,
    arrays,
    attributes,
    best_hyperparameters,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)

OPTIMUM = np.linspace(-2, 2, 300).reshape(3, 100)


def bowl(trial: optuna.Trial) -> float:
    """Return a quadratic in an array and a number, and report its gradient where it is wanted."""
    array, number = suggest_array(trial, "array", (3, 100), -5, 5), trial.suggest_float("number", 1e-3, 10, log=True)
    value = float(np.sum((array - OPTIMUM) ** 2)) + math.log(number) ** 2
    if wants_gradient(trial, value):
        report_gradient(trial, {"array": 2 * (array - OPTIMUM), "number": 2 * math.log(number) / number})
    return value


def run(sampler: optuna.samplers.BaseSampler, n: int = 60, **kwargs: Any) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, **kwargs)
    study.optimize(bowl, n_trials=n)
    return study


def steps(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if attributes.wanted(t).parent is not None]


def value_of(study: optuna.Study) -> float:
    """Return the objective's value at the best hyperparameters that can be read back."""
    found = best_hyperparameters(study)
    assert list(found) == ["array", "number"]
    return float(np.sum((found["array"] - OPTIMUM) ** 2)) + math.log(found["number"]) ** 2


@pytest.mark.parametrize("storage", ["memory", "sqlite", "journal"])
def test_an_array_is_one_parameter_and_one_attribute(storage: str, tmp_path: Path) -> None:
    place = {
        "memory": None,
        "sqlite": f"sqlite:///{tmp_path / 'study.db'}",
        "journal": optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal"))),
    }[storage]
    study = run(HypergradSampler(seed=0), storage=place)
    assert {frozenset(t.params) for t in study.trials} == {frozenset({"array", "number"})}
    assert study.best_value < 1.0
    assert value_of(study) == study.best_value
    assert best_hyperparameters(study)["array"].shape == (3, 100)


def test_exploring_an_array_is_a_number() -> None:
    study = run(HypergradSampler(seed=0))
    explored = [t for t in study.trials if attributes.wanted(t).parent is None]
    assert explored
    for trial in explored:
        assert trial.value == pytest.approx(
            np.sum((trial.params["array"] - OPTIMUM) ** 2) + math.log(trial.params["number"]) ** 2
        )
    assert steps(study)
    assert all("3x100 numbers, " in t.user_attrs["array (array)"] for t in steps(study))


def test_other_samplers_see_coordinates() -> None:
    study = run(RandomSampler(seed=0), n=3)
    assert len(study.best_params) == 301
    assert value_of(study) == study.best_value


def test_artifacts_hold_what_attributes_would(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    plain, stored = run(HypergradSampler(seed=0)), run(HypergradSampler(seed=0, artifact_store=store))
    assert [t.value for t in stored.trials] == [t.value for t in plain.trials]
    assert all("base64" not in str(t.user_attrs) for t in stored.trials)
    assert any(tmp_path.iterdir())
    expected = best_hyperparameters(plain)["array"]
    np.testing.assert_array_equal(best_hyperparameters(stored)["array"], expected)
    stored.sampler = RandomSampler()
    np.testing.assert_array_equal(best_hyperparameters(stored, artifact_store=store)["array"], expected)
    with pytest.raises(ValueError, match="give the artifact_store that they were written to"):
        best_hyperparameters(stored)
    with pytest.raises(ValueError, match="give the artifact_store that they were written to"):
        hyperparameters_of(stored.best_trial)


def test_another_process_goes_on_from_the_storage(tmp_path: Path) -> None:
    """A sampler that has seen nothing, on a study that has, proposes what the old one would."""
    studies = []
    for swap in (False, True):
        storage = f"sqlite:///{tmp_path / str(swap)}.db"
        study = optuna.create_study(
            sampler=HypergradSampler(explorer=TPESampler(seed=0)), storage=storage, study_name="study"
        )
        study.optimize(bowl, n_trials=20)
        if swap:
            assert isinstance(study.sampler, HypergradSampler)
            independent = study.sampler._memory(study).explorer.sampler
            study = optuna.load_study(
                study_name="study", storage=storage, sampler=HypergradSampler(explorer=independent)
            )
        study.optimize(bowl, n_trials=20)
        studies.append([t.value for t in study.trials])
    assert studies[0] == studies[1]


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_enqueued_and_fixed_levels_are_arrays_of_one_number() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=20)
    study.enqueue_trial({"array": 0.0, "number": 1.0})
    study.optimize(bowl, n_trials=1)
    assert study.trials[-1].value == pytest.approx(np.sum(OPTIMUM**2))
    study.sampler = PartialFixedSampler({"array": 1.0}, study.sampler)
    study.optimize(bowl, n_trials=10)
    assert {t.params["array"] for t in study.trials[-10:]} == {1.0}


def test_a_second_suggestion_is_the_first() -> None:
    def twice(trial: optuna.Trial) -> float:
        first, second = (suggest_array(trial, "x", 5, 0, 1) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        report_gradient(trial, {"x": first - np.linspace(0, 1, 5)})
        return float(np.sum((first - np.linspace(0, 1, 5)) ** 2))

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(twice, n_trials=20)
    assert steps(study)


def test_maximisation_follows_the_gradient_upwards() -> None:
    def upside_down(trial: optuna.Trial) -> float:
        array = suggest_array(trial, "array", (3, 100), -5, 5)
        value = -float(np.sum((array - OPTIMUM) ** 2))
        if wants_gradient(trial, value):
            report_gradient(trial, {"array": -2 * (array - OPTIMUM)})
        return value

    study = optuna.create_study(sampler=HypergradSampler(seed=0), direction="maximize")
    study.optimize(upside_down, n_trials=60)
    assert study.best_value > -1.0


def test_an_array_that_changes_its_shape_starts_anew() -> None:
    def growing(trial: optuna.Trial) -> float:
        size = 3 if trial.number < 20 else 4
        array = suggest_array(trial, "x", size, -1, 1)
        report_gradient(trial, {"x": 2 * array})
        return float(np.sum(array**2))

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    with pytest.warns(
        UserWarning, match="20 of 24 finished trials are not used: 20 have 'x' in another shape"
    ) as caught:
        study.optimize(growing, n_trials=60)
    assert len(caught) == 1
    assert any(t.number < 20 for t in steps(study))
    assert any(t.number > 30 for t in steps(study))


def test_bad_input_is_named() -> None:
    trial = optuna.create_study(sampler=HypergradSampler()).ask()
    with pytest.raises(ValueError, match=r"shape must have at least one length, got \(\); use trial.suggest_float"):
        suggest_array(trial, "x", (), 0, 1)
    with pytest.raises(ValueError, match="low must not be above high"):
        suggest_array(trial, "x", 3, 1, 0)
    suggest_array(trial, "x", (2, 3), 0, 1)
    assert suggest_array(trial, "y", cast(int, np.int64(3)), 0, 1).shape == (3,)
    with pytest.raises(ValueError, match=r"the derivative of 'x' must have shape \(2, 3\), got \(3,\)"):
        report_gradient(trial, {"x": np.zeros(3)})


def test_each_array_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has an array of its own; only a second look takes its parent's."""
    fetched: Counter[int] = Counter()
    read = arrays.read

    def counted(trial: attributes.AnyTrial, name: str, store: object) -> np.ndarray:
        fetched[trial.number] += 1
        return read(trial, name, store)

    monkeypatch.setattr(arrays, "read", counted)
    study = run(HypergradSampler(seed=0, artifact_store=FileSystemArtifactStore(tmp_path)), n=40)
    assert len(steps(study)) > 10
    looks = Counter(int(attributes.wanted(t).parent or 0) for t in study.trials if attributes.wanted(t).again)
    assert fetched == looks + Counter(range(39))  # the last one's array is not needed yet
