"""A sweep by Ray Tune: one run of one searcher, on this machine or on the nodes of a cluster."""

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from ray import tune
from ray.tune.experiment import Trial
from rich.table import Table

from hypergrad_ray import param_space, trainable
from hypergrad_ray.config import RESERVED
from hypergrad_search import Space, Status
from hypergrad_search.from_function import FunctionProblem
from hypergrad_studies.clusters import cluster
from hypergrad_studies.records import SOUND
from hypergrad_studies.rivals import Rival, Setting
from hypergrad_studies.spending import IN_RAY, SECONDS, Budget, NoCost
from hypergrad_studies.sweep.plan import Plan
from hypergrad_studies.sweep.progress import add_best
from hypergrad_studies.tasks import TrainableTask, TrainingTask

FAILURES = 10  # so many trials that all fail end a run
LOST = 3  # how often a trial whose process or node was lost is run again


@dataclass(frozen=True)
class _Posed:
    """A plan's problem in Ray's terms; `space` is that of a training problem, and `domains` is Ray's own."""

    trainable: Any
    space: Space | None
    domains: dict[str, Any]
    metric: str


class Spent(tune.Stopper):
    """Ends a run when its trials have spent a budget; what they have spent is kept in a file, for runs that go on."""

    def __init__(self, budget: Budget, path: Path) -> None:
        self._budget, self._path = budget, path
        self._costs: dict[str, float | None] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count a trial's cost, and never stop it alone."""
        name = "time_total_s" if self._budget.unit == SECONDS else "gradient_evaluations"
        costs = self._known()
        costs[trial_id] = result.get(name)
        self._path.write_text(json.dumps(costs), encoding="utf-8")
        return False

    def stop_all(self) -> bool:
        """Return whether the budget is spent. Raises `NoCost` where a trial does not say what it cost."""
        costs = self._known().values()
        if None in costs:
            raise NoCost("a trial", IN_RAY)
        return sum(cost for cost in costs if cost is not None) >= self._budget.amount

    def _known(self) -> dict[str, float | None]:
        if self._costs is None:
            self._costs = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        return self._costs


class AllFailed(RuntimeError):
    """The first trials of a run have all failed. The message is one line."""


class Shown(tune.Callback):
    """Prints a line for each new best trial."""

    def __init__(self, metric: str, *, maximise: bool) -> None:
        self._metric, self._sign = metric, -1 if maximise else 1
        self._best, self._ended = math.inf, 0

    def get_state(self) -> dict[str, Any]:
        """Return what a run that goes on must know."""
        return {"best": self._best, "ended": self._ended}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self._best, self._ended = state["best"], state["ended"]

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End a run of which nothing can come. Raises `AllFailed`."""
        if len(trials) >= FAILURES and all(trial.status == Trial.ERROR for trial in trials[:FAILURES]):
            raise AllFailed(f"the first {FAILURES} trials have all failed; see {trial.error_file}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print a trial that is better than all before."""
        self._ended += 1
        result = trial.last_result
        if _is_sound(result, self._metric) and self._sign * result[self._metric] < self._best:
            self._best = self._sign * result[self._metric]
            print(f"trial {trial.trial_id}: {result[self._metric]:.6g}, the best of {self._ended}", flush=True)


def run(plan: Plan, workers: int | None, timeout: float | None, address: str | None) -> tune.ResultGrid:
    """Run the trials of a plan, so many at once as there are `workers`, or cores; go on where it stopped.

    A trial whose process or node is lost is run again. Raises `ValueError` where the plan's objective is Optuna's.
    """
    posed, rival = _posed(plan), plan.rival()
    folder = str(Path(plan.storage).resolve())
    _check_limits(plan, Path(folder, f"{directory(plan.study)}.limits.json"))
    with cluster(workers, address, {"NPROC": "1"}):  # the number of threads that XLA computes with
        if tune.Tuner.can_restore(f"{folder}/{directory(plan.study)}"):
            tuner = tune.Tuner.restore(
                f"{folder}/{directory(plan.study)}", posed.trainable, resume_errored=True, param_space=posed.domains
            )
        else:
            tuner = _tuner(plan, posed, rival, workers, timeout, folder)
        return tuner.fit()


