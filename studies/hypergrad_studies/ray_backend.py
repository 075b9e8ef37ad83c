"""One run of a study inside Ray Tune: a rival on a task with a seed, until its budget is spent."""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from hypergrad_ray import param_space, trainable
from hypergrad_ray.config import RESERVED
from hypergrad_ray.results import RUNNING
from hypergrad_search import Space
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.nesting import flat
from hypergrad_search.space import dimension
from hypergrad_studies.clusters import cluster
from hypergrad_studies.records import FAILED, PRUNED, Key, Record, in_short
from hypergrad_studies.rivals import Rival, Setting
from hypergrad_studies.spending import IN_RAY, SECONDS, Budget, NoCost, plus
from hypergrad_studies.tasks import TrainableTask, TrainingTask

CPUS = 2  # so many trials run at once on every machine; otherwise asynchronous methods could not be compared


@dataclass(frozen=True)
class Trials:
    """How the trials of a task are run.

    - `space`: the space of a training problem.
    - `domains`: the space in Ray's own terms.
    - `steps`: the steps of a training problem.
    - `most`: what a trial costs that does not say, as one that failed; None where nobody knows.
    """

    trainable: Any
    space: Space | None
    domains: Mapping[str, Any]
    metric: str = "loss"
    maximise: bool = False
    steps: int | None = None
    most: float | None = None


def run(
    task: TrainingTask | TrainableTask, rival: Rival, seed: int, budget: Budget, on_record: Callable[[Record], None]
) -> None:
    """Search until the budget is spent; every trial goes to `on_record` when it is done."""
    trials = _of_users(task) if isinstance(task, TrainableTask) else training(task, rival, seed)
    dimensions = None if trials.space is None else dimension(trials.space)
    setting = Setting(seed, budget, dimensions, trials.steps, trials.metric, trials.maximise)
    assert rival.searcher is not None
    searcher = rival.searcher(setting, trials.space)
    # random search is no Searcher: it is neither asked nor told
    timed = Timed(searcher) if isinstance(searcher, Searcher) else None
    recorder = Recorder((task.name, rival.name, seed), trials, timed, on_record)
    knows = rival.own_space and trials.space is not None
    with tempfile.TemporaryDirectory() as folder:
        tune.run(
            trials.trainable,
            config=None if knows else dict(trials.domains),
            metric=trials.metric,
            mode="max" if trials.maximise else "min",
            search_alg=timed or searcher,
            scheduler=None if rival.scheduler is None or trials.steps is None else rival.scheduler(trials.steps),
            num_samples=-1,
            max_concurrent_trials=CPUS if timed else None,
            reuse_actors=True,
            raise_on_failed_trial=False,
            storage_path=folder,
            callbacks=[recorder],
            stop=BudgetStopper(recorder, budget),
            verbose=0,
        )


def _of_users(task: TrainableTask) -> Trials:
    return Trials(task.trainable, None, task.param_space, task.metric, task.maximise)


def training(task: TrainingTask, rival: Rival, seed: int) -> Trials:
    """Return how the trials of a training problem are run."""
    problem, space = task.posed(lifts=bool(rival.lifts))
    if isinstance(problem, FunctionProblem):
        return Trials(trainable(problem, space), space, param_space(space), steps=problem.steps, most=1.0)
    trains = trainable(
        problem, space, method=rival.how, key=jax.random.key(seed), report_every=rival.reports(problem.steps)
    )
    most = rival.how.cost(problem, problem.steps, space)
    return Trials(trains, space, param_space(space), steps=problem.steps, most=most)


