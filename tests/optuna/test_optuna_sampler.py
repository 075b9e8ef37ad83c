import gc
import math
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from hypergrad_optuna import HypergradSampler, attributes, claims, report_gradient, wants_gradient
from hypergrad_search.search import Attempt
from hypergrad_search.search.variants import VARIANTS

SILENT = "reported no gradient"


def bowl(trial: optuna.Trial) -> float:
    """Return a quadratic in 8 dimensions, and report its gradient where it is wanted."""
    x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(8)])
    value = float(np.sum((x - 1) ** 2))
    if wants_gradient(trial, value):
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(2 * (x - 1))})
    return value


def run(
    objective: Callable[[optuna.Trial], float], sampler: optuna.samplers.BaseSampler, n: int = 60, **kwargs: Any
) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, **kwargs)
    study.optimize(objective, n_trials=n)
    return study


def parents(study: optuna.Study) -> list[str | None]:
    return [attributes.wanted(t).parent for t in study.trials]


def attempts(study: optuna.Study) -> list[Attempt]:
    return [attributes.wanted(t).attempt for t in study.trials]


def test_gradients_pay() -> None:
    ours, tpe = run(bowl, HypergradSampler(seed=0)), run(bowl, TPESampler(seed=0))
    assert ours.best_value < 0.1 * tpe.best_value
    assert any(parents(ours))


def test_a_chain_starts_where_the_user_says() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.enqueue_trial({f"x{i}": 2.0 for i in range(8)})  # far better than what is found at random
    study.optimize(bowl, n_trials=8)
    assert attributes.GRADIENT in study.trials[0].user_attrs
    assert "0" in parents(study)


def test_maximisation_is_minimisation_of_the_opposite() -> None:
    def upside_down(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(8)])
        value = -float(np.sum((x - 1) ** 2))
        if wants_gradient(trial, value):
            report_gradient(trial, {f"x{i}": g for i, g in enumerate(-2 * (x - 1))})
        return value

    down, up = (
        run(bowl, HypergradSampler(seed=0)),
        run(upside_down, HypergradSampler(seed=0), direction="maximize"),
    )
    assert up.best_value == pytest.approx(-down.best_value)
    assert parents(up) == parents(down)


def test_without_gradients_it_is_tpe_and_warns_once() -> None:
    def silent(trial: optuna.Trial) -> float:
        y = trial.suggest_int("b", 0, 9)  # suggested out of the order of names
        return (trial.suggest_float("a", -5, 5) - 1) ** 2 + y + (trial.suggest_categorical("c", ["u", "v"]) == "u")

    with pytest.warns(UserWarning, match=SILENT) as caught:
        ours = run(silent, HypergradSampler(seed=3), n=40)
    assert len([w for w in caught if SILENT in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tpe = optuna.create_study(sampler=TPESampler(seed=3))
        tpe.enqueue_trial({"a": 0.0, "b": 4, "c": "u"})  # the centre
        tpe.optimize(silent, n_trials=40)
    assert [t.params for t in ours.trials] == [t.params for t in tpe.trials]


def test_no_warning_where_gradients_come() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(bowl, HypergradSampler(seed=0), n=10)


def test_integers_and_categoricals_are_held_along_a_chain() -> None:
    def mixed(trial: optuna.Trial) -> float:
        kind, width = trial.suggest_categorical("kind", ["a", "b"]), trial.suggest_int("width", 1, 4)
        coarse = trial.suggest_float("coarse", 0, 1, step=0.25)
        x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(4)])
        value = float(np.sum((x - 1) ** 2)) + width + (kind == "a") + coarse
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(2 * (x - 1))})
        return value

    study = run(mixed, HypergradSampler(seed=0), n=80)
    children = [t for t in study.trials if attributes.wanted(t).parent is not None]
    assert children
    for child in children:
        parent = study.trials[int(attributes.wanted(child).parent or 0)]
        for name in ("kind", "width", "coarse"):
            assert child.params[name] == parent.params[name]
    assert len({t.params["width"] for t in study.trials}) > 1


def test_conditional_parameters_follow_what_is_common() -> None:
    def conditional(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -5, 5)
        value, gradient = (x - 1) ** 2, {"x": 2 * (x - 1)}
        if trial.suggest_categorical("more", [True, False]):
            y = trial.suggest_float("y", 0, 1)
            value, gradient = value + y, {**gradient, "y": 1.0}
        report_gradient(trial, gradient)
        return value

    study = run(conditional, HypergradSampler(seed=0), n=60)
    assert any(parents(study))
    assert study.best_value < 0.3


