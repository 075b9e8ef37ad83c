"""A history that is not all the sampler's own, or not all of one space; and one sampler for many studies."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from hypergrad_optuna import (
    HypergradSampler,
    attributes,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)
from hypergrad_optuna.history import History
from hypergrad_search.trouble import see

Objective = Callable[[optuna.Trial], float]


def target(size: int) -> np.ndarray:
    return np.linspace(0.1, 0.4, size)


def bowl(*, low: float = -1.0, high: float = 1.0, names: str = "ab", shape: int = 3) -> Objective:
    """Return an objective with a minimum within all bounds, and which reports its gradient."""

    def objective(trial: optuna.Trial) -> float:
        h: dict[str, Any] = {"array": suggest_array(trial, "array", shape, low, high)}
        h |= {name: trial.suggest_float(name, low, high) for name in names}
        offsets = {name: x - target(shape if name == "array" else 1) for name, x in h.items()}
        value = sum(float(np.sum(offset**2 + 9 * offset**4)) for offset in offsets.values())
        if wants_gradient(trial, value):
            report_gradient(
                trial, {name: np.reshape(2 * x + 36 * x**3, np.shape(h[name])) for name, x in offsets.items()}
            )
        return value

    return objective


def begun(trials: int = 12, objective: Objective | None = None) -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective or bowl(), n_trials=trials)
    return study


def steps(trials: list[FrozenTrial]) -> int:
    return sum(attributes.wanted(trial).parent is not None for trial in trials)


def parents(study: optuna.Study) -> list[str | None]:
    return [attributes.wanted(trial).parent for trial in study.trials]


def without_parameters(study: optuna.Study) -> None:
    study.add_trial(create_trial(value=5.0))


def of_another_space(study: optuna.Study) -> None:
    other: dict[str, BaseDistribution] = {"other": FloatDistribution(0, 1)}
    for x in (0.2, 0.4):
        study.add_trial(create_trial(value=x, params={"other": x}, distributions=other))


def by_tpe(study: optuna.Study) -> None:
    own = study.sampler
    study.sampler = TPESampler(seed=0)
    study.optimize(bowl(), n_trials=3)
    study.sampler = own


def pruned_at_once(study: optuna.Study) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("a", -1, 1)
        raise optuna.TrialPruned

    study.optimize(objective, n_trials=2)


@pytest.mark.parametrize(
    ("stranger", "unused"),
    [
        (without_parameters, "1 of 13 finished trials are not used: 1 lack 'a'"),
        (of_another_space, "2 of 14 finished trials are not used: 2 lack 'a'"),
        (by_tpe, None),
        (pruned_at_once, None),
    ],
)
def test_steps_go_on_after_a_trial_that_the_sampler_did_not_run(
    stranger: Callable[[optuna.Study], None], unused: str | None
) -> None:
    study = begun()
    stranger(study)
    before = len(study.trials)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        study.optimize(bowl(), n_trials=20)
    assert steps(study.trials[before:]) > 2
    said = [str(w.message) for w in heard if "not used" in str(w.message)]
    assert said == ([] if unused is None else [f"HypergradSampler: {unused}{see('unusable')}"])


@pytest.mark.parametrize(
    ("changed", "unused"),
    [
        ({"low": -1.1, "high": 2.0}, None),
        ({"high": 0.42}, "lie outside of the present bounds"),
        ({"names": "abc"}, "lack 'c'"),
        ({"names": "a"}, None),
        ({"shape": 4}, "have 'array' in another shape"),
    ],
    ids=str,
)
def test_steps_go_on_after_the_objective_has_changed(changed: dict[str, Any], unused: str | None) -> None:
    study = begun()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        study.optimize(bowl(**changed), n_trials=40)
    said = [str(w.message) for w in heard if "not used" in str(w.message)]
    assert len(said) == (unused is not None)
    assert unused is None or unused in said[0]
    assert steps(study.trials[16:]) > 3
    moved = [t for t in study.trials[16:] if attributes.wanted(t).parent is not None]
    assert any(np.ptp(hyperparameters_of(t)["array"]) or "c" in t.params for t in moved)
    assert study.best_value < 0.05


def test_old_points_within_wider_bounds_are_still_the_search_s_own() -> None:
    study = begun(20)
    heads = {str(t.number) for t in study.trials}
    study.optimize(bowl(high=1.5), n_trials=8)
    assert any(attributes.wanted(t).parent in heads for t in study.trials[20:])


def test_a_parameter_whose_bounds_never_stay_is_left_to_the_explorer() -> None:
    def restless(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", -1, 1), trial.suggest_float("y", 0, 1 + trial.number)
        if wants_gradient(trial, x**2 + 0.01 * y):
            report_gradient(trial, {"x": 2 * x, "y": 0.01})
        return x**2 + 0.01 * y

    study = begun(40, restless)
    assert steps(study.trials) > 3
    sampler = study.sampler
    assert isinstance(sampler, HypergradSampler)
    assert sampler._memory(study).mind.space.keys() == {"x"}


def test_a_parameter_that_one_trial_lacked_is_searched_again_after_a_while() -> None:
    study = begun()
    study.optimize(bowl(names="a"), n_trials=1)
    with pytest.warns(UserWarning, match="1 of 26 finished trials are not used: 1 lack 'b'"):
        study.optimize(bowl(), n_trials=25)
    sampler = study.sampler
    assert isinstance(sampler, HypergradSampler)
    assert sampler._memory(study).mind.space.keys() == {"a", "array", "b"}
    assert steps(study.trials[-10:]) > 0


# a study that another sampler has begun


@pytest.mark.parametrize("how", ["another sampler", "added", "copied"])
def test_the_best_of_a_strange_history_gets_its_gradient_first(how: str) -> None:
    source = optuna.create_study(sampler=RandomSampler(seed=0))
    source.optimize(bowl(), n_trials=20)
    study = optuna.create_study()
    if how == "another sampler":
        study = source
    elif how == "added":
        study.add_trials(source.trials)
    else:
        optuna.copy_study(
            from_study_name=source.study_name,
            from_storage=source._storage,
            to_storage=study._storage,
            to_study_name="s",
        )
        study = optuna.load_study(study_name="s", storage=study._storage)
    study.sampler = HypergradSampler(seed=1)
    study.optimize(bowl(), n_trials=12)
    best = source.trials[min(range(20), key=lambda n: source.trials[n].value or 0.0)]
    looks = [t for t in study.trials if attributes.wanted(t).parent == str(best.number)]
    assert len(looks) == 1
    assert looks[0].number <= 21
    assert attributes.wanted(looks[0]).again
    assert looks[0].value == best.value
    found, expected = hyperparameters_of(looks[0]), hyperparameters_of(best)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert looks[0].user_attrs[attributes.GRADIENT]
    assert str(looks[0].number) in parents(study), "a chain starts there"
    assert study.best_value < 0.5 * (best.value or 0.0)


def test_numbers_that_are_arrays_now_count_as_levels() -> None:
    """As those of a space with a lift, which other samplers search as numbers."""

    def number(trial: optuna.Trial) -> float:
        offset = trial.suggest_float("array", -1, 1) - target(3)
        return float(np.sum(offset**2 + 9 * offset**4))

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(number, n_trials=10)
    best = study.best_trial
    study.sampler = HypergradSampler(seed=0)
    study.optimize(bowl(names=""), n_trials=10)
    look = next(t for t in study.trials if attributes.wanted(t).parent == str(best.number))
    assert look.value == pytest.approx(best.value)
    assert hyperparameters_of(look)["array"].tolist() == [best.params["array"]] * 3
    assert study.best_value < (best.value or 0.0)


def test_a_strange_best_is_not_tried_twice_where_no_gradient_comes() -> None:
    def silent(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", -1, 1) ** 2

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(silent, n_trials=10)
    study.sampler = HypergradSampler(seed=0)
    with pytest.warns(UserWarning, match="reported no gradient"):
        study.optimize(silent, n_trials=10)
    assert steps(study.trials) == 1


# one sampler for many studies


def silent(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -1, 1) ** 2


@pytest.mark.parametrize("explorer", [None, lambda: CmaEsSampler(seed=0, n_startup_trials=2)], ids=["TPE", "CMA-ES"])
@pytest.mark.parametrize("storage", ["each", "memory", "sqlite"])
def test_one_sampler_searches_each_study_as_one_of_its_own_would(
    storage: str, explorer: Callable[[], CmaEsSampler] | None, tmp_path: Path
) -> None:
    def make() -> HypergradSampler:
        return HypergradSampler(seed=0) if explorer is None else HypergradSampler(explorer=explorer())

    shared = make()
    place: Any = {"each": None, "memory": optuna.storages.InMemoryStorage(), "sqlite": f"sqlite:///{tmp_path}/s.db"}[
        storage
    ]
    place = optuna.storages.get_storage(place) if storage == "sqlite" else place
    for number, names in enumerate(["ab", "ab", "a", "ab"]):
        study = optuna.create_study(storage=place, sampler=shared)
        study.optimize(bowl(names=names), n_trials=12)
        alone = optuna.create_study(sampler=make())
        alone.optimize(bowl(names=names), n_trials=12)
        assert [t.params for t in study.trials] == [t.params for t in alone.trials], f"study {number}"
        assert parents(study) == parents(alone)
        del study


@pytest.mark.parametrize("sqlite", [False, True])
def test_a_study_that_is_deleted_and_made_again_is_another_study(sqlite: bool, tmp_path: Path) -> None:
    storage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/s.db" if sqlite else None)
    shared = HypergradSampler(seed=0)
    expected = [t.params for t in begun(12).trials]
    for trials in (12, 30, 12):
        study = optuna.create_study(study_name="s", storage=storage, sampler=shared)
        study.optimize(bowl(), n_trials=trials)
        assert [t.params for t in study.trials][:12] == expected
        optuna.delete_study(study_name="s", storage=storage)


def test_a_study_that_is_made_again_with_queued_trials_is_noticed_when_one_runs() -> None:
    """Queued trials have no times yet; neither have finished ones where another thread has read them earlier."""
    history, study = History(), begun(5)
    assert [t.number for t in history.read(study.trials[1:])] == [1, 2, 3, 4]
    assert [t.number for t in history.read(study.trials)] == [0]
    assert history.read(study.trials) == []
    assert history.belongs_to(study.trials)
    assert not history.belongs_to(begun(5).trials)
    anew = optuna.create_study()
    for x in range(6):
        anew.enqueue_trial({"x": x})
    assert history.belongs_to(anew.trials)
    anew.ask()
    assert not history.belongs_to(anew.trials)


def test_each_study_is_told_that_it_reports_no_gradient() -> None:
    shared = HypergradSampler(seed=0)
    for _ in range(3):
        study = optuna.create_study(sampler=shared)
        with pytest.warns(UserWarning, match="reported no gradient") as said:
            study.optimize(silent, n_trials=5)
        assert len(said) == 1
