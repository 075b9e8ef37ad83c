"""One run of a study inside Optuna: a rival on a task with a seed, until its budget is spent."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import Objective, attributes, hyperparameters_of
from hypergrad_search import Status, evaluate
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.search.ask_tell import spread
from hypergrad_search.space import as_given, centre, dimension
from hypergrad_studies.records import FAILED, PRUNED, Key, Record, in_short
from hypergrad_studies.resuming import Resuming
from hypergrad_studies.rivals import Rival, Setting
from hypergrad_studies.spending import IN_OPTUNA, SECONDS, Budget, NoCost, plus
from hypergrad_studies.statistics import History, chosen
from hypergrad_studies.tasks import ObjectiveTask, TrainingTask

#: How many keys, which no trial had, train once more at what a run has found.
FRESH_KEYS = 5

_FIRST_FRESH = 2**31  # beyond the numbers of trials, which are folded into keys too


def run(
    task: TrainingTask | ObjectiveTask, rival: Rival, seed: int, budget: Budget, on_record: Callable[[Record], None]
) -> tuple[float, ...]:
    """Search until the budget is spent; every trial goes to `on_record` when it is done.

    Return the test losses at what the run has found, with fresh keys; none where there is no test loss, the rival
    keeps weights of its own in place of training anew, or the task is an objective.

    Raises `NoCost`, and what an objective raises.
    """
    assert rival.sampler is not None
    trials: _Trials = (
        _Objective(task) if isinstance(task, ObjectiveTask) else _Training(task, rival, jax.random.key(seed))
    )
    setting = Setting(seed, budget, trials.dimensions, trials.steps)
    study = optuna.create_study(
        study_name=f"{task.name} {rival.name} {seed}",  # Hyperband draws brackets by it
        direction="maximize" if trials.maximise else "minimize",
        sampler=rival.sampler(setting),
        pruner=rival.pruner(setting),
    )
    if rival.centre:
        assert isinstance(trials, _Training)  # see `Rival.trains`
        study.enqueue_trial(trials.centre())
    key: Key = (task.name, rival.name, seed)
    spent, seen, dearest = _Spent(), list[Record](), 0.0
    while spent.in_unit(budget) < budget.amount and len(seen) < rival.trials:
        asked = time.perf_counter()
        trial = study.ask()
        point = trials.suggest(trial)
        evaluated = time.perf_counter()
        value, state, error = None, None, None
        try:
            value = trials.evaluate(trial, point)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except ArithmeticError as failure:
            state, error = TrialState.FAIL, str(failure)
        told = time.perf_counter()
        ended = study.tell(trial, value, state=state)  # it has failed where the value is NaN, or none at all
        done = time.perf_counter()
        cost = ended.user_attrs.get(attributes.COST, trials.most)
        if cost is None and ended.state is not TrialState.COMPLETE:
            cost = dearest  # it failed before it said its cost
        dearest = max(dearest, cost or 0)
        if cost is None and budget.unit != SECONDS:
            raise NoCost(f"{task.name}: trial {trial.number}", IN_OPTUNA)
        record = Record(
            *key,
            trial=trial.number,
            value=_loss(ended, maximise=trials.maximise),
            test_value=ended.user_attrs.get(attributes.TEST_LOSS),
            gradient_evaluations=plus(spent.evaluations, cost),
            seconds=told - evaluated,
            ask_seconds=evaluated - asked,
            tell_seconds=done - told,
            status=_status(ended),
            error=error or ended.user_attrs.get(attributes.MESSAGE) or _no_value(ended, value),
            cross_validated=ended.user_attrs.get(attributes.CROSS_VALIDATED),
            hyperparameters=in_short(hyperparameters_of(ended)),
        )
        record = trials.recorded(record, ended)
        spent = _Spent(record.gradient_evaluations, spent.seconds + time.perf_counter() - asked)
        seen.append(record)
        on_record(record)
    best = chosen(History(key, tuple(seen), budget))
    return () if best is None else trials.fresh(study.trials[best.trial])


@dataclass(frozen=True)
class _Spent:
    """What a run has spent so far; `evaluations` is None where a trial did not say."""

    evaluations: int | float | None = 0
    seconds: float = 0.0

    def in_unit(self, budget: Budget) -> float:
        """Return it in the budget's unit."""
        return self.seconds if budget.unit == SECONDS else self.evaluations or 0