def _check_limits(plan: Plan, path: Path) -> None:
    """Keep the limits of a sweep that begins; raise `ValueError` where one goes on with others, which Ray ignores."""
    now = json.dumps(asdict(plan.limits))
    if path.exists() and path.read_text(encoding="utf-8") != now:
        raise ValueError(
            f"the sweep {plan.study!r} was begun with the limits {path.read_text()}; choose another --study"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(now, encoding="utf-8")


def directory(study: str) -> str:
    """Return the name of a study's folder."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in study)


def _tuner(
    plan: Plan, posed: _Posed, rival: Rival, workers: int | None, timeout: float | None, folder: str
) -> tune.Tuner:
    assert rival.searcher is not None
    limits = plan.limits
    setting = Setting(
        secrets.randbelow(2**32), limits.budget or Budget(1), metric=posed.metric, maximise=plan.maximises
    )
    knows = rival.own_space and posed.space is not None
    return tune.Tuner(
        posed.trainable,
        param_space={} if knows else posed.domains,
        tune_config=tune.TuneConfig(
            metric=posed.metric,
            mode="max" if plan.maximises else "min",
            search_alg=rival.searcher(setting, posed.space),
            num_samples=-1 if limits.trials is None else limits.trials,
            max_concurrent_trials=workers,
            time_budget_s=timeout,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=directory(plan.study),
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=LOST),
            stop=None
            if limits.budget is None
            else Spent(limits.budget, Path(folder, f"{directory(plan.study)}.spent.json")),
            callbacks=[Shown(posed.metric, maximise=plan.maximises)],
            verbose=0,
        ),
    )


def _posed(plan: Plan) -> _Posed:
    task, rival = plan.task(), plan.rival()
    if isinstance(task, TrainableTask):
        return _Posed(task.trainable, None, dict(task.param_space), task.metric)
    if not isinstance(task, TrainingTask):
        raise ValueError(f"{plan.problem} is an objective of Optuna; leave out --engine ray")
    problem, space = task.posed(lifts=bool(rival.lifts))
    if isinstance(problem, FunctionProblem):
        return _Posed(trainable(problem, space), space, param_space(space), "loss")
    return _Posed(trainable(problem, space, method=rival.how, key=jax.random.key(0)), space, param_space(space), "loss")


def find(storage: str, study: str) -> tune.ExperimentAnalysis:
    """Return what a sweep has left. Raises `ValueError` where there is none of this name."""
    folder = Path(storage).resolve() / directory(study)
    if not tune.Tuner.can_restore(str(folder)):
        known = sorted(path.name for path in folder.parent.glob("*") if tune.Tuner.can_restore(str(path)))
        raise ValueError(f"{storage} has no study {directory(study)!r}; it has {', '.join(known) or 'none'}")
    return tune.ExperimentAnalysis(os.fspath(folder))


def table(analysis: tune.ExperimentAnalysis, metric: str, *, maximise: bool) -> Table:
    """Return what `hypergrad sweep status` shows."""
    trials = analysis.trials or []
    view = Table(title=Path(analysis.experiment_path).name, box=None, show_header=False)
    view.add_column(justify="right")
    view.add_column(overflow="fold")
    for state, count in Counter(trial.status for trial in trials).most_common():
        view.add_row(f"{count:,}", str(state).lower())
    results = [(trial, trial.last_result) for trial in trials if _is_sound(trial.last_result, metric)]
    spent = sum(float(result.get("gradient_evaluations", 0.0)) for _, result in results)
    if spent:
        view.add_row(f"{spent:,.0f}", "gradient evaluations")
    view.add_row(f"{sum(float(r.get('time_total_s', 0.0)) for _, r in results):,.1f}", "seconds of trials")
    if not results:
        view.add_row("none", "is the best trial yet")
        return view
    best, result = min(results, key=lambda pair: -pair[1][metric] if maximise else pair[1][metric])
    searched = {name: value for name, value in best.config.items() if name != RESERVED}
    add_best(view, f"{result[metric]:.6g}", f"is the best {metric}, of trial {best.trial_id}, with", searched)
    return view


def _is_sound(result: Mapping[str, Any], metric: str) -> bool:
    value = result.get(metric)
    status = result.get("status", Status.OK)
    return isinstance(value, int | float) and math.isfinite(value) and status in SOUND
