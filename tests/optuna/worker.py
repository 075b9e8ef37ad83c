"""Some of the processes that share a study: python worker.py STORAGE STUDY TRIALS PROCESSES.

They start when a line comes in, so that a test can have them ready.
"""

import os
import sys
import time
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend

from hypergrad_optuna import HypergradSampler, report_gradient, wants_gradient


def bowl(trial: optuna.Trial) -> float:
    x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(6)])
    offset = x - np.linspace(0.4, 2.0, 6)  # so that no step from the centre of the box meets the minimum
    value = float(np.sum(offset**2))
    trial.set_user_attr("process", os.getpid())
    time.sleep(0.02)
    if wants_gradient(trial, value):
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(2 * offset)})
    return value


def do_not_wait_for_the_disk(connection: Any, record: Any) -> None:
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous = OFF")


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Return the storage at a database's address, or at journal:PATH."""
    if storage.startswith("journal:"):
        return optuna.storages.JournalStorage(JournalFileBackend(storage.removeprefix("journal:")))
    return optuna.storages.get_storage(storage)


def work(storage: str, name: str, trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", do_not_wait_for_the_disk)
    study = optuna.load_study(study_name=name, storage=open_storage(storage), sampler=HypergradSampler())
    study.optimize(bowl, n_trials=trials)


if __name__ == "__main__":
    storage, name, trials, processes = sys.argv[1:]
    sys.stdin.readline()
    # The processes are forked, so that the packages are imported once. JAX has not started, and never does here.
    children = []
    for _ in range(int(processes) - 1):
        child = os.fork()
        if not child:
            work(storage, name, int(trials))
            os._exit(0)
        children.append(child)
    work(storage, name, int(trials))
    sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
