"""One run of a study inside Optuna: a method on a problem with a seed, until its budget is spent."""

import math
import time
from collections.abc import Callable

import jax
import optuna
from optuna.trial import TrialState

from hypergrad_optuna import Objective, refined
from hypergrad_optuna.attributes import COST
from hypergrad_search import evaluate
from hypergrad_search.space import dimension
from hypergrad_studies.methods import EXACT, OPTUNA
from hypergrad_studies.problems import NOISY, posed
from hypergrad_studies.records import Record


def run(problem_name: str, method_name: str, seed: int, budget: int, on_record: Callable[[Record], None]) -> None:
    """Search until `budget` gradient evaluations are spent; every trial goes to `on_record` when it is done."""
    method = OPTUNA[method_name]
    problem, space = posed(problem_name, lifts=method.lifts)
    study = optuna.create_study(
        study_name=f"{problem_name} {method_name} {seed}",  # Hyperband draws brackets by it
        sampler=method.sampler(seed, dimension(space)),
        pruner=method.pruner(problem.steps),
    )
    objective = Objective(
        problem,
        space,
        method=method.how,
        key=jax.random.key(seed),
        reseed=problem_name in NOISY,
        report_every=method.report_every(problem.steps),
    )
    spent = 0
    while spent < budget:
        asked = time.perf_counter()
        trial = study.ask()
        hyperparameters = objective.suggest(trial)
        evaluated = time.perf_counter()
        value, state, error = None, TrialState.COMPLETE, None
        try:
            value = objective.evaluate(trial, hyperparameters)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except ArithmeticError as failure:
            state, error = TrialState.FAIL, str(failure)
        retrained, found = None, refined.hyperparameters(trial, None)
        if method.retrains and found is not None:
            retrained = evaluate(problem, found, method=EXACT, key=objective.key, gradient_below=-math.inf)
        told = time.perf_counter()
        frozen = study.tell(trial, value, state=state)
        finished = time.perf_counter()
        attributes = frozen.user_attrs
        spent += int(attributes.get(COST, problem.steps))  # a failure has spent its training at the most
        loss = math.inf if frozen.value is None or state != TrialState.COMPLETE else frozen.value
        test_loss = attributes.get("hypergrad:test_loss")
        if retrained is not None:
            spent += int(retrained.cost.gradient_evaluations)
            loss, test_loss = retrained.value, retrained.diagnostics["test_loss"]
            attributes = {f"hypergrad:{name}": retrained.diagnostics[name] for name in ("status", "message")}
        on_record(
            Record(
                problem=problem_name,
                method=method_name,
                seed=seed,
                trial=trial.number,
                value=loss,
                test_value=test_loss,
                gradient_evaluations=spent,
                seconds=told - evaluated,
                ask_seconds=evaluated - asked,
                tell_seconds=finished - told,
                status={TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(
                    state, attributes.get("hypergrad:status", "ok")
                ),
                error=error or attributes.get("hypergrad:message"),
            )
        )