class _Trials(Protocol):
    """How the trials of a task are run.

    - `dimensions`, `steps`: as in `Setting`.
    - `most`: what a trial costs that does not say, as one that failed; None where nobody knows.
    """

    maximise: bool
    dimensions: int | None
    steps: int | None
    most: float | None

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let the sampler choose."""

    def evaluate(self, trial: optuna.Trial, point: Any) -> float | None:
        """Return the value at what was chosen."""

    def recorded(self, record: Record, trial: FrozenTrial) -> Record:
        """Return the record as it is kept."""

    def fresh(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Return the test losses at a trial's hyperparameters, with fresh keys."""


class _Training(_Trials):
    """Trials of a training problem, whose choice and evaluation are timed each."""

    maximise = False

    def __init__(self, task: TrainingTask, rival: Rival, key: jax.Array) -> None:
        self._rival = rival
        self._problem, self._space = rival.posed(task)
        self._searched = rival.searched(self._space)
        self.dimensions, self.steps = dimension(self._searched), self._problem.steps
        self._suggesting = Objective(self._problem, self._searched)
        function = isinstance(self._problem, FunctionProblem)
        self._objective = Objective(
            self._problem,
            self._space,
            method=None if function else Resuming(rival.how) if rival.resumes else rival.how,
            key=None if function else key,
            reseed=task.reseed,
            report_every=None if function else rival.reports(self.steps),
        )
        self.most = self._objective.hosted.method.cost(self._problem, self.steps, self._space)

    def centre(self) -> dict[str, Any]:
        """Return the centre of the space, as the sampler sees it."""
        return centre(self._searched)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return self._whole(self._suggesting.suggest(trial))

    def evaluate(self, trial: optuna.Trial, point: dict[str, Any]) -> float:
        return self._objective.evaluate(trial, point)

    def recorded(self, record: Record, trial: FrozenTrial) -> Record:
        return _retrained(record, self._objective, trial) if self._rival.retrains and record.sound else record

    def fresh(self, trial: FrozenTrial) -> tuple[float, ...]:
        if self._rival.how.continues or isinstance(self._problem, FunctionProblem) or self._problem.test_loss is None:
            return ()
        return fresh_losses(self._objective, self._whole(hyperparameters_of(trial)))

    def _whole(self, chosen: dict[str, Any]) -> dict[str, Any]:
        return spread(self._space, chosen) if self._rival.tied else chosen


class _Objective(_Trials):
    """Trials of a user's own objective, which chooses as it goes."""

    dimensions = steps = most = None

    def __init__(self, task: ObjectiveTask) -> None:
        self._objective = task.objective
        self.maximise = task.maximise

    def suggest(self, trial: optuna.Trial) -> None:
        return None

    def evaluate(self, trial: optuna.Trial, point: None) -> float | None:
        return self._objective(trial)

    def recorded(self, record: Record, trial: FrozenTrial) -> Record:
        return record

    def fresh(self, trial: FrozenTrial) -> tuple[float, ...]:
        return ()


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


def _loss(trial: FrozenTrial, *, maximise: bool) -> float:
    # the value of a pruned trial is that of its last report
    if trial.state is not TrialState.COMPLETE or trial.value is None:
        return math.inf
    return -trial.value if maximise else trial.value


def _status(trial: FrozenTrial) -> str:
    unfinished = {TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
    return unfinished.get(trial.state) or str(trial.user_attrs.get(attributes.STATUS, Status.OK))


def _no_value(trial: FrozenTrial, value: Any) -> str | None:
    return f"the objective returned {value!r}" if trial.state is TrialState.FAIL else None


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
        gradient_evaluations=(record.gradient_evaluations or 0) + int(evaluation.cost.gradient_evaluations),
        seconds=record.seconds + time.perf_counter() - started,
        status=str(evaluation.status),
        error=evaluation.message or None,
    )
