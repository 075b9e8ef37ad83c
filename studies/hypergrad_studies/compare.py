"""A comparison: problems x methods x seeds, run one after another into records, so that it can be cut off."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
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

from hypergrad_search import Method, evaluate
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.space import lifted, unlifted
from hypergrad_studies import methods, optuna_backend, ray_backend, records
from hypergrad_studies.methods import OptunaMethod
from hypergrad_studies.problems import middle
from hypergrad_studies.records import Key, Plan, Record, Run

RUNNERS = {"optuna": optuna_backend.run, "ray": ray_backend.run}


def compare(
    out: Path,
    rivals: Mapping[str, Sequence[str]],
    *,
    budget: int,
    seeds: int,
    backend: str,
    console: Console,
) -> None:
    """Compare the methods that `rivals` lists for each problem, and write records into folder `out`.

    `budget` is how many gradient evaluations a run may spend. Runs that `out` already holds are not run again. A run
    that was cut off starts again from its seed, so that a study that was continued has the records of one that was not.

    Raises `OtherStudy` and `BrokenRecords`.
    """
    done = records.begin(out, Plan(backend=backend, budget=budget))
    plan = [key for key in _plan(rivals, seeds) if key not in done]
    warm: list[tuple[str, Method, bool | None, Any]] = []
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
            problem, name, seed = key
            method = methods.method(backend, name)
            limit = budget * method.budget_factor
            task = progress.add_task(f"{problem} {name} seed {seed}", total=limit)
            seen: list[Record] = []

            def on_record(record: Record, seen: list[Record] = seen, task: TaskID = task, limit: int = limit) -> None:
                records.add(out, record)
                seen.append(record)
                progress.update(task, completed=min(record.gradient_evaluations, limit))

            if isinstance(method, OptunaMethod):
                # refined hyperparameters may be trained anew, by the problem's own optimizer
                for how in (method.how,) if method.optimizer else (DEFAULT_METHOD, method.how):
                    if (problem, how, method.lifts, method.optimizer) not in warm:
                        warm_up(problem, method, how)
                        warm.append((problem, how, method.lifts, method.optimizer))
            started = time.perf_counter()
            fresh = RUNNERS[backend](problem, name, seed, limit, on_record)
            wall_seconds = time.perf_counter() - started
            records.finish(out, Run(problem, name, seed, limit, len(seen), wall_seconds, fresh))
            progress.remove_task(task)
            progress.advance(total)
            if not console.is_terminal:
                console.print(f"{problem} {name} seed {seed}: {len(seen)} trials, {wall_seconds:.1f} s")


def warm_up(problem_name: str, method: OptunaMethod, how: Method) -> None:
    """Compile a problem beforehand, so that the first method's seconds do not include what all methods share.

    A method with an optimizer of its own never wants a gradient. Integers and categoricals have their first values:
    programs for others are compiled in the trials that need them.
    """
    problem, space = method.posed(problem_name)
    for point in [middle(unlifted(space))] + ([middle(lifted(space))] if method.lifts else []):
        for below in (-math.inf,) if method.optimizer else (math.inf, -math.inf):
            first = evaluate(problem, point, method=how, key=jax.random.key(0), gradient_below=below, space=space)
        if first.checkpoint is not None:
            evaluate(problem, point, method=how, key=jax.random.key(0), space=space, checkpoint=first.checkpoint)


def _plan(rivals: Mapping[str, Sequence[str]], seeds: int) -> Iterator[Key]:
    # Seeds come before methods, so that a study that was cut off compares its methods on the same seeds.
    for problem, names in rivals.items():
        for seed, name in itertools.product(range(seeds), names):
            yield problem, name, seed
