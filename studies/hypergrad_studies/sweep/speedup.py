"""How much sooner several processes of a sweep find a loss than one, on a problem of the user's own."""

import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from hypergrad_optuna import attributes
from hypergrad_search import Status
from hypergrad_studies.records import SOUND
from hypergrad_studies.sweep import driver
from hypergrad_studies.sweep.plan import Limits, Plan

Reached = list[tuple[float, float]]
"""The seconds since a sweep's first trial began, and the best loss so far, whenever a trial has ended."""


def measure(problem: str, workers: int, batch: int, trials: int, repeats: int) -> Table:
    """Return a table of the seconds that one process and several take to what one finds in so many trials.

    Of several, each trains `batch` trials at once. Each sweep has as many trials, in a SQLite database of its own. The
    target is the median of what one process has found in the end, and times are medians too; a sweep that does not
    reach the target counts as infinite. The last columns have the seconds of the whole sweep for each of its trials.
    """
    both = [[_sweep(problem, *size, trials) for _ in range(repeats)] for size in ((1, 1), (workers, batch))]
    target = statistics.median(sweep[-1][1] for sweep in both[0])
    one, several = (statistics.median(time_to(target, sweep) for sweep in sweeps) for sweeps in both)
    each, of_several = (statistics.median(sweep[-1][0] / len(sweep) for sweep in sweeps) for sweeps in both)
    name = f"{workers} process{'es' * (workers > 1)}" + f", {batch} at once" * (batch > 1)
    view = Table("loss", "1 process (s)", f"{name} (s)", "share", "s a trial", f"{name}", title=problem)
    view.add_row(
        f"{target:.4g}", f"{one:.1f}", f"{several:.1f}", f"{several / one:.2f}", f"{each:.2g}", f"{of_several:.2g}"
    )
    return view


def time_to(target: float, reached: Reached) -> float:
    """Return when a sweep had found a loss; infinite where it never had."""
    return next((seconds for seconds, best in reached if best <= target), math.inf)


def _sweep(problem: str, workers: int, batch: int, trials: int) -> Reached:
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{Path(folder, 'study.db')}"
        plan = Plan(problem, storage, "study", "hypergrad", "minimize", Limits(trials), batch=batch)
        plan.check()
        driver.run(plan, workers, None, Console(quiet=True))
        return list(reached(plan.join()))


def reached(study: optuna.Study) -> Iterator[tuple[float, float]]:
    """Yield when each trial of a study ended, and the best loss of those that are sound until then."""
    ended = [trial for trial in study.trials if trial.state is TrialState.COMPLETE and trial.datetime_complete]
    began = min(trial.datetime_start for trial in ended if trial.datetime_start is not None)
    best = math.inf
    for trial in sorted(ended, key=lambda trial: trial.datetime_complete or began):
        if trial.value is not None and trial.user_attrs.get(attributes.STATUS, Status.OK) in SOUND:
            best = min(best, trial.value)
        yield ((trial.datetime_complete or began) - began).total_seconds(), best
