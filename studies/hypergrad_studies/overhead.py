"""The time that a sampler itself takes for a trial, measured with objectives that take no time."""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from rich.table import Table

from hypergrad_optuna import HypergradSampler, report_gradient, suggest_array, wants_gradient

FEW, MANY = 10, 100_000
STORAGES = "memory", "SQLite"
OPTIMUM = np.random.default_rng(0).uniform(-2, 2, MANY)


def measure(trials: int, repeats: int) -> Table:
    """Return a table of milliseconds a trial, with 10 parameters and with an array of 100,000.

    With 10 there are a study beside TPE, and the beginning, the middle and the end of one ten times as long.
    """
    table = Table("parameters", "storage", "sampler", "trials", "ms a trial", "of TPE's", title="A sampler's own time")
    pairs = [
        (_seconds(_few, TPESampler(seed=seed), trials), _seconds(_few, HypergradSampler(seed=seed), trials))
        for seed in range(repeats)
    ]
    tpe, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for other, own in pairs)
    table.add_row(str(FEW), "memory", "TPESampler", str(trials), f"{1e3 * tpe / trials:.1f}", "1")
    table.add_row(str(FEW), "memory", "HypergradSampler", str(trials), f"{1e3 * ours / trials:.1f}", f"{ratio:.2f}")
    few = max(trials // 10, 1)
    history = _history(10 * trials)
    for storage in STORAGES:
        for before in (0, 5 * trials, 10 * trials):
            for sampler, seconds in _after(history[:before], few, storage):
                table.add_row(str(FEW), storage, sampler, f"{few} after {before:,}", f"{1e3 * seconds:.1f}", "")
    for storage in STORAGES:
        with _url(storage) as url:
            seconds = _seconds(_many, HypergradSampler(seed=0), few, url)
            table.add_row(
                f"{MANY:,}, one array", storage, "HypergradSampler", str(few), f"{1e3 * seconds / few:.1f}", ""
            )
    return table


def _seconds(
    objective: Callable[[optuna.Trial], float], sampler: BaseSampler, trials: int, storage: str | None = None
) -> float:
    study = optuna.create_study(sampler=sampler, storage=storage)
    started = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return time.perf_counter() - started


def _history(trials: int) -> list[FrozenTrial]:
    """Return the trials of a long study."""
    study = optuna.create_study(sampler=HypergradSampler(explorer=RandomSampler(seed=0)))
    study.optimize(_few, n_trials=trials)
    return study.trials


def _after(history: list[FrozenTrial], trials: int, storage: str) -> Iterator[tuple[str, float]]:
    """Yield the median seconds of so many trials more after a history, under several samplers.

    The first trial, which reads the history, does not count. What `HypergradSampler` takes is the sum of what storage
    takes, as `RandomSampler` shows it, its own part, and that of its explorer.
    """
    samplers: dict[str, BaseSampler] = {
        "RandomSampler": RandomSampler(seed=0),
        "HypergradSampler, exploring at random": HypergradSampler(explorer=RandomSampler(seed=0)),
        "HypergradSampler": HypergradSampler(seed=0),
    }
    with _url(storage) as url:
        study = optuna.create_study(storage=url)
        study.add_trials(history)
        for name, sampler in samplers.items():
            study.sampler = sampler
            study.optimize(_few, n_trials=1)
            yield name, statistics.median(_each(study, trials))


def _each(study: optuna.Study, trials: int) -> list[float]:
    seconds = []
    for _ in range(trials):
        started = time.perf_counter()
        trial = study.ask()
        study.tell(trial, _few(trial))
        seconds.append(time.perf_counter() - started)
    return seconds


@contextlib.contextmanager
def _url(storage: str) -> Iterator[str | None]:
    """Give a new storage's address, which is None in memory."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder, 'study.db')}" if storage == "SQLite" else None


def _few(trial: optuna.Trial) -> float:
    x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(FEW)]) - OPTIMUM[:FEW]
    value = float(np.sum(x**2 + 1 - np.cos(2 * math.pi * x)))  # it has many minima, so that chains end
    if wants_gradient(trial, value):
        slope = 2 * x + 2 * math.pi * np.sin(2 * math.pi * x)
        report_gradient(trial, {f"x{i}": g for i, g in enumerate(slope)})
    return value


def _many(trial: optuna.Trial) -> float:
    x = suggest_array(trial, "x", MANY, -5, 5) - OPTIMUM
    value = float(np.sum(x**2))
    if wants_gradient(trial, value):
        report_gradient(trial, {"x": 2 * x})
    return value
