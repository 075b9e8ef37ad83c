"""One run of a study inside Ray Tune: a method on a problem with a seed, until its budget is spent."""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from hypergrad_ray import param_space, trainable
from hypergrad_ray.trainable import RUNNING
from hypergrad_studies.methods import RAY
from hypergrad_studies.problems import posed
from hypergrad_studies.records import FAILED, PRUNED, Record

CPUS = 2  # so many trials run at once on every machine; otherwise asynchronous methods could not be compared


def run(
    problem_name: str, method_name: str, seed: int, budget: int, on_record: Callable[[Record], None]
) -> tuple[float, ...]:
    """Search until `budget` gradient evaluations are spent; every trial goes to `on_record` when it is done.

    Return no losses of fresh keys, which are measured inside Optuna alone.
    """
    method = RAY[method_name]
    problem, space = posed(problem_name, lifts=bool(method.lifts))
    searcher = method.searcher(space, seed)
    # random search is no Searcher: it is neither asked nor told
    timed = Timed(searcher) if isinstance(searcher, Searcher) else None
    most = method.how.cost(problem, problem.steps)  # what a trial that failed may have spent
    recorder = Recorder(problem_name, method_name, seed, most, timed, on_record)
    _start()
    with tempfile.TemporaryDirectory() as folder:
        tune.run(
            trainable(
                problem,
                space,
                method=method.how,
                key=jax.random.key(seed),
                report_every=method.report_every(problem.steps),
            ),
            config=None if method.own_space else param_space(space),
            metric="loss",
            mode="min",
            search_alg=timed or searcher,
            scheduler=method.scheduler and method.scheduler(problem.steps),
            num_samples=-1,
            max_concurrent_trials=CPUS if timed else None,
            reuse_actors=True,
            raise_on_failed_trial=False,
            storage_path=folder,
            callbacks=[recorder],
            stop=BudgetStopper(recorder, budget),
            verbose=0,
        )
    return ()


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
    """Turns Ray's trials into records, in the order in which they end; `spent` counts their gradient evaluations.

    A trial that does not report its gradient evaluations is charged `most`.
    """

    def __init__(
        self,
        problem: str,
        method: str,
        seed: int,
        most: float,
        timed: Timed | None,
        on_record: Callable[[Record], None],
    ) -> None:
        self.spent = 0
        self._problem, self._method, self._seed, self._most = problem, method, seed, most
        self._timed, self._on_record = timed, on_record
        self._trials = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it to restore a run, which a study never does

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that ended, by itself or because a scheduler stopped it, perhaps before its first report."""
        status = trial.last_result.get("status", RUNNING)
        self._record(trial, PRUNED if status == RUNNING else status, trial.last_result.get("message"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that raised an error."""
        self._record(trial, FAILED, f"see {trial.error_file}")

    def _record(self, trial: Trial, status: str, error: str | None) -> None:
        result = trial.last_result
        self.spent += int(result.get("gradient_evaluations", self._most))
        self._on_record(
            Record(
                problem=self._problem,
                method=self._method,
                seed=self._seed,
                trial=self._trials,
                value=math.inf if status in (PRUNED, FAILED) else float(result["loss"]),
                test_value=result.get("test_loss"),
                gradient_evaluations=self.spent,
                seconds=float(result.get("seconds", result.get("time_total_s", 0.0))),
                ask_seconds=self._timed.asking.get(trial.trial_id, 0.0) if self._timed else 0.0,
                tell_seconds=self._timed.telling.get(trial.trial_id, 0.0) if self._timed else 0.0,
                status=status,
                error=error or None,
                cross_validated=result.get("cross_validated"),
            )
        )
        self._trials += 1


class BudgetStopper(tune.Stopper):
    """Ends a run when its trials have spent the budget."""

    def __init__(self, recorder: Recorder, budget: int) -> None:
        self._recorder, self._budget = recorder, budget

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the budget is spent."""
        return self._recorder.spent >= self._budget


def _start() -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our records are the log
    with contextlib.redirect_stdout(None):
        ray.init(
            num_cpus=CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
        )
