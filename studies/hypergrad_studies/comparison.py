"""A comparison: tasks x rivals x seeds, each run from its seed into records, so that it can be cut off."""

import contextlib
import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

from hypergrad_search.checks import whole_number
from hypergrad_studies import ray_backend, records
from hypergrad_studies.jobs import Job, Trained, carry_out
from hypergrad_studies.obstacles import obstacle
from hypergrad_studies.posing import backend_of, pose
from hypergrad_studies.records import Plan, Record, Run, Study
from hypergrad_studies.report import table, verdicts, write_report
from hypergrad_studies.rivals import BACKENDS, KNOWN, RIVALS, Rival
from hypergrad_studies.spending import Budget
from hypergrad_studies.tasks import Task, goal
from hypergrad_studies.verdict import Verdict
from hypergrad_studies.view import View
from hypergrad_studies.workers import spread


class CannotRun(ValueError):
    """A method cannot run on a problem. The message is one line and says what to do."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`, which reads its records from the folder `out`."""

    out: Path

    @property
    def study(self) -> Study:
        """The records of all trials, and of the runs that have finished."""
        return Study.load(self.out)

    @property
    def table(self) -> Table:
        """The main table, a row for each method, for `rich.print`."""
        return table(*self.study.parts)

    @property
    def verdict(self) -> Verdict | None:
        """Whether search by hypergradients pays; None where ours or all others are missing. `print` it for its text."""
        return next(iter(verdicts(self.study).values()), None)

    def report(self) -> Path:
        """Write `report.html` into the folder, a page that needs no network, and return its path."""
        return write_report(self.out)


