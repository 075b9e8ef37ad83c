import logging
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import create_trial

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    attributes,
    best_hyperparameters,
    best_model,
    best_trial,
    hyperparameters_of,
)
from hypergrad_optuna._version import LOWEST, check
from hypergrad_search import (
    Categorical,
    Evaluation,
    Float,
    InexactReversalError,
    Int,
    Method,
    Reversible,
    Space,
    TrainingProblem,
    Unrolled,
    evaluate,
    fold,
    sgd,
)
from hypergrad_search.hypergradient import Request
from hypergrad_search.space import unlifted

KEY = jax.random.key(0)
SPACE: Space = {
    "rate": Float(1e-3, 0.4, log=True),
    "momentum": Float(0.1, 0.95),
    "target": Float(-1.0, 1.0, shape=(2, 2)),
}


def problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.zeros((2, 2)),
        "train_loss": lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        "valid_loss": lambda p, h: jnp.sum((p - 0.5) ** 2),
        "test_loss": lambda p, h: jnp.sum((p - 0.4) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", "momentum", dampening=True),
        "steps": 20,
    }
    return TrainingProblem(**{**parts, **changes})


PROBLEM = problem()  # compiles once for all tests that change nothing


def test_gradients_reach_the_sampler_and_pay() -> None:
    objective = Objective(PROBLEM, SPACE)
    ours = optuna.create_study(sampler=HypergradSampler(seed=0))
    ours.optimize(objective, n_trials=30)
    rival = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    rival.optimize(objective, n_trials=30)
    assert ours.best_value < 0.1 * rival.best_value
    with_gradient = [t for t in ours.trials if attributes.GRADIENT in t.user_attrs]
    names = {"rate", "momentum", "target"}
    assert with_gradient
    assert all(set(t.user_attrs[attributes.GRADIENT]) == names for t in with_gradient)
    assert set(ours.trials[0].params) == names
    assert best_hyperparameters(ours)["target"].shape == (2, 2)
    for study in (ours, rival):
        found = best_hyperparameters(study)
        assert set(found) == names
        assert evaluate(PROBLEM, found, key=KEY).value == study.best_value
        model = best_model(study, objective)
        assert float(PROBLEM.valid_loss(model, found)) == pytest.approx(study.best_value, rel=1e-5)
    coordinates = {"target[0,0]", "target[0,1]", "target[1,0]", "target[1,1]"}
    assert set(rival.trials[0].params) == {"rate", "momentum"} | coordinates


def test_numbers_are_lifted_for_this_sampler_alone() -> None:
    space = {**SPACE, "rate": Float(1e-2, 1.0, log=True, lift=(20,))}
    objective = Objective(PROBLEM, space)
    ours = optuna.create_study(sampler=HypergradSampler(seed=0))
    ours.optimize(objective, n_trials=30)
    assert set(ours.trials[0].params) == {"rate", "momentum", "target"}
    rates = best_hyperparameters(ours)["rate"]
    assert rates.shape == (20,)
    assert len(set(rates)) > 1
    rival = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rival.optimize(objective, n_trials=1)
    assert isinstance(rival.best_params["rate"], float)
    found = best_hyperparameters(rival)
    assert (type(found["rate"]), found["target"].shape) == (float, (2, 2))


def test_each_trial_may_have_its_own_seed() -> None:
    noisy = problem(init=lambda key, h: jax.random.normal(key, (2, 2)))
    for reseed in (False, True):
        study = optuna.create_study()
        for _ in range(2):
            target = {f"target[{i},{j}]": 0.5 for i in (0, 1) for j in (0, 1)}
            study.enqueue_trial({"rate": 0.1, "momentum": 0.5, **target})
        study.optimize(Objective(noisy, SPACE, reseed=reseed), n_trials=2)
        assert len({t.value for t in study.trials}) == 1 + reseed


def test_attributes_tell_what_a_trial_cost() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(PROBLEM, SPACE), n_trials=20)
    for trial in study.trials:
        factor = 4 if attributes.GRADIENT in trial.user_attrs else 1
        assert trial.user_attrs[attributes.COST] == factor * 20
        assert trial.user_attrs["hypergrad:status"] == "ok"
        assert trial.user_attrs["hypergrad:test_loss"] > 0