def test_what_is_not_common_to_all_trials_is_held_along_a_chain() -> None:
    def conditional(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(3)])
        kind = trial.suggest_categorical("kind", ["a", "b"])
        y = trial.suggest_float("only_a", 0, 1) if kind == "a" else trial.suggest_int("only_b", 0, 9) / 9
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(2 * (x - 1))})
        return float(np.sum((x - 1) ** 2)) + y

    study = run(conditional, HypergradSampler(seed=0), n=60)
    children = [t for t in study.trials if attributes.wanted(t).parent is not None]
    assert children
    for child in children:
        parent = study.trials[int(attributes.wanted(child).parent or 0)]
        for name in {"kind", "only_a", "only_b"} & set(child.params):
            assert child.params[name] == parent.params[name]


@pytest.mark.filterwarnings("ignore:`constraints_func` has been deprecated")
@pytest.mark.parametrize("way", ["set_constraint", "constraints_func"])
def test_a_step_out_of_constraints_has_failed(way: str) -> None:
    """Without a constraint the minimum is at 1; the sum must be at most 4, so that it is at 0.5."""

    def violation(x: np.ndarray) -> float:
        return float(x.sum() - 4)

    def limited(trial: optuna.Trial) -> float:
        value = bowl(trial)
        excess = violation(np.array(list(trial.params.values())))
        if way == "set_constraint":
            trial.set_constraint("sum", excess)
        else:
            trial.set_user_attr("excess", excess)
        return value

    if way == "set_constraint":
        sampler = HypergradSampler(seed=0)
    else:
        tpe = TPESampler(seed=0, constraints_func=lambda t: (t.user_attrs["excess"],))
        sampler = HypergradSampler(explorer=tpe)
    study = run(limited, sampler, n=100)
    values = {t.number: t for t in study.trials}
    followed = {attributes.wanted(t).parent for t in study.trials} - {None}
    assert followed
    for number in followed:
        assert all(c <= 0 for c in values[int(number or 0)].constraints.values())
    assert all(c <= 0 for c in study.best_trial.constraints.values())


def test_failures_nans_and_pruning_are_failed_steps() -> None:
    def rough(trial: optuna.Trial) -> float:
        value = bowl(trial)
        if trial.number % 5 == 1:
            raise optuna.TrialPruned
        if trial.number % 5 == 2:
            return math.nan
        if trial.number % 5 == 3:
            return math.inf
        return value

    study = run(rough, HypergradSampler(seed=0), n=100)
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert study.best_value < 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
def test_a_study_goes_on_after_an_interrupt(error: type[BaseException]) -> None:
    def interrupted(trial: optuna.Trial) -> float:
        """A bowl of the fourth order: where a quadratic one ends after a few steps, this one always has a next."""
        x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(8)])
        value = float(np.mean((x - 1) ** 4))
        if trial.number in (4, 7):
            raise error
        if wants_gradient(trial, value):
            report_gradient(trial, {f"x{i}": g for i, g in enumerate((x - 1) ** 3 / 2)})
        return value

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    for _ in range(2):
        with pytest.raises(error):
            study.optimize(interrupted, n_trials=40)
    study.optimize(interrupted, n_trials=60)
    assert [t.number for t in study.trials if t.state != TrialState.COMPLETE] == [4, 7]
    assert sum(parent is not None for parent in parents(study)[8:]) > 5
    assert study.best_value < 0.1


def test_bounds_that_are_neighbours() -> None:
    def narrow(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 1.0, math.nextafter(1.0, 2.0)), trial.suggest_float("y", -1, 1)
        z = trial.suggest_float("z", 1e-300, math.nextafter(1e-300, 1.0), log=True)
        report_gradient(trial, {"x": 1e6, "y": 2 * y, "z": -1e300})
        assert x in (1.0, math.nextafter(1.0, 2.0))
        return x + y**2 + 1e300 * z

    study = run(narrow, HypergradSampler(explorer=RandomSampler(seed=0)), n=30)
    assert any(parents(study))


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_enqueued_and_fixed_parameters_are_respected() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=20)
    study.enqueue_trial({f"x{i}": 1.0 for i in range(8)})
    study.optimize(bowl, n_trials=1)
    assert study.trials[-1].value == 0
    study.sampler = optuna.samplers.PartialFixedSampler({"x0": 3.0}, study.sampler)
    study.optimize(bowl, n_trials=20)
    assert {t.params["x0"] for t in study.trials[21:]} == {3.0}