def compare(
    problem: Any,
    space: Mapping[str, Any] | None = None,
    *,
    budget: int | str,
    methods: Sequence[str | Rival] | None = None,
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    backend: str | None = None,
    direction: str = "minimize",
    metric: str = "loss",
    workers: int | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare search by hypergradients with its rivals on one problem, at the same budget for each.

    Call it again with the same arguments to go on where it was cut off.

    Args:
        problem: a `TrainingProblem` or `from_function(...)` with its `space`, which may be nested, and be Optuna's or
            Ray's own; an objective of Optuna, with or without `report_gradient`, without a space; a trainable of Ray
            Tune with its space, in Ray's domains or ours; or the name of a registered problem, such as "digits-mlp".
        space: see `problem`.
        budget: what each run may spend: a number of gradient evaluations, of which a training step costs 1, or a time
            such as "90s", "10min" or "1h". The costs of an objective are what it tells `report_gradient`, those of a
            trainable what it reports as "gradient_evaluations"; where one says nothing, the budget must be a time.
        methods: names, as `hypergrad compare --help` lists them, or `Rival`s of your own; `of_factory` makes one of any
            sampler of Optuna or searcher of Ray. By default all that can run.
        seeds: the number of seeds, from 0, or the seeds themselves.
        out: the folder for records and report; a new temporary folder by default. A folder knows a problem by its name,
            so another problem needs another folder.
        backend: "optuna" or "ray"; by default "ray" for a trainable, and else "optuna".
        direction: "minimize" or "maximize", for objectives and trainables.
        metric: what of a trainable's result counts.
        workers: runs at once, in processes of one core each; by default one after another in this process. Records are
            the same to the bit if this process computes with one thread as well, as that of `hypergrad compare` does
            (`NPROC=1` in the environment, before JAX starts).
        address: a Ray cluster to spread runs over, "auto" or "HOST:PORT", one of whose nodes this is.
        console: where progress is shown; the terminal by default.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do.
        CannotRun: a method that was named cannot run on the problem.
        OtherStudy: `out` holds a comparison with another budget or backend.
        Busy: another process is writing into `out`.
        NoCost: the budget is in gradient evaluations, and a trial does not say what it cost.
        WorkerLost: a run has lost its process three times.

    Example:
        >>> from hypergrad_studies import compare
        >>> from rich.console import Console
        >>> def objective(trial):
        ...     return (trial.suggest_float("x", -1.0, 1.0) - 0.3) ** 2
        >>> quiet = Console(quiet=True)
        >>> found = compare(objective, budget="0.2s", methods=["random", "tpe"], seeds=2, console=quiet)
        >>> found.table.row_count, found.verdict, found.report().name
        (3, None, 'report.html')
    """
    task = pose(problem, space, maximise=_maximises(direction), metric=metric)
    host = backend_of(task) if backend is None else backend
    if host not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    check_workers(host, workers, address)
    chosen_seeds = range(whole_number("seeds", seeds, 1)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    for seed in chosen_seeds:
        whole_number("each of seeds", seed, 0)
    limit = budget if isinstance(budget, Budget) else Budget.parse(str(budget))
    chosen = [rival if isinstance(rival, Rival) else _named(rival) for rival in methods or ()]
    folder = Path(tempfile.mkdtemp(prefix="hypergrad-") if out is None else out)
    shown = console or Console()
    run(
        folder,
        {task: who_can_run(task, chosen, (), host, limit, shown)},
        budget=limit,
        seeds=chosen_seeds,
        backend=host,
        console=shown,
        workers=workers,
        address=address,
    )
    return Comparison(folder)


def check_workers(backend: str, workers: int | None, address: str | None) -> None:
    """Raise `ValueError` where runs cannot be spread so."""
    if workers is not None:
        whole_number("workers", workers, 1)
    if backend == "ray" and (address is not None or workers not in (None, 1)):
        raise ValueError(
            "in Ray one search runs at a time, whose trials share the cores; leave out workers and address"
        )
    if address is not None and address.startswith("ray://"):
        raise ValueError(f"address {address}: run this on a node of the cluster, with the address auto")


def who_can_run(
    task: Task, chosen: Sequence[Rival], own: Sequence[Rival], backend: str, budget: Budget, console: Console
) -> list[Rival]:
    """Return the rivals that run on a task: those chosen, or, where none are, all that can; and the user's own.

    Say which of all are left out, and why. Raises `CannotRun` where one that was named cannot run, or none can.
    """
    rivals = [*(chosen or (rival for rival in RIVALS.values() if rival.runs_in(backend))), *own]
    names = Counter(rival.name for rival in rivals)
    if names.total() > len(names):
        raise CannotRun(f"there are two methods {names.most_common(1)[0][0]!r}; give one of them another name")
    reasons = {rival: obstacle(rival, task, backend, budget) for rival in rivals}
    able = [rival for rival, reason in reasons.items() if reason is None]
    named = [reason for rival, reason in reasons.items() if reason is not None and rival in (*chosen, *own)]
    said = list(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
    if named or not able:
        raise CannotRun((named or said)[0])
    for reason in said:
        console.print(f"left out: {reason}", soft_wrap=True, markup=False, highlight=False)
    return able


def run(
    out: Path,
    rivals: Mapping[Task, Sequence[Rival]],
    *,
    budget: Budget,
    seeds: Sequence[int],
    backend: str,
    console: Console,
    workers: int | None = None,
    address: str | None = None,
) -> None:
    """Make the runs of the rivals that are listed for each task, and write records into folder `out`.

    Runs that `out` already holds are not made again. A run that was cut off starts again from its seed, so that a study
    that was continued has the records of one that was not. Runs are made one after the other in this process, or by so
    many `workers` at once on this machine, or by them or as many as there are cores on the Ray cluster at `address`.

    Raises `OtherStudy`, `BrokenRecords`, `Busy`, `NoCost` and `WorkerLost`.
    """
    own_ray = ray_backend.session() if backend == "ray" else contextlib.nullcontext()
    with records.held(out), _quiet_optuna(), own_ray:
        done = records.begin(out, Plan(backend, budget.amount, budget.unit, *goal(rivals)))
        jobs = [job for job in _jobs(rivals, seeds, backend, budget) if job.key not in done]
        if done:
            console.print(f"{len(done)} finished runs found in {out}, {len(jobs)} to go")
        of_job: dict[Job, list[Record]] = defaultdict(list)
        with View(console, jobs) as view:

            def on_start(job: Job) -> None:
                of_job[job] = []
                view.start(job)

            def on_record(job: Job, record: Record) -> None:
                of_job[job].append(record)
                view.show(job, record)

            def on_end(job: Job, run: Run) -> None:
                records.add(out, *of_job.pop(job))
                records.finish(out, run)
                view.end(job, run)

            if address is not None or workers not in (None, 1):
                spread(jobs, workers, address, on_start=on_start, on_record=on_record, on_end=on_end)
                return
            warm: list[Trained] = []
            for job in jobs:
                on_start(job)
                on_end(job, carry_out(job, partial(on_record, job), warm))


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from a line for each study and trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _jobs(rivals: Mapping[Task, Sequence[Rival]], seeds: Sequence[int], backend: str, budget: Budget) -> Iterator[Job]:
    # Seeds come before methods, so that a study that was cut off compares its methods on the same seeds.
    for task, of_task in rivals.items():
        for seed, rival in itertools.product(seeds, of_task):
            yield Job(task, rival, seed, backend, budget.times(rival.budget_factor))


def _named(name: str) -> Rival:
    if name not in KNOWN:
        raise ValueError(f"methods: {name!r} is not one of {', '.join(RIVALS)}; make a Rival of your own by of_factory")
    return KNOWN[name]


def _maximises(direction: str) -> bool:
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"direction must be 'minimize' or 'maximize', got {direction!r}")
    return direction == "maximize"