def test_other_samplers_pay_for_no_gradient() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(Objective(PROBLEM, SPACE), n_trials=5)
    assert all(t.user_attrs[attributes.COST] == 20 for t in study.trials)
    assert all(attributes.GRADIENT not in t.user_attrs for t in study.trials)


def test_failed_training_is_an_infinite_value_with_a_reason() -> None:
    wild = problem(init=lambda key, h: jnp.full((2, 2), 1e9))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(wild, SPACE), n_trials=5)
    assert {t.value for t in study.trials} == {math.inf}
    assert {t.user_attrs["hypergrad:status"] for t in study.trials} == {"overflow"}
    assert all(t.user_attrs["hypergrad:message"] for t in study.trials)


def test_a_step_that_fits_what_is_held_back_no_better_has_failed() -> None:
    """The fold that is held back has its optimum elsewhere, so that no descent of the rest can go on for long."""
    wishes = np.where(fold.order(8) % 4 == 0, 0.3, 0.5)
    two_minds = problem(valid_loss=lambda p, h: jnp.stack([jnp.sum((p - wish) ** 2) for wish in wishes.tolist()]))
    objective = Objective(two_minds, {**SPACE, "rate": Float(1e-3, 0.4, log=True, lift=(20,))})
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=30)
    overfitted = [t for t in study.trials if t.user_attrs["hypergrad:status"] == "overfitted"]
    assert overfitted
    for trial in overfitted:
        parent = study.trials[int(attributes.wanted(trial).parent or 0)]
        assert trial.value == evaluate(two_minds, hyperparameters_of(trial), key=KEY).value
        assert attributes.GRADIENT not in trial.user_attrs
        ours, theirs = trial.user_attrs[attributes.HELD_BACK], parent.user_attrs[attributes.HELD_BACK]
        assert len(ours) == len(theirs) == 4
        held_back = attributes.wanted(trial).fold
        assert held_back is not None
        assert held_back.judge is not None
        gain = theirs[held_back.judge] - ours[held_back.judge]
        blocks = (t.user_attrs[attributes.BLOCKS][held_back.judge] for t in (parent, trial))
        assert gain <= max(np.subtract(*blocks).std(ddof=1) / math.sqrt(2), 0.0)  # of the two examples of each part
    # a trial in which the user has chosen a part is no step, whatever the sampler had in mind
    for n in range(5):
        study.enqueue_trial({"rate": 0.01 * (n + 1)})
    study.optimize(objective, n_trials=5)
    assert all(t.user_attrs["hypergrad:status"] == "ok" for t in study.trials[30:])
    # an overfitted trial may have the lowest value of all, but it is not what the search has found
    lowest = create_trial(value=-1.0, user_attrs={attributes.STATUS: "overfitted"})
    expected = hyperparameters_of(min((t for t in study.trials if t not in overfitted), key=lambda t: t.value or 0.0))
    study.add_trial(lowest)
    assert study.best_value == -1.0
    found = best_hyperparameters(study)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert best_model(study, objective).shape == (2, 2)


def test_nothing_is_held_back_without_a_lift() -> None:
    examples = problem(valid_loss=lambda p, h: jnp.stack([jnp.sum((p - wish) ** 2) for wish in (0.3, 0.4, 0.5, 0.6)]))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(examples, unlifted(SPACE)), n_trials=8)
    assert any(attributes.wanted(t).parent for t in study.trials)
    assert all(attributes.HELD_BACK not in t.user_attrs for t in study.trials)


def test_an_inexact_reversal_does_not_end_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypergrad_search.hypergradient import reversible

    monkeypatch.setattr(reversible, "_is_start", lambda program, state, initial: False)
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    training = problem()  # its own, since what a reversal has shown is remembered
    study.optimize(Objective(training, SPACE), n_trials=1)
    assert study.trials[0].user_attrs["hypergrad:exact"] is False
    assert attributes.GRADIENT in study.trials[0].user_attrs
    with pytest.raises(InexactReversalError):
        study.optimize(Objective(training, SPACE, method=Reversible()), n_trials=1)


