"""A random walk over all that can happen to a study; after each step a few things must hold.

A trial's value belongs to the hyperparameters that it records. No step is taken twice. Where gradients come, steps go
on.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import (
    HypergradSampler,
    attributes,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)

#: After so many trials in a row that complete, with gradients, at least one must be a step. Where a step has gained
#: little, up to fifteen trials explore, which cost as much as the next steps do.
TRIALS_UNTIL_A_STEP = 20
#: Below this the floats are at the bottom of the bowl, so that no step is left to take.
AT_THE_BOTTOM = 0.05


def value_of(hyperparameters: dict[str, Any]) -> float:
    """Return a bowl in all the floats that a trial has, to which an integer adds."""
    total = 0.3 * float(hyperparameters.get("layers", 0))
    for name in ("array", "number", "extra"):
        if name in hyperparameters:
            total += float(np.sum((np.asarray(hyperparameters[name]) - 0.3) ** 2))
    return total


class Histories(RuleBasedStateMachine):
    """A study and its user, who does whatever users do."""

    @initialize(sqlite=st.booleans(), seed=st.integers(0, 9))
    def begin(self, sqlite: bool, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        url = f"sqlite:///{Path(self.folder.name, 'study.db')}" if sqlite else None
        self.storage = optuna.storages.get_storage(url)
        self.names = (f"study {n}" for n in itertools.count())
        self.sampler = HypergradSampler(seed=seed)
        # Optuna's own samplers are for one study each.
        ours = HypergradSampler(seed=seed + 1)
        self.others: list[Callable[[], BaseSampler]] = [
            lambda: ours,
            lambda: TPESampler(seed=seed),
            lambda: RandomSampler(seed=seed),
        ]
        self.study = optuna.create_study(study_name=next(self.names), storage=self.storage, sampler=self.sampler)
        self.high, self.extra = 1.0, False
        self.shape: tuple[int, ...] = (2, 2)
        self.killed: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # what a trial is

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        suggested: dict[str, Any] = {"layers": trial.suggest_int("layers", 1, 3)}
        suggested["array"] = suggest_array(trial, "array", self.shape, -1, self.high)
        suggested["number"] = trial.suggest_float("number", -1, self.high)
        if self.extra:
            suggested["extra"] = trial.suggest_float("extra", -1, 1)
        return suggested

    def evaluate(self, trial: optuna.Trial, suggested: dict[str, Any]) -> float:
        value = value_of(suggested)
        trial.set_user_attr("names", list(suggested))  # the copy of a trial may have more, from another objective
        if wants_gradient(trial, value):
            slopes = {name: 2 * (suggested[name] - 0.3) for name in suggested if name != "layers"}
            report_gradient(trial, slopes)
        return value

    def run(self) -> optuna.Trial:
        trial = self.study.ask()
        self.study.tell(trial, self.evaluate(trial, self.suggest(trial)))
        return trial

    # what users do

    @rule(trials=st.integers(1, 6))
    def run_some(self, trials: int) -> None:
        for _ in range(trials):
            self.run()

    @rule(trials=st.integers(2, 4), backwards=st.booleans())
    def run_side_by_side(self, trials: int, backwards: bool) -> None:
        asked = [(trial, self.suggest(trial)) for trial in [self.study.ask() for _ in range(trials)]]
        for trial, suggested in reversed(asked) if backwards else asked:
            self.study.tell(trial, self.evaluate(trial, suggested))

    @rule(how=st.sampled_from(["prune", "fail", "nan", "infinite", "constraint"]), early=st.booleans())
    def run_badly(self, how: str, early: bool) -> None:
        trial = self.study.ask()
        suggested = self.suggest(trial) if not (early and how in ("prune", "fail")) else {}
        if how in ("prune", "fail"):
            self.study.tell(trial, state=TrialState.PRUNED if how == "prune" else TrialState.FAIL)
        elif how == "constraint":
            trial.set_constraint("broken", 1.0)
            self.study.tell(trial, self.evaluate(trial, suggested))
        else:
            self.study.tell(trial, math.inf if how == "infinite" else math.nan)

    @rule(where=st.sampled_from(["begun", "some", "suggested", "evaluated"]), retried=st.booleans())
    def kill(self, where: str, retried: bool) -> None:
        """Ask for a trial and never tell of it; perhaps it fails for want of heartbeats, and waits to run once more."""
        trial = self.study.ask()
        if where == "some":
            trial.suggest_int("layers", 1, 3)
            trial.suggest_float("number", -1, self.high)
        elif where != "begun":
            suggested = self.suggest(trial)
            if where == "evaluated":
                self.evaluate(trial, suggested)
        self.killed.append(trial.number)
        if retried:
            dead = self.storage.get_trial(trial._trial_id)
            self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            history = {"failed_trial": dead.number, "retry_history": [dead.number]}
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    params=dead.params,
                    distributions=dead.distributions,
                    user_attrs=dead.user_attrs,
                    system_attrs={**dead.system_attrs, **history},
                )
            )

    @rule(
        array=st.sampled_from(["level", "whole", "elements", "none"]), number=st.booleans(), value=st.floats(-0.9, 0.4)
    )
    def enqueue(self, array: str, number: bool, value: float) -> None:
        whole = np.full(self.shape, value)
        whole.flat[0] = -value / 2
        elements = {f"array[{','.join(map(str, i))}]": float(whole[i]) for i in np.ndindex(*self.shape)}
        arrays: dict[str, dict[str, Any]] = {
            "level": {"array": value},
            "whole": {"array": whole.tolist()},
            "elements": elements,
        }
        self.study.enqueue_trial({**arrays.get(array, {}), **({"number": value} if number else {})})

    @rule(which=st.integers(0, 99), attributes_too=st.booleans())
    def enqueue_again(self, which: int, attributes_too: bool) -> None:
        trials = [t for t in self.study.trials if t.state == TrialState.COMPLETE and t.params]
        if trials:
            again = trials[which % len(trials)]
            self.study.enqueue_trial(again.params, user_attrs=again.user_attrs if attributes_too else None)

    @rule(which=st.integers(0, 99))
    def add_a_copy(self, which: int) -> None:
        trials = [t for t in self.study.trials if t.state.is_finished()]
        if trials:
            self.study.add_trial(trials[which % len(trials)])

    @rule()
    def add_a_stranger(self) -> None:
        self.study.add_trial(optuna.trial.create_trial(value=5.0))

    @rule(high=st.sampled_from([0.5, 1.0, 2.0]))
    def change_the_bounds(self, high: float) -> None:
        self.high = high

    @rule()
    def change_the_names(self) -> None:
        self.extra = not self.extra

    @precondition(lambda self: not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]))
    @rule()
    def change_the_shape(self) -> None:
        self.shape = (2, 2) if self.shape == (3,) else (3,)

    @rule(which=st.integers(0, 2), trials=st.integers(1, 4))
    def search_with_another_sampler(self, which: int, trials: int) -> None:
        """The user's own sampler goes on where the other one stops."""
        self.study.sampler = self.others[which]()
        for _ in range(trials):
            self.run()
        self.study.sampler = self.sampler

    @rule()
    def copy_the_study(self) -> None:
        name = next(self.names)
        optuna.copy_study(
            from_study_name=self.study.study_name,
            from_storage=self.storage,
            to_storage=self.storage,
            to_study_name=name,
        )
        self.study = optuna.load_study(study_name=name, storage=self.storage, sampler=self.sampler)

    @rule()
    def begin_anew_under_the_same_name(self) -> None:
        name = self.study.study_name
        optuna.delete_study(study_name=name, storage=self.storage)
        self.study = optuna.create_study(study_name=name, storage=self.storage, sampler=self.sampler)

    @rule()
    def steps_go_on(self) -> None:
        trials = [self.run() for _ in range(TRIALS_UNTIL_A_STEP)]
        finished = self.study.trials
        found = any(value_of({**hyperparameters_of(t), "layers": 0}) < AT_THE_BOTTOM for t in self.complete())
        assert found or any(attributes.wanted(finished[trial.number]).parent is not None for trial in trials)

    # what must hold

    def complete(self) -> Iterator[FrozenTrial]:
        for trial in self.study.trials:
            if trial.state == TrialState.COMPLETE and trial.params and trial.value != math.inf:
                yield trial

    @invariant()
    def values_belong_to_their_hyperparameters(self) -> None:
        for trial in self.complete() if hasattr(self, "study") else ():
            known = hyperparameters_of(trial)
            assert trial.value == pytest.approx(value_of({n: known[n] for n in trial.user_attrs["names"]}), rel=1e-12)

    @invariant()
    def gradients_belong_to_their_hyperparameters(self) -> None:
        for trial in self.complete() if hasattr(self, "study") else ():
            h, reported = hyperparameters_of(trial), trial.user_attrs.get(attributes.GRADIENT) or {}
            if "number" in reported:
                assert reported["number"] == pytest.approx(2 * (h["number"] - 0.3), rel=1e-6, abs=1e-6)

    @invariant()
    def no_step_is_taken_twice(self) -> None:
        seen = set()
        for trial in self.study.trials if hasattr(self, "study") else ():
            wanted = attributes.wanted(trial)
            lost = trial.state in (TrialState.FAIL, TrialState.RUNNING)
            if wanted.parent is None or wanted.again or lost or not trial.params:
                continue
            point = repr(sorted((name, np.asarray(x).tolist()) for name, x in hyperparameters_of(trial).items()))
            assert (wanted.parent, point) not in seen, f"trial {trial.number} extends {wanted.parent} as another did"
            seen.add((wanted.parent, point))


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def expected_warnings(test: Callable[..., None]) -> Callable[..., None]:
    """Ignore what a walk may be told: its trials fail and change their bounds, and some are run again with the old."""
    for message in (
        "HypergradSampler. .* finished trials are not used",
        "HypergradSampler. all of the first .* trials have failed",
        ".* out of range for distribution",
        "suggest_array. the user's .* is out of range",  # the same of an array
        "The value nan is not acceptable",
        "Inconsistent parameter values for distribution",  # run again with the bounds of its first life
        r"HypergradSampler. the gradient of trial .* is ignored. gradient\['array'\] must be numbers",  # a copy's
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@pytest.mark.slow
@expected_warnings
def test_a_walk_through_histories() -> None:
    few = settings(
        max_examples=12,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=CHECKS,
    )
    run_state_machine_as_test(Histories, settings=few)


@pytest.mark.slow
@expected_warnings
def test_a_long_walk_through_histories() -> None:
    many = settings(
        max_examples=300,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=CHECKS,
    )
    run_state_machine_as_test(Histories, settings=many)
