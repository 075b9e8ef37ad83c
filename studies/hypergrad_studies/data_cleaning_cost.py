"""What the gradient by the weights of 6,000 images costs: time beside training, and memory."""

import math
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.table import Table

from hypergrad_search import evaluate
from hypergrad_search.hypergradient.reversible import Reversible
from hypergrad_studies import json_lines
from hypergrad_studies.problems import data_cleaning
from hypergrad_studies.problems.data_cleaning import PLANTED, TO_CLEAN

PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # of what `getrusage` counts in: bytes or KiB


@dataclass(frozen=True)
class Record:
    """What a gradient of a model's training run took.

    - `ratios`: seconds of a value with its gradient over those of a value, repeat by repeat.
    - `training_megabytes`: the peak memory of a process that trains: Python, JAX, the compiler, its programs and the
      images are in it. `gradient_megabytes`: by how much the peak grew with the gradient, its programs included.
    """

    model: str
    ratios: tuple[float, ...]
    training_megabytes: float
    gradient_megabytes: float


def measure(model: str, repeats: int) -> Record:
    """Return the record of a model, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (model, repeats))


def _measure(model: str, repeats: int) -> Record:
    problem, space = data_cleaning.problem(model)
    half = {"weight": np.full(TO_CLEAN + PLANTED, 0.5)}

    def seconds(below: float) -> float:
        started = time.perf_counter()
        evaluate(problem, half, key=jax.random.key(0), method=Reversible(), space=space, gradient_below=below)
        return time.perf_counter() - started

    seconds(-math.inf)
    training = _peak()
    seconds(math.inf)
    ratios = [seconds(math.inf) / seconds(-math.inf) for _ in range(repeats)]
    return Record(model, tuple(ratios), training, _peak() - training)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MB


def table(records: list[Record]) -> Table:
    """Return a table of the costs."""
    title = f"the gradient by {TO_CLEAN + PLANTED:,} weights through {data_cleaning.STEPS:,} steps of AdamW"
    found = Table("model", "time / that of training", "memory of training", "more for it", title=title)
    for record in records:
        low, middle, high = min(record.ratios), statistics.median(record.ratios), max(record.ratios)
        found.add_row(
            record.model,
            f"{middle:.1f} ({low:.1f} to {high:.1f})",
            *(f"{x:.0f} MB" for x in (record.training_megabytes, record.gradient_megabytes)),
        )
    return found


def write(records: list[Record], folder: Path) -> None:
    """Write the records to `data_cleaning_cost.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "data_cleaning_cost.jsonl", records)