def test_pruners_see_the_validation_loss_on_the_way() -> None:
    objective = Objective(PROBLEM, SPACE, report_every=5)
    pruner = optuna.pruners.ThresholdPruner(upper=0.8)
    study = optuna.create_study(sampler=HypergradSampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=20)
    pruned = [t for t in study.trials if t.state == optuna.trial.TrialState.PRUNED]
    assert pruned
    assert all(t.user_attrs[attributes.COST] == max(t.intermediate_values) for t in pruned)
    complete = next(t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE)
    assert list(complete.intermediate_values) == [5, 10, 15]


def test_integers_and_categoricals_reach_the_problem() -> None:
    space: Space = {**SPACE, "width": Int(1, 2), "kind": Categorical(["a", "b"])}
    seen = set()

    def init(key: jax.Array, h: dict[str, Any]) -> jax.Array:
        seen.add((h["width"], h["kind"]))
        return jnp.zeros((2, 2))

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    training = problem(init=init)
    study.optimize(Objective(training, space), n_trials=8)
    assert {type(width) for width, _ in seen} == {int}
    assert seen == {(t.params["width"], t.params["kind"]) for t in study.trials}
    found = best_hyperparameters(study)
    assert set(found) == set(space)
    assert (found["width"], found["kind"]) == (study.best_params["width"], study.best_params["kind"])
    assert evaluate(training, found, key=KEY, space=space).value == study.best_value


def test_the_key_decides_the_value() -> None:
    noisy = problem(init=lambda key, h: jax.random.normal(key, (2, 2)))
    fixed = {"rate": 0.1, "momentum": 0.5, **{f"target[{i},{j}]": 0.0 for i in (0, 1) for j in (0, 1)}}
    values = []
    for key in (None, jax.random.key(0), jax.random.key(1)):
        study = optuna.create_study()
        study.enqueue_trial(fixed)
        study.optimize(Objective(noisy, SPACE, key=key), n_trials=1)
        values.append(study.best_value)
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("sampler", [HypergradSampler(seed=0), optuna.samplers.RandomSampler(seed=0)], ids=type)
def test_whole_numbers_that_were_enqueued_are_floats(sampler: optuna.samplers.BaseSampler) -> None:
    space: Space = {"rate": Float(0.1, 2.0), "momentum": Float(0.1, 0.95), "target": Float(-1.0, 1.0, shape=(2, 2))}
    study = optuna.create_study(sampler=sampler)
    elements = {f"target[{i},{j}]": 0 for i in (0, 1) for j in (0, 1)}
    study.enqueue_trial({"rate": 1, "momentum": 0.5, "target": 0, **elements})
    given: list[dict[str, Any]] = []
    objective = Objective(PROBLEM, space)

    def watched(trial: optuna.Trial) -> float:
        given.append(objective.suggest(trial))
        return objective.evaluate(trial, given[-1])

    study.optimize(watched, n_trials=1)
    assert type(given[0]["rate"]) is float
    assert given[0]["target"].dtype == np.float64
    if isinstance(sampler, HypergradSampler):
        assert set(study.trials[0].user_attrs[attributes.GRADIENT]) == set(space)


def test_array_elements_are_named_in_c_order() -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    hyperparameters = Objective(PROBLEM, SPACE).suggest(trial)
    for index in np.ndindex(2, 2):
        assert hyperparameters["target"][index] == trial.params[f"target[{index[0]},{index[1]}]"]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="learning_rate names the hyperparameter 'rate', which is not among"):
        Objective(PROBLEM, {"momentum": Float(0.1, 0.9)})
    with pytest.raises(ValueError, match="must be a Float, Int or Categorical"):
        Objective(PROBLEM, cast(Any, {"rate": 0.1}))
    with pytest.raises(ValueError, match="problem must be a TrainingProblem"):
        Objective(cast(Any, None), SPACE)
    with pytest.raises(ValueError, match=r"Objective: method must be a Method such as Reversible\(\), got 'exact'"):
        Objective(PROBLEM, SPACE, method=cast(Any, "exact"))
    with pytest.raises(ValueError, match="report_every must be"):
        Objective(PROBLEM, SPACE, report_every=0)
    with pytest.raises(ValueError, match=r"Objective: report_every must be a whole number from 1, got 2\.5"):
        Objective(PROBLEM, SPACE, report_every=cast(Any, 2.5))
    with pytest.raises(ValueError, match=r"'target\[0,1\]' in space is the name of an element of an array; rename it"):
        Objective(PROBLEM, {**SPACE, "target[0,1]": Float(0.0, 1.0)})


