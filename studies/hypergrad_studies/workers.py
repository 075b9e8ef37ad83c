"""Runs spread over processes, on this machine or on the nodes of a Ray cluster."""

import contextlib
import logging
import os
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from hypergrad_studies import methods
from hypergrad_studies.jobs import Job, carry_out
from hypergrad_studies.records import Record, Run

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
    installed. A run whose worker is lost is made again from its seed by another one, and starts again. A worker gets
    each run's method as this process has it.

    Raises `WorkerLost` where a run was lost `ATTEMPTS` times, and what a run itself raises.
    """
    waiting, attempts = deque(jobs), dict.fromkeys(jobs, 0)
    with _cluster(workers, address):
        most = int(ray.cluster_resources().get("CPU", 1)) if workers is None else workers  # type: ignore[no-untyped-call]  # Ray has no types here
        idle = [_worker() for _ in range(min(most, len(jobs)))]
        busy: dict[Any, tuple[Any, Job]] = {}
        while waiting or busy:
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                attempts[job] += 1
                method = methods.method(job.backend, job.key[1])
                busy[worker.run.options(num_returns="streaming").remote(job, method)] = worker, job
                on_start(job)
            ready: list[Any]
            ready, _ = ray.wait(list(busy), num_returns=1)
            for stream in ready:
                worker, job = busy[stream]
                try:
                    result: Record | Run = ray.get(next(stream))
                except StopIteration:
                    del busy[stream]
                    idle.append(worker)
                except RayActorError as error:
                    del busy[stream]
                    if attempts[job] == ATTEMPTS:
                        reason = str(error).partition("\n")[0]
                        raise WorkerLost(f"{job}: its worker was lost {ATTEMPTS} times ({reason})") from None
                    waiting.append(job)
                    idle.append(_worker())
                else:
                    if isinstance(result, Run):
                        on_end(job, result)
                    else:
                        on_record(job, result)


@contextlib.contextmanager
def _cluster(workers: int | None, address: str | None) -> Iterator[None]:
    """Use the cluster at an address, or one of this process alone with so many cores."""
    own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    where: dict[str, Any] = own if address is None else {"address": address}
    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    try:
        yield
    finally:
        ray.shutdown()


def _worker() -> Any:
    return ray.remote(_Worker).options(num_cpus=1).remote()


class _Worker:
    """A process that makes runs."""

    def __init__(self) -> None:
        os.environ["NPROC"] = "1"  # the number of threads that XLA computes with, which it reads when it starts

    def run(self, job: Job, method: Any) -> Iterator[Record | Run]:
        """Yield a run's records as they come, and then the run."""
        methods.REGISTRIES[job.backend][job.key[1]] = method
        results: queue.SimpleQueue[Record | Run | BaseException] = queue.SimpleQueue()

        def make() -> None:
            try:
                results.put(carry_out(job, results.put))
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
