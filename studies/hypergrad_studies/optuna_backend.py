"""One run of a study inside Optuna: a method on a problem with a seed, until its budget is spent."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import Objective, attributes, hyperparameters_of
from hypergrad_search import Status, evaluate
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.search.ask_tell import spread
from hypergrad_search.space import centre, dimension
from hypergrad_studies.methods import OPTUNA, Setting
from hypergrad_studies.problems import NOISY
from hypergrad_studies.records import FAILED, PRUNED, Record


def run(problem_name: str, method_name: str, seed: int, budget: int, on_record: Callable[[Record], None]) -> None:
    """Search until `budget` gradient evaluations are spent; every trial goes to `on_record` when it is done."""
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
    spent = trials = 0
    while spent < budget and trials < method.trials:
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
        trials += 1
        on_record(record)


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
