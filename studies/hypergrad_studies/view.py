"""What a comparison shows while it runs: what runs now, what is done, and the best of each method so far."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hypergrad_studies.jobs import Job
from hypergrad_studies.records import Record, Run
from hypergrad_studies.spending import SECONDS


class View:
    """The view of a comparison's runs, a context manager.

    In a terminal it is a table and bars that change; elsewhere it is one line for each run that has ended.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._total = self._progress.add_task("all runs", total=len(jobs))
        self._running: dict[Job, TaskID] = {}
        self._best: dict[Job, float] = {}
        self._seconds: dict[Job, float] = {}
        self._ended: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._live = Live(console=console, get_renderable=self.shown, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def start(self, job: Job) -> None:
        """Show that a run has begun, perhaps once more."""
        self._remove(job)
        self._best[job], self._seconds[job] = math.inf, 0.0
        self._running[job] = self._progress.add_task(str(job), total=job.budget.amount)

    def show(self, job: Job, record: Record) -> None:
        """Show how far a run is."""
        if record.sound:
            self._best[job] = min(self._best[job], record.value)
        self._seconds[job] += record.seconds + record.ask_seconds + record.tell_seconds
        spent = self._seconds[job] if job.budget.unit == SECONDS else record.gradient_evaluations or 0
        self._progress.update(self._running[job], completed=min(spent, job.budget.amount))

    def end(self, job: Job, run: Run) -> None:
        """Show that a run has ended."""
        self._remove(job)
        self._progress.advance(self._total)
        self._ended[run.problem, run.method].append(self._best.pop(job))
        if not self._console.is_terminal:
            self._console.print(f"{job}: {run.trials} trials, {run.wall_seconds:.1f} s")

    def _remove(self, job: Job) -> None:
        task = self._running.pop(job, None)
        if task is not None:
            self._progress.remove_task(task)

    def shown(self) -> Group:
        """Return the losses of the problems that run now, as far as they are known, and the bars."""
        problems = {job.key[0] for job in self._running}
        tables = [self._table(problem) for problem in sorted(problems)]
        return Group(*(table for table in tables if table.row_count), self._progress)

    def _table(self, problem: str) -> Table:
        table = Table(problem, box=None)
        for name in ("runs", "best loss, median"):
            table.add_column(name, justify="right")
        ended = {name: losses for (of, name), losses in self._ended.items() if of == problem}
        for name, losses in sorted(ended.items(), key=lambda item: median(item[1])):
            table.add_row(name, str(len(losses)), f"{median(losses):.4g}")
        return table