def test_a_step_whose_worker_has_died_is_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=10)
    busy = study.ask()
    bowl(busy)  # its parameters are chosen at the first suggestion
    while parents(study)[busy.number] is None:
        study.tell(busy, bowl(busy))
        busy = study.ask()
        bowl(busy)
    step = attempts(study)[busy.number]
    while len(set(attempts(study)) & {Attempt(step.parent, number) for number in range(VARIANTS)}) < VARIANTS:
        bowl(study.ask())  # others, who take all other steps from the head, and die as well
    while_alive = len(study.trials)
    study.optimize(bowl, n_trials=6)
    assert step.parent not in parents(study)[while_alive:]
    monkeypatch.setattr(claims, "PATIENCE", timedelta())
    time.sleep(0.1)  # longer than twice any trial
    since_its_death = len(study.trials)
    study.optimize(bowl, n_trials=12)
    assert step in attempts(study)[since_its_death:]


def test_threads_share_a_sampler() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(bowl, n_trials=60, n_jobs=4)
    assert [t.number for t in study.trials] == list(range(60))
    assert any(parents(study))


def test_identical_seeds_give_identical_studies() -> None:
    first, second = (run(bowl, HypergradSampler(seed=5), n=40) for _ in range(2))
    assert [t.params for t in first.trials] == [t.params for t in second.trials]


def test_processes_with_the_same_seed_have_the_same_study() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_optuna_sampler as t; "
        "print(t.run(t.bowl, t.HypergradSampler(seed=5), n=40).trials_dataframe(('params', 'value')).to_json())"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    own = run(bowl, HypergradSampler(seed=5), n=40)
    assert other.strip() == own.trials_dataframe(("params", "value")).to_json()
    assert "params_x0" in other


def test_a_sampler_knows_nothing_that_the_study_does_not() -> None:
    """A fresh sampler in the middle of a study, as another process has it, goes on as the old one would."""

    def study_with(swap: bool) -> list[dict[str, float]]:
        study = optuna.create_study(sampler=HypergradSampler(explorer=RandomSampler(seed=0)))
        study.optimize(bowl, n_trials=20)
        if swap:
            assert isinstance(study.sampler, HypergradSampler)
            study.sampler = HypergradSampler(explorer=study.sampler._memory(study).explorer.sampler)
        study.optimize(bowl, n_trials=20)
        return [t.params for t in study.trials]

    assert study_with(swap=True) == study_with(swap=False)


def test_a_sampler_forgets_a_study_that_is_gone() -> None:
    """Another study may get its place in memory, and in a new storage all studies have the same number."""
    sampler = HypergradSampler(explorer=RandomSampler(seed=0))
    for _ in range(5):
        study = run(bowl, sampler, n=8)
        assert parents(study)[:2] == [None, "0"]
        assert len(sampler._memories) == 1
        del study
        gc.collect()
        assert not sampler._memories


def test_a_pickled_sampler_goes_on_as_it_would_have() -> None:
    """So do the explorers of its studies."""
    found = []
    for pickled in (False, True):
        study = run(bowl, HypergradSampler(seed=0), n=15)
        if pickled:
            study.sampler = pickle.loads(pickle.dumps(study.sampler))
        study.optimize(bowl, n_trials=15)
        found.append([t.params for t in study.trials])
    assert found[0] == found[1]


def test_hyperband_prunes_steps() -> None:
    def slow(trial: optuna.Trial) -> float:
        value = bowl(trial)
        for step in (1, 3, 9):
            trial.report(value + 10 / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = run(slow, HypergradSampler(seed=0), n=60, pruner=pruner)
    assert any(t.state == TrialState.PRUNED for t in study.trials)
    assert any(parents(study))


def test_wants_gradient_is_false_under_other_samplers() -> None:
    seen = []

    def asking(trial: optuna.Trial) -> float:
        seen.append(wants_gradient(trial, -1e9))
        return trial.suggest_float("x", 0, 1)

    run(asking, RandomSampler(), 3)
    assert seen == [False] * 3


def test_bad_input_is_named() -> None:
    trial = optuna.create_study().ask()
    trial.suggest_float("x", 0, 1)
    with pytest.raises(ValueError, match=r"'y' is no parameter of this trial, which has \['x'\]"):
        report_gradient(trial, {"y": 1.0})
    with pytest.raises(ValueError, match="every derivative must be a number"):
        report_gradient(trial, {"x": "steep"})
    with pytest.raises(ValueError, match=r"explorer must be a sampler such as TPESampler\(\), got 'tpe'"):
        HypergradSampler(explorer=cast(Any, "tpe"))
    with pytest.raises(ValueError, match="give the seed to explorer"):
        HypergradSampler(explorer=RandomSampler(), seed=1)
