"""One run of a comparison, in the process that is asked for it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from hypergrad_search import Method, evaluate
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.space import lifted, unlifted
from hypergrad_studies import methods, optuna_backend, ray_backend
from hypergrad_studies.methods import OptunaMethod
from hypergrad_studies.problems import middle
from hypergrad_studies.records import Key, Record, Run

RUNNERS = {"optuna": optuna_backend.run, "ray": ray_backend.run}

#: a problem, and how it is trained: with which method, with lifts or without, and by which optimizer
Trained = tuple[str, Method, bool | None, Any]


@dataclass(frozen=True)
class Job:
    """A run that is to be made: which one, in which backend, and how many gradient evaluations it may spend."""

    key: Key
    backend: str
    limit: int

    def __str__(self) -> str:
        problem, method, seed = self.key
        return f"{problem} {method} seed {seed}"


def carry_out(job: Job, on_record: Callable[[Record], None], warm: list[Trained]) -> Run:
    """Make a run; every trial goes to `on_record` when it is done.

    Compiling beforehand is no part of its seconds; `warm` has what was compiled so, and grows.
    """
    problem, name, seed = job.key
    method = methods.method(job.backend, name)
    if isinstance(method, OptunaMethod):
        # refined hyperparameters may be trained anew, by the problem's own optimizer
        for how in (method.how,) if method.optimizer else (DEFAULT_METHOD, method.how):
            if (problem, how, method.lifts, method.optimizer) not in warm:
                warm_up(problem, method, how)
                warm.append((problem, how, method.lifts, method.optimizer))
    trials = 0

    def count(record: Record) -> None:
        nonlocal trials
        trials += 1
        on_record(record)

    started = time.perf_counter()
    fresh = RUNNERS[job.backend](problem, name, seed, job.limit, count)
    return Run(problem, name, seed, job.limit, trials, round(time.perf_counter() - started, 4), fresh)


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