class Timed(Searcher):
    """A searcher, and the seconds that it takes to ask and to tell, by trial."""

    def __init__(self, searcher: Searcher) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.asking: dict[str, float] = {}
        self.telling: dict[str, float] = {}
        self._searcher = searcher

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Pass the call on."""
        return bool(self._searcher.set_search_properties(metric, mode, config, **spec))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Pass the call on, and time it."""
        started = time.perf_counter()
        suggestion: dict[str, Any] | None = self._searcher.suggest(trial_id)
        self.asking[trial_id] = time.perf_counter() - started
        return suggestion

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the call on."""
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the call on, and time it."""
        started = time.perf_counter()
        self._searcher.on_trial_complete(trial_id, result=result, error=error)
        self.telling[trial_id] = time.perf_counter() - started

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a study's runs are never restored."""


class Recorder(tune.Callback):
    """Turns Ray's trials into records, in the order in which they end, and counts what they have spent."""

    def __init__(self, key: Key, trials: Trials, timed: Timed | None, on_record: Callable[[Record], None]) -> None:
        self.evaluations: int | float | None = 0
        self.seconds = 0.0
        self._key, self._of = key, trials
        self._timed, self._on_record = timed, on_record
        self._trials = 0
        self._began: dict[str, float] = {}
        self._dearest = 0.0  # what a trial is charged that failed before it said its cost

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it to restore a run, which a study never does

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note when a trial begins."""
        self._began[trial.trial_id] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that ended, by itself or because a scheduler stopped it, perhaps before its first report."""
        if self._of.space is None:  # a user's own
            self._record(trial, "ok" if self._of.metric in trial.last_result else PRUNED, None)
            return
        status = trial.last_result.get("status", RUNNING)
        self._record(trial, PRUNED if status == RUNNING else status, trial.last_result.get("message"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that raised an error."""
        self._record(trial, FAILED, f"see {trial.error_file}")

    def _record(self, trial: Trial, status: str, error: str | None) -> None:
        result = trial.last_result
        cost = result.get("gradient_evaluations", self._of.most)
        if cost is None and status in (PRUNED, FAILED):
            cost = self._dearest
        self._dearest = max(self._dearest, cost or 0.0)
        elapsed = time.monotonic() - self._began.pop(trial.trial_id, time.monotonic())
        self.evaluations = plus(self.evaluations, cost)
        record = Record(
            *self._key,
            trial=self._trials,
            value=math.inf if status in (PRUNED, FAILED) else self._loss(result),
            test_value=result.get("test_loss"),
            gradient_evaluations=self.evaluations,
            seconds=float(result.get("seconds", result.get("time_total_s", elapsed))),
            ask_seconds=self._timed.asking.get(trial.trial_id, 0.0) if self._timed else 0.0,
            tell_seconds=self._timed.telling.get(trial.trial_id, 0.0) if self._timed else 0.0,
            status=status,
            error=error or None,
            cross_validated=result.get("cross_validated"),
            hyperparameters=in_short(_hyperparameters(trial)),
        )
        self.seconds += record.seconds + record.ask_seconds + record.tell_seconds
        self._on_record(record)
        self._trials += 1

    def _loss(self, result: Mapping[str, Any]) -> float:
        value = float(result[self._of.metric])
        return -value if self._of.maximise else value


def _hyperparameters(trial: Trial) -> dict[str, Any]:
    """Return what a trial evaluated; where the evaluation itself moved it, what it ended at."""
    own = {name: value for name, value in trial.config.items() if name != RESERVED}
    refined = trial.last_result.get("refined")
    return {**flat(own), **flat(refined)} if refined else own


class BudgetStopper(tune.Stopper):
    """Ends a run when its trials have spent the budget."""

    def __init__(self, recorder: Recorder, budget: Budget) -> None:
        self._recorder, self._budget = recorder, budget

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the budget is spent. Raises `NoCost` where it cannot be known."""
        if self._budget.unit == SECONDS:
            return self._recorder.seconds >= self._budget.amount
        if self._recorder.evaluations is None:
            raise NoCost("a trial", IN_RAY)
        return self._recorder.evaluations >= self._budget.amount


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Have a Ray of this process alone for all runs, unless one is there already."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our records are the log
    with contextlib.nullcontext() if ray.is_initialized() else cluster(CPUS, None):
        yield
