"""The processes of a sweep on one machine: they are started, watched, replaced and stopped."""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

import optuna
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hypergrad_studies.sweep.plan import Plan
from hypergrad_studies.sweep.progress import Progress, progress

POLL = 0.5  # seconds
REPLACEMENTS = 3  # of processes that died, for each that was asked for


class WorkerFailed(RuntimeError):
    """A process of a sweep ended with an error, which it has printed. The message is one line."""


class _Signals:
    """How often the user has asked to stop."""

    def __init__(self) -> None:
        self.count = 0
        self._before = {kind: signal.signal(kind, self._ask) for kind in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)


def run(plan: Plan, workers: int, timeout: float | None, console: Console) -> bool:
    """Work on a study in so many processes until a limit is reached; return False where it was stopped before.

    A first signal, or the end of `timeout` seconds, lets the trials under way end; a second signal gives them up. A
    process that dies is replaced, a few times.

    Raises `WorkerFailed` where a process ends with an error of its own.
    """
    study, signals = plan.join(), _Signals()
    processes = [_start(plan, workers) for _ in range(workers)]
    deadline = None if timeout is None else time.monotonic() + timeout
    left, told, shown = REPLACEMENTS * workers, 0, _Shown(console, plan, workers)
    try:
        with shown:
            while processes:
                time.sleep(POLL)
                shown.update(study)
                asked = signals.count or int(deadline is not None and time.monotonic() >= deadline)
                if asked > told:
                    told = asked
                    shown.stopping(told)
                    for process in processes:
                        process.send_signal(signal.SIGTERM if told == 1 else signal.SIGKILL)
                for process in [process for process in processes if process.poll() is not None]:
                    processes.remove(process)
                    if process.returncode > 0 or (process.returncode < 0 and not told and not left):
                        raise WorkerFailed(
                            f"a process of the sweep ended with the status {process.returncode}; mend what it says "
                            "above, and run the same command again to continue"
                        )
                    if process.returncode < 0 and not told:
                        left -= 1
                        processes.append(_start(plan, workers))
        return progress(study).reached(plan.limits)
    finally:
        signals.restore()
        for process in processes:
            process.kill()
            process.wait()


def _start(plan: Plan, workers: int) -> subprocess.Popen[bytes]:
    """Start a process with its share of the cores, and out of reach of the terminal's signals."""
    cores = max(len(os.sched_getaffinity(0)) // workers, 1)
    return subprocess.Popen(
        [sys.executable, "-m", "hypergrad_studies.sweep.worker", plan.to_json()],
        env={**os.environ, "NPROC": str(cores)},  # the number of threads that XLA computes with
        start_new_session=True,
    )


class _Shown:
    """What is seen of a sweep: a line that changes in a terminal, elsewhere a line for each new best trial."""

    def __init__(self, console: Console, plan: Plan, workers: int) -> None:
        self._console, self._plan, self._workers = console, plan, workers
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._best: int | None = None
        self._words = ""
        self._began = time.monotonic()
        self._before: int | None = None

    def __enter__(self) -> "_Shown":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stopping(self, signals: int) -> None:
        """Say what is waited for."""
        words = {1: "stopping when the trials under way have ended; once more gives them up", 2: "stopped"}
        self._words = words.get(signals, "stopped")
        if not self._console.is_terminal:
            self._console.print(self._words)

    def update(self, study: optuna.Study) -> None:
        """Show how far the study is."""
        found = progress(study)
        best = found.best
        if best is not None and best.number != self._best:
            self._best = best.number
            if not self._console.is_terminal:
                self._console.print(f"trial {best.number}: {best.value:.6g}, the best of {found.done}")
        self._live.update(Text(self._line(found)))

    def _line(self, found: Progress) -> str:
        limits = self._plan.limits
        self._before = found.done if self._before is None else self._before
        parts = [f"{found.done:,}" + ("" if limits.trials is None else f" of {limits.trials:,}") + " trials"]
        if limits.budget is not None:
            parts.append(f"{found.spent(limits.budget):,.0f} of {limits.budget}")
        parts.append(f"{found.running} running, {self._workers} processes here")
        if found.best is not None:
            parts.append(f"best {found.best.value:.6g} (trial {found.best.number})")
        new, seconds = found.done - self._before, time.monotonic() - self._began
        if new and limits.trials is not None:
            parts.append(f"{max(limits.trials - found.done, 0) * seconds / new:,.0f} s to go")
        return ", ".join(parts) + (f"; {self._words}" if self._words else "")
