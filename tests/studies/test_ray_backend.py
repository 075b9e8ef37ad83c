"""Trials of Ray become records, whatever they report; without a cluster."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.ray_backend import BudgetStopper, Recorder, training
from hypergrad_studies.records import Record
from hypergrad_studies.rivals import RIVALS
from hypergrad_studies.spending import Budget


def trial(**result: Any) -> Any:
    config = {"rate": 0.1, "decay": 0.5, "l2[0]": 1.0, "l2[1]": 3.0, "hypergrad": "what the searcher wants"}
    return SimpleNamespace(trial_id="a", last_result=result, config=config, error_file="the error's file")


def test_trials_are_recorded_in_the_order_in_which_they_end() -> None:
    seen: list[Record] = []
    trials = replace(training(PROBLEMS["cancer-mlp"](), RIVALS["asha"], 0), most=400.0)
    recorder = Recorder(("digits", "asha", 3), trials, None, seen.append)
    stopper = BudgetStopper(recorder, Budget(1050))
    sound = {"refined": {"rate": 0.2}, "loss": 0.5, "test_loss": 0.6, "gradient_evaluations": 100.0, "seconds": 1.5}
    recorder.on_trial_complete(0, [], trial(**sound, status="ok"))
    recorder.on_trial_complete(0, [], trial(**sound | {"gradient_evaluations": 10.0}, status="running"))
    recorder.on_trial_complete(0, [], trial())  # it was stopped before its first report
    recorder.on_trial_complete(0, [], trial(**sound, status="overfitted"))
    assert not stopper.stop_all()
    recorder.on_trial_error(0, [], trial())
    recorder.on_trial_error(0, [], trial(**sound | {"gradient_evaluations": 50.0}, status="running"))
    assert stopper.stop_all()
    assert [(r.trial, r.status, r.value) for r in seen] == [
        (0, "ok", 0.5),
        (1, "pruned", math.inf),
        (2, "pruned", math.inf),
        (3, "overfitted", 0.5),
        (4, "failed", math.inf),
        (5, "failed", math.inf),
    ]
    assert [r.sound for r in seen] == [True] + [False] * 5  # what has overfitted is never the best so far
    assert [r.gradient_evaluations for r in seen] == [100, 110, 510, 610, 1010, 1060]
    assert [r.error for r in seen] == [None] * 4 + ["see the error's file"] * 2
    assert [r.hyperparameters for r in seen[:3:2]] == [
        {"rate": rate, "decay": 0.5, "l2": "2 numbers, 1 to 3, median 2"}
        for rate in (0.2, 0.1)  # the evaluation itself moved the first one
    ]
    assert (seen[0].key, seen[0].test_value, seen[0].seconds) == (("digits", "asha", 3), 0.6, 1.5)


def test_nested_configs_have_a_name_for_each_number() -> None:
    seen: list[Record] = []
    trials = replace(training(PROBLEMS["cancer-mlp"](), RIVALS["asha"], 0), most=400.0)
    recorder = Recorder(("digits", "asha", 3), trials, None, seen.append)
    ended = trial(refined={"opt": {"rate": 0.2}}, loss=0.5, gradient_evaluations=100.0, seconds=1.5, status="ok")
    ended.config = {"opt": {"rate": 0.1, "decay": 0.5}, "l2": 1.0}
    recorder.on_trial_complete(0, [], ended)
    ended.last_result.pop("refined")
    recorder.on_trial_complete(0, [], ended)
    assert [r.hyperparameters for r in seen] == [{"opt/rate": rate, "opt/decay": 0.5, "l2": 1.0} for rate in (0.2, 0.1)]
