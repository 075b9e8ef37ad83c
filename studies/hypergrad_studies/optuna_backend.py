"""One run of a study inside Optuna: a method on a problem with a seed, until its budget is spent."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import Objective, attributes, hyperparameters_of
from hypergrad_search import Status, evaluate
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.search.ask_tell import spread
from hypergrad_search.space import as_given, centre, dimension
from hypergrad_studies.methods import OPTUNA, Setting
from hypergrad_studies.problems import NOISY
from hypergrad_studies.records import FAILED, PRUNED, Record
from hypergrad_studies.statistics import History, chosen

#: How many keys, which no trial had, train once more at what a run has found.
FRESH_KEYS = 5

_FIRST_FRESH = 2**31  # beyond the numbers of trials, which are folded into keys too


def run(
    problem_name: str, method_name: str, seed: int, budget: int, on_record: Callable[[Record], None]
) -> tuple[float, ...]:
    """Search until `budget` gradient evaluations are spent; every trial goes to `on_record` when it is done.

    Return the test losses at what the run has found, with fresh keys; none where there is no test loss, or the method
    keeps weights of its own in place of training anew.
    """
    method = OPTUNA[method_name]
    problem, space = method.posed(problem_name)
    searched = method.searched(space)
    setting = Setting(seed, dimension(searched), problem.steps, budget)
    study = optuna.create_study(
        study_name=f"{problem_name} {method_name} {seed}",  # Hyperband draws brackets by it
        sampler=method.sampler(setting),
        pruner=method.pruner(setting),
    )
    if method.centre:
        study.enqueue_trial(centre(searched))
    key = jax.random.key(seed)
    suggest = Objective(problem, searched).suggest
    objective = Objective(
        problem,
        space,
        method=method.how,
        key=key,
        reseed=problem_name in NOISY,
        report_every=method.report_every(problem.steps),
    )
    most = method.how.cost(problem, problem.steps)  # what a trial that failed may have spent
    spent, seen = 0, list[Record]()
    while spent < budget and len(seen) < method.trials:
        asked = time.perf_counter()
        trial = study.ask()
        suggested = suggest(trial)
        hyperparameters = spread(space, suggested) if method.tied else suggested
        evaluated = time.perf_counter()
        value, state, error = None, TrialState.COMPLETE, None
        try:
            value = objective.evaluate(trial, hyperparameters)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except ArithmeticError as failure:
            state, error = TrialState.FAIL, str(failure)
        told = time.perf_counter()
        ended = study.tell(trial, value, state=state)
        done = time.perf_counter()
        record = Record(
            problem=problem_name,
            method=method_name,
            seed=seed,
            trial=trial.number,
            value=_loss(ended),
            test_value=ended.user_attrs.get(attributes.TEST_LOSS),
            gradient_evaluations=spent + int(ended.user_attrs.get(attributes.COST, most)),
            seconds=told - evaluated,
            ask_seconds=evaluated - asked,
            tell_seconds=done - told,
            status=_status(ended),
            error=error or ended.user_attrs.get(attributes.MESSAGE),
            cross_validated=ended.user_attrs.get(attributes.CROSS_VALIDATED),
        )
        if method.retrains and record.sound:
            record = _retrained(record, objective, ended)
        spent = record.gradient_evaluations
        seen.append(record)
        on_record(record)
    best = chosen(History((problem_name, method_name, seed), tuple(seen), budget))
    if best is None or method.how.continues or problem.test_loss is None:
        return ()
    found = hyperparameters_of(study.trials[best.trial])
    return fresh_losses(objective, spread(space, found) if method.tied else found)


def fresh_losses(objective: Objective, hyperparameters: dict[str, Any]) -> tuple[float, ...]:
    """Return the test losses of training with fresh keys; those of training runs that fail are infinite."""
    hosted, losses = objective.hosted, []
    for i in range(FRESH_KEYS):
        evaluation = evaluate(
            hosted.problem,
            hyperparameters,
            method=hosted.method,
            key=jax.random.fold_in(hosted.key, _FIRST_FRESH + i),
            gradient_below=-math.inf,
            space=as_given(hosted.liftable, hyperparameters),
        )
        losses.append(math.inf if evaluation.test_loss is None else evaluation.test_loss)
    return tuple(losses)


def _loss(trial: FrozenTrial) -> float:
    # the value of a pruned trial is that of its last report
    return math.inf if trial.state is not TrialState.COMPLETE or trial.value is None else trial.value


def _status(trial: FrozenTrial) -> str:
    unfinished = {TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
    return unfinished.get(trial.state) or str(trial.user_attrs.get(attributes.STATUS, Status.OK))


def _retrained(record: Record, objective: Objective, trial: FrozenTrial) -> Record:
    """Return the record with the result of training from the start at the hyperparameters that the trial refined."""
    started = time.perf_counter()
    evaluation = evaluate(
        objective.hosted.problem,
        hyperparameters_of(trial),
        method=DEFAULT_METHOD,
        key=objective.hosted.key,
        gradient_below=-math.inf,
        space=objective.hosted.space,
    )
    return replace(
        record,
        value=evaluation.value,
        test_value=evaluation.test_loss,
        gradient_evaluations=record.gradient_evaluations + int(evaluation.cost.gradient_evaluations),
        seconds=record.seconds + time.perf_counter() - started,
        status=str(evaluation.status),
        error=evaluation.message or None,
    )
