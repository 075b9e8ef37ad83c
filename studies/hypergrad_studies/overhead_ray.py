"""What a trial of Ray Tune takes with few numbers and with an array of a million, in a trainable that takes no time."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ray import tune
from rich.table import Table

from hypergrad_ray import HypergradSearch, in_short, wants_gradient
from hypergrad_search import Float
from hypergrad_studies.clusters import cluster

SIZES = 10, 1_000_000


class Taken(NamedTuple):
    """What a run took: seconds a trial, and megabytes in its folder."""

    seconds: float
    megabytes: float


def measure(trials: int) -> Table:
    """Return a table of what a trial takes, one after the other, in a process that is used again.

    The first run, which starts Ray's workers, does not count.
    """
    table = Table("numbers, one array", "s a trial", "MB a trial", title=f"{trials} trials of Ray Tune")
    with cluster(2, None):
        _run(SIZES[0], trials)
        for size in SIZES:
            taken = _run(size, trials)
            table.add_row(f"{size:,}", f"{taken.seconds / trials:.2f}", f"{taken.megabytes / trials:.1f}")
    return table


def _run(size: int, trials: int) -> Taken:
    search = HypergradSearch({"x": Float(-1.0, 1.0, shape=(size,))}, metric="loss", mode="min", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            _bowl,
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=trials, max_concurrent_trials=1, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(None):  # Ray announces each run
            tuner.fit()
        seconds = time.perf_counter() - started
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return Taken(seconds, sum(path.stat().st_size for path in files) / 1e6)


def _bowl(config: dict[str, Any]) -> None:
    offset = np.asarray(config["x"]) - 0.25
    result: dict[str, Any] = {"loss": float(np.mean(offset**2))}
    if wants_gradient(config, result["loss"]):
        result["gradient"] = in_short({"x": 2 * offset / offset.size})
    tune.report(result)
