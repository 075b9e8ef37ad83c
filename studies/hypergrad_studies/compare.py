"""A comparison: problems x methods x seeds, run one after another into records, so that it can be cut off."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hypergrad_search import evaluate
from hypergrad_search.space import dimension, floats, from_unit
from hypergrad_studies import optuna_backend, ray_backend, records
from hypergrad_studies.methods import budget_factor
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import Key, Plan, Record, Run

RUNNERS = {"optuna": optuna_backend.run, "ray": ray_backend.run}


def compare(
    out: Path,
    problems: Sequence[str],
    methods: Sequence[str],
    *,
    budget: int,
    seeds: int,
    backend: str,
    console: Console,
) -> None:
    """Run what is missing of the comparison into folder `out`; `budget` is in gradient evaluations a run.

    A run that had been cut off starts again from its seed, so that a study that was continued has the records of one
    that was not. Raises `OtherStudy` and `BrokenRecords`.
    """
    done = records.begin(out, Plan(backend=backend, budget=budget))
    plan = [key for key in _plan(problems, methods, seeds) if key not in done]
    if done:
        console.print(f"{len(done)} finished runs found in {out}, {len(plan)} to go")
    with Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        total = progress.add_task("all runs", total=len(plan))
        for key in plan:
            problem, method, seed = key
            limit = budget * budget_factor(backend, method)
            task = progress.add_task(f"{problem} {method} seed {seed}", total=limit)
            seen: list[Record] = []

            def on_record(record: Record, seen: list[Record] = seen, task: TaskID = task, limit: int = limit) -> None:
                records.append(out / "records.jsonl", record)
                seen.append(record)
                progress.update(task, completed=min(record.gradient_evaluations, limit))

            if backend == "optuna":
                warm_up(problem)
            started = time.perf_counter()
            RUNNERS[backend](problem, method, seed, limit, on_record)
            wall_seconds = time.perf_counter() - started
            records.finish(out, Run(problem, method, seed, limit, len(seen), wall_seconds))
            progress.remove_task(task)
            progress.advance(total)
            if not console.is_terminal:
                console.print(f"{problem} {method} seed {seed}: {len(seen)} trials, {wall_seconds:.1f} s")


def warm_up(problem_name: str) -> None:
    """Compile a problem, so that the seconds of the first method do not hold what all share."""
    if problem_name not in _warm:
        problem, space = PROBLEMS[problem_name]()
        centre = from_unit(floats(space), np.full(dimension(space), 0.5))
        evaluate(problem, centre, key=jax.random.key(0))
        evaluate(problem, centre, key=jax.random.key(0), gradient_below=-float("inf"))
        _warm.add(problem_name)


_warm: set[str] = set()


def _plan(problems: Sequence[str], methods: Sequence[str], seeds: int) -> Iterator[Key]:
    # seeds outermost: whatever is there when a study is cut off compares the methods on the same seeds
    for problem, seed, method in itertools.product(problems, range(seeds), methods):
        yield problem, method, seed
