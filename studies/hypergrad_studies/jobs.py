"""One run of a comparison, in the process that is asked for it."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from hypergrad_search import Method, evaluate
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.space import lifted, unlifted
from hypergrad_studies import optuna_backend, ray_backend
from hypergrad_studies.problems import middle
from hypergrad_studies.records import Key, Record, Run
from hypergrad_studies.rivals import Rival
from hypergrad_studies.spending import Budget
from hypergrad_studies.tasks import ObjectiveTask, Task, TrainableTask, TrainingTask

#: a task's name, and how its problem is trained: with which method, with lifts or without, and by which optimizer
Trained = tuple[str, Method, bool | None, Any]


def compute_on_one_core() -> None:
    """Let JAX, which must not have started yet, compute on the CPU with one thread.

    The last bits of large sums depend on the number of threads, so that records would depend on the machine.
    """
    os.environ["NPROC"] = "1"  # which XLA reads when it starts


@dataclass(frozen=True)
class Job:
    """A run that is to be made: of which rival, on which task, from which seed, in which host, with which budget."""

    task: Task
    rival: Rival
    seed: int
    backend: str
    budget: Budget

    @property
    def key(self) -> Key:
        """What names the run."""
        return self.task.name, self.rival.name, self.seed

    def __str__(self) -> str:
        return f"{self.task.name} {self.rival.name} seed {self.seed}"


def carry_out(job: Job, on_record: Callable[[Record], None], warm: list[Trained]) -> Run:
    """Make a run; every trial goes to `on_record` when it is done.

    Compiling a training problem beforehand is no part of its seconds; `warm` has what was compiled so, and grows.
    """
    task, rival = job.task, job.rival
    if job.backend == "optuna" and isinstance(task, TrainingTask):
        # refined hyperparameters may be trained anew, by the problem's own optimizer
        for how in (rival.how,) if rival.optimizer else (DEFAULT_METHOD, rival.how):
            if (task.name, how, rival.lifts, rival.optimizer) not in warm:
                warm_up(task, rival, how)
                warm.append((task.name, how, rival.lifts, rival.optimizer))
    trials = 0

    def count(record: Record) -> None:
        nonlocal trials
        trials += 1
        on_record(record)

    started = time.perf_counter()
    fresh = _search(job, count)
    seconds = round(time.perf_counter() - started, 4)
    return Run(
        *job.key,
        budget=job.budget.amount,
        trials=trials,
        wall_seconds=seconds,
        fresh=fresh,
        unit=job.budget.unit,
        gradients=rival.gradients,
        reseed=isinstance(task, TrainingTask) and task.reseed,
    )


def _search(job: Job, on_record: Callable[[Record], None]) -> tuple[float, ...]:
    if job.backend == "ray":
        assert not isinstance(job.task, ObjectiveTask)  # see `obstacle`
        ray_backend.run(job.task, job.rival, job.seed, job.budget, on_record)
        return ()
    assert not isinstance(job.task, TrainableTask)
    return optuna_backend.run(job.task, job.rival, job.seed, job.budget, on_record)


def warm_up(task: TrainingTask, rival: Rival, how: Method) -> None:
    """Compile a problem beforehand, so that the first method's seconds do not include what all methods share.

    A rival with an optimizer of its own never wants a gradient. Integers and categoricals have their first values:
    programs for others are compiled in the trials that need them. A function compiles what it likes when it runs.
    """
    problem, space = rival.posed(task)
    if isinstance(problem, FunctionProblem):
        return
    for point in [middle(unlifted(space))] + ([middle(lifted(space))] if rival.lifts else []):
        for below in (-math.inf,) if rival.optimizer else (math.inf, -math.inf):
            first = evaluate(problem, point, method=how, key=jax.random.key(0), gradient_below=below, space=space)
        if first.checkpoint is not None:
            evaluate(problem, point, method=how, key=jax.random.key(0), space=space, checkpoint=first.checkpoint)