@pytest.mark.parametrize("sampler", [HypergradSampler, optuna.samplers.RandomSampler])
def test_a_study_with_another_goal_is_refused_in_one_line(sampler: type[optuna.samplers.BaseSampler]) -> None:
    up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    for directions, wrong in (([up], "maximises"), ([down, down], "has 2 objectives")):
        study = optuna.create_study(directions=directions, sampler=sampler())
        with pytest.raises(ValueError, match=f"the study {wrong}; create the study with direction='minimize'"):
            study.optimize(Objective(PROBLEM, SPACE), n_trials=1)


def test_a_method_that_never_reports_says_so_at_once() -> None:
    with pytest.warns(
        UserWarning, match="Objective: Unrolled trains in one program and never reports, so report_every=5"
    ):
        Objective(PROBLEM, SPACE, method=Unrolled(), report_every=5)


def test_an_old_optuna_is_refused_in_one_line() -> None:
    with pytest.raises(ImportError, match=r"needs optuna 5.0 or newer, got 4.9.1; pip install 'optuna>=5.0'"):
        check("4.9.1")
    check("5.0.0")
    check("10.1.0rc1")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"optuna>={LOWEST}" in project["optional-dependencies"]["optuna"]


@dataclass(frozen=True)
class Picky(Method):
    """A method that refuses rates from a limit on."""

    limit: float
    error: type[Exception] = ValueError

    def evaluate(self, problem: TrainingProblem, hyperparameters: Any, key: jax.Array, request: Request) -> Evaluation:
        if hyperparameters["rate"] > self.limit:
            raise self.error(f"the rate is {hyperparameters['rate']:.3f}")
        return Reversible().evaluate(problem, hyperparameters, key, request)


@pytest.mark.parametrize("error", [ValueError, FloatingPointError, TypeError, KeyError, jax.errors.JaxRuntimeError])
@pytest.mark.parametrize("rates", [(0.01, 0.3), (0.3, 0.01)])
def test_a_value_that_is_refused_is_a_failed_trial(error: type[Exception], rates: tuple[float, float]) -> None:
    """Even that of the first trial, since the middle of the space can be evaluated."""
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    for rate in rates:
        study.enqueue_trial({"rate": rate})
    with pytest.warns(UserWarning, match=f"an error refused these values: {error.__name__}: .*the rate is") as said:
        study.optimize(Objective(PROBLEM, SPACE, method=Picky(0.1, error)), n_trials=20)
    assert len(said) == 1
    refused = [t for t in study.trials if t.params["rate"] > 0.1]
    assert refused
    for trial in study.trials:
        if trial in refused:
            assert (trial.value, trial.user_attrs[attributes.STATUS]) == (math.inf, "refused")
            assert f"an error refused these values: {error.__name__}: " in trial.user_attrs[attributes.MESSAGE]
            assert "the rate is " in trial.user_attrs[attributes.MESSAGE]
            assert trial.user_attrs[attributes.COST] == 20
        else:
            assert trial.user_attrs[attributes.STATUS] == "ok"
    assert any(attributes.wanted(trial).parent for trial in study.trials)


def test_what_is_wrong_with_the_problem_is_raised_at_the_first_trial() -> None:
    shapes = problem(train_loss=lambda p, h, batch, key: jnp.sum(p @ jnp.zeros(7)))
    broadcasting = problem(train_loss=lambda p, h, batch, key: jnp.sum(p + jnp.zeros(7)))
    every_value = Objective(PROBLEM, SPACE, method=Picky(-1.0))
    few = problem(valid_loss=lambda p, h: jnp.stack([jnp.sum(p), jnp.sum(p**2)]))
    lifts = {**SPACE, "rate": Float(1e-3, 0.4, log=True, lift=(20,))}
    for objective, error in (
        (Objective(few, lifts), ValueError),  # two examples are too few for four folds, wherever it trains
        (Objective(shapes, SPACE), TypeError),
        (Objective(broadcasting, SPACE), ValueError),
        (every_value, ValueError),
    ):
        study = optuna.create_study(sampler=HypergradSampler(seed=0))
        with pytest.raises(error):
            study.optimize(objective, n_trials=1)


