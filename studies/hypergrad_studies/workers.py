"""Runs spread over processes, on this machine or on the nodes of a Ray cluster."""

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
import ray
from ray.exceptions import RayActorError, RayTaskError

from hypergrad_studies.clusters import cluster
from hypergrad_studies.jobs import Job, Trained, carry_out, compute_on_one_core
from hypergrad_studies.records import Record, Run
from hypergrad_studies.spending import Budget

#: how often a run is made again whose worker, or the node of it, was lost
ATTEMPTS = 3


class WorkerLost(RuntimeError):
    """A run has taken its worker with it, each time that it was made. The message is one line."""


def spread(
    jobs: Sequence[Job],
    workers: int | None,
    address: str | None,
    *,
    on_start: Callable[[Job], None],
    on_record: Callable[[Job, Record], None],
    on_end: Callable[[Job, Run], None],
) -> None:
    """Make runs in so many processes at once, with one core each; None takes all cores.

    The processes are on this machine, or on the nodes of the Ray cluster at `address`, where this package must be
    installed. A run whose worker is lost is made again from its seed by another one, and starts again. Workers get
    tasks and rivals as this process has them, once each.

    Raises `WorkerLost` where a run, or a worker that starts, was lost `ATTEMPTS` times, and what a run itself raises.
    """
    waiting, lost = deque(jobs), Counter[Job | None]()
    with cluster(workers, address):
        most = int(ray.cluster_resources().get("CPU", 1)) if workers is None else workers  # type: ignore[no-untyped-call]  # Ray has no types here
        # a worker without a run starts, and may never find a core where a node was lost
        busy: dict[Any, tuple[Any, Job | None]] = dict(_start() for _ in range(min(most, len(jobs))))
        idle: list[Any] = []
        sent = {id(part): ray.put(part) for job in jobs for part in (job.task, job.rival)}
        while waiting or any(job for _, job in busy.values()):
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                parts = sent[id(job.task)], sent[id(job.rival)]
                run = worker.run.options(num_returns="streaming")
                busy[run.remote(parts, job.seed, job.backend, job.budget)] = worker, job
                on_start(job)
            ready: list[Any] = ray.wait(list(busy), num_returns=1)[0]
            (found,) = ready
            worker, of_worker = busy[found]
            try:
                result: Record | Run | None = ray.get(next(found) if of_worker else found)
            except RayActorError as error:
                del busy[found]
                lost[of_worker] += 1
                if lost[of_worker] == ATTEMPTS:
                    what, reason = of_worker or "a worker that starts", str(error).partition("\n")[0]
                    raise WorkerLost(f"{what}: its process was lost {ATTEMPTS} times ({reason})") from None
                waiting.extend([of_worker] if of_worker else [])
                busy |= [_start()]
                continue
            except RayTaskError as error:  # what the run itself raised, with a report of where
                raise error.cause from error
            if of_worker and isinstance(result, Record):
                on_record(of_worker, result)
                continue
            del busy[found]
            idle.append(worker)
            if of_worker and isinstance(result, Run):
                on_end(of_worker, result)


def _start() -> tuple[Any, tuple[Any, None]]:
    """Return a worker that starts, without a run, behind what is ready when it has started."""
    worker: Any = ray.remote(_Worker).options(num_cpus=1).remote()
    return worker.ready.remote(), (worker, None)


class _Worker:
    """A process that makes runs."""

    def __init__(self) -> None:
        compute_on_one_core()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._warm: list[Trained] = []
        self._kept: dict[Any, Any] = {}  # what was sent, so that each task stays one object and compiles once

    def ready(self) -> None:
        """Return once the process has started."""

    def run(self, parts: tuple[Any, Any], seed: int, backend: str, budget: Budget) -> Iterator[Record | Run]:
        """Yield a run's records as they come, and then the run; `parts` are its task and its rival, as sent."""
        for part in parts:
            if part not in self._kept:
                self._kept[part] = ray.get(part)
        job = Job(self._kept[parts[0]], self._kept[parts[1]], seed, backend, budget)
        results: queue.SimpleQueue[Record | Run | BaseException] = queue.SimpleQueue()

        def make() -> None:
            try:
                results.put(carry_out(job, results.put, self._warm))
            except BaseException as error:  # it is raised again in the thread that waits
                results.put(error)

        threading.Thread(target=make, daemon=True).start()
        while True:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
            if isinstance(result, Run):
                return
