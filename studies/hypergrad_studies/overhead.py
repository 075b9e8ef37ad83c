"""The time that a sampler itself takes for a trial, measured with objectives that take no time."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, TPESampler
from rich.table import Table

from hypergrad_optuna import HypergradSampler, report_gradient, suggest_array, wants_gradient

FEW, MANY = 10, 100_000
OPTIMUM = np.random.default_rng(0).uniform(-2, 2, MANY)


def measure(trials: int, repeats: int) -> Table:
    """Return a table of milliseconds a trial: 10 parameters beside TPE, a long study, and an array of 100,000."""
    table = Table("parameters", "storage", "sampler", "trials", "ms a trial", "of TPE's", title="A sampler's own time")
    pairs = [
        (_seconds(_few, TPESampler(seed=seed), trials), _seconds(_few, HypergradSampler(seed=seed), trials))
        for seed in range(repeats)
    ]
    tpe, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for other, own in pairs)
    table.add_row(str(FEW), "memory", "TPESampler", str(trials), f"{1e3 * tpe / trials:.1f}", "1")
    table.add_row(str(FEW), "memory", "HypergradSampler", str(trials), f"{1e3 * ours / trials:.1f}", f"{ratio:.2f}")
    ends = _ends(10 * trials)
    for part, seconds in zip(("first tenth", "last tenth"), ends, strict=True):
        table.add_row(str(FEW), "memory", "HypergradSampler", f"{10 * trials:,}, {part}", f"{1e3 * seconds:.1f}", "")
    for storage in ("memory", "SQLite"):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder, 'study.db')}" if storage == "SQLite" else None
            few = max(trials // 10, 1)
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


def _ends(trials: int) -> tuple[float, float]:
    """Return the median seconds of a trial in the first and in the last tenth of a long study."""
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    seconds = []
    for _ in range(trials):
        started = time.perf_counter()
        trial = study.ask()
        study.tell(trial, _few(trial))
        seconds.append(time.perf_counter() - started)
    tenth = max(trials // 10, 1)
    return statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])


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
