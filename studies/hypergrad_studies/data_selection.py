"""Choosing a tenth of the training images by gradients, where half of all labels are wrong.

The problem is that of `data-cleaning`. Each gradient by the weights of all images tells which of them would lower the
validation loss; the images with the largest sum of such slopes are chosen, training goes on with these alone, and the
next gradient is added. So the sum corrects a choice that has too many images of one kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hypergrad_search import evaluate
from hypergrad_studies import json_lines
from hypergrad_studies.data_cleaning import median, trained
from hypergrad_studies.networks import Split
from hypergrad_studies.problems import data_cleaning
from hypergrad_studies.problems.data_cleaning import PLANTED, TO_CLEAN

CHOSEN = TO_CLEAN // 10
RANDOM = "random images"
RIGHT = "random images with right labels"  # which nobody knows


@dataclass(frozen=True)
class Record:
    """What came of a choice: the share of wrong labels in it, and of test images that training on it classifies right.

    - `gradients`: how many gradients it took. `loss`: the validation loss at the last one; None without any.
    """

    model: str
    choice: str
    seed: int
    gradients: int
    loss: float | None
    wrong: float
    accuracy: float


def choose(model: str, seed: int, gradients: int) -> Iterator[Record]:
    """Yield the record of a random choice, of one among the right labels, and of one after each gradient."""
    data, generator = data_cleaning.data(seed), np.random.default_rng(seed)
    wrong = data.wrong[:TO_CLEAN]

    def record(choice: str, rows: np.ndarray[Any, Any], used: int = 0, loss: float | None = None) -> Record:
        model_ = trained(model, Split(data.train.images[rows], data.train.labels[rows]))
        share = float(wrong[rows].mean())
        return Record(model, choice, seed, used, loss, share, data_cleaning.accuracy(model_, data.test))

    yield record(RANDOM, generator.permutation(TO_CLEAN)[:CHOSEN])
    yield record(RIGHT, generator.permutation(np.flatnonzero(~wrong))[:CHOSEN])
    problem, space = data_cleaning.problem(model, seed)
    weight, gain = np.full(TO_CLEAN + PLANTED, 0.5), np.zeros(TO_CLEAN)
    weight[TO_CLEAN:] = 0.0  # planted errors have no part in this
    for used in range(1, gradients + 1):
        found = evaluate(problem, {"weight": weight}, key=jax.random.key(0), space=space)
        if found.usable_gradient is None:
            raise ArithmeticError(f"data-selection: there is no gradient to choose by: {found.message}")
        slope = np.asarray(found.usable_gradient["weight"], float)[:TO_CLEAN]
        gain -= slope / (np.abs(slope).mean() or 1.0)
        rows = np.argsort(-gain, kind="stable")[:CHOSEN]
        yield record(f"{used} gradient{'s' if used > 1 else ''}", rows, used, found.value)
        weight = np.zeros(TO_CLEAN + PLANTED)
        weight[rows] = 1.0


def measure(model: str, seeds: int, gradients: int, console: Console) -> list[Record]:
    """Return the records of all choices, from seed 1 on: seed 0 served to choose the settings."""
    plan = range(1, seeds + 1)
    return [record for seed in track(plan, "seeds", console=console) for record in choose(model, seed, gradients)]


def table(records: Sequence[Record]) -> Table:
    """Return a table of the choices: medians with the least and the largest of the seeds."""
    seeds = len({record.seed for record in records})
    title = f"{records[0].model}, {CHOSEN} of {TO_CLEAN:,} images, medians of {seeds} seeds"
    found = Table("choice", "wrong labels", "test images right", title=title)
    for choice in dict.fromkeys(record.choice for record in records):
        of_choice = [record for record in records if record.choice == choice]
        shares = [record.wrong for record in of_choice], [record.accuracy for record in of_choice]
        found.add_row(choice, *(median(numbers, "{:.1%}") for numbers in shares))
    return found


def write(records: Sequence[Record], folder: Path) -> None:
    """Write the records to `data_selection.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "data_selection.jsonl", records)
