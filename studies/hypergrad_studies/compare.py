"""A comparison: problems x methods x seeds, each run from its seed into records, so that it can be cut off."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from hypergrad_studies import methods, records
from hypergrad_studies.jobs import Job, Trained, carry_out
from hypergrad_studies.records import Plan, Record, Run
from hypergrad_studies.view import View
from hypergrad_studies.workers import spread


def compare(
    out: Path,
    rivals: Mapping[str, Sequence[str]],
    *,
    budget: int,
    seeds: int,
    backend: str,
    console: Console,
    workers: int | None = None,
    address: str | None = None,
) -> None:
    """Compare the methods that `rivals` lists for each problem, and write records into folder `out`.

    `budget` is how many gradient evaluations a run may spend. Runs that `out` already holds are not run again. A run
    that was cut off starts again from its seed, so that a study that was continued has the records of one that was not.
    Runs are made one after the other in this process, or by so many `workers` at once on this machine, or by them or as
    many as there are cores on the Ray cluster at `address`.

    Raises `OtherStudy`, `BrokenRecords` and `WorkerLost`.
    """
    done = records.begin(out, Plan(backend=backend, budget=budget))
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


def _jobs(rivals: Mapping[str, Sequence[str]], seeds: int, backend: str, budget: int) -> Iterator[Job]:
    # Seeds come before methods, so that a study that was cut off compares its methods on the same seeds.
    for problem, names in rivals.items():
        for seed, name in itertools.product(range(seeds), names):
            yield Job((problem, name, seed), backend, budget * methods.method(backend, name).budget_factor)