def test_an_error_of_the_pruner_is_no_failed_trial() -> None:
    class Broken(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            raise ValueError("the pruner is broken")

    study = optuna.create_study(sampler=HypergradSampler(seed=0), pruner=Broken())
    objective = Objective(PROBLEM, SPACE, report_every=5)
    with pytest.raises(ValueError, match="the pruner is broken"):
        study.optimize(objective, n_trials=1)


def of_examples(**changes: Any) -> TrainingProblem:
    wishes = jnp.asarray([0.3, 0.4, 0.5, 0.6, 0.35, 0.45, 0.55, 0.65])
    return problem(valid_loss=lambda p, h: jnp.stack([jnp.sum((p - wish) ** 2) for wish in wishes]), **changes)


def test_settings_of_the_optimizer_are_lifted_without_a_word() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    training = of_examples()
    objective = Objective(training, SPACE)
    study.optimize(objective, n_trials=10)
    found = best_hyperparameters(study)
    assert {name: np.shape(x) for name, x in found.items()} == {"rate": (1, 20), "momentum": (1, 20), "target": (2, 2)}
    assert evaluate(training, found, key=KEY).value == best_trial(study).value == objective(best_trial(study))
    assert (
        best_trial(study).user_attrs[attributes.CROSS_VALIDATED]
        < study.trials[0].user_attrs[attributes.CROSS_VALIDATED]
    )
    assert any(np.ptp(hyperparameters_of(t)["rate"]) > 0 for t in study.trials)
    numbers = optuna.create_study(sampler=HypergradSampler(seed=0))
    numbers.optimize(Objective(training, unlifted(SPACE)), n_trials=10)
    assert np.shape(best_hyperparameters(numbers)["rate"]) == ()
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    random.optimize(objective, n_trials=2)
    assert all(np.shape(hyperparameters_of(t)["rate"]) == () for t in random.trials)


def test_nothing_is_lifted_where_no_examples_can_be_held_back() -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(PROBLEM, SPACE), n_trials=3)
    assert np.shape(best_hyperparameters(study)["rate"]) == ()


def test_numbers_that_are_best_are_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    """In the second study no step has found anything, as if each had failed on what it left out."""
    study, other = (optuna.create_study(sampler=HypergradSampler(seed=0)) for _ in range(2))
    study.optimize(Objective(of_examples(), SPACE), n_trials=6)
    steps = [t.number for t in study.trials if attributes.wanted(t).parent is not None]
    for trial in study.trials:
        if trial.number in steps:
            trial.set_user_attr(attributes.STATUS, "overfitted")
        other.add_trial(trial)
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO, logger="optuna"):
            assert best_trial(study).number in steps
            assert "one number for all elements" not in caplog.text
            assert best_trial(other).number not in steps
    finally:
        optuna.logging.disable_propagation()
    assert f"none of the {len(steps)} trials with more numbers has a lower loss" in caplog.text


def test_trials_from_before_a_number_was_lifted_stay_as_they_were() -> None:
    """A study with `lift=False` goes on without it; whatever its best trial has, the trial can be had again."""
    training = of_examples()
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(training, unlifted(SPACE)), n_trials=6)
    objective = Objective(training, SPACE)
    assert np.shape(hyperparameters_of(best_trial(study))["rate"]) == ()
    assert objective(best_trial(study)) == study.best_value
    assert best_model(study, objective).shape == (2, 2)
    with pytest.warns(UserWarning, match="are not used: 6 have 'momentum' in another shape"):
        study.optimize(objective, n_trials=6)
    assert {np.shape(hyperparameters_of(t)["rate"]) for t in study.trials[6:]} == {(1, 20)}
    assert [objective(t) for t in study.trials] == [t.value for t in study.trials]
