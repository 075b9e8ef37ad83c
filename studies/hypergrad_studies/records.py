"""What a comparison keeps on disk, and how it survives being cut off.

A study's folder holds three files, written in this order; each line is one of `json_lines`:

- `plan.json`: the `Plan`, so that a study cannot be continued as a different one;
- `records.jsonl`: one `Record` a line, for each trial, failures included;
- `runs.jsonl`: one `Run` a line, for each run that finished. A run that has no line here was cut off.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from filelock import FileLock, Timeout

from hypergrad_search import Status
from hypergrad_search.checks import shown
from hypergrad_search.hosting import described, joined
from hypergrad_search.nesting import flat
from hypergrad_studies import json_lines
from hypergrad_studies.json_lines import BrokenRecords
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget

Key = tuple[str, str, int]
"""What names a run: problem, method, seed."""

PRUNED = "pruned"
"""The status of a trial that was stopped early."""

FAILED = "failed"
"""The status of a trial that ended with an error instead of an evaluation."""

SOUND = frozenset({Status.OK, Status.EXPLODED})
"""The statuses of trials whose value is sound. Where a gradient exploded, the gradient alone is useless."""


class Busy(RuntimeError):
    """Another process writes into the folder. The message is one line and says what to do."""


class OtherStudy(ValueError):
    """The folder already holds a study with another plan. The message is one line and says what to do."""


@dataclass(frozen=True)
class Record:
    """One finished trial. `status` is its evaluation's status ("ok", "nan", "overflow", ...), `PRUNED` or `FAILED`."""

    problem: str
    method: str
    seed: int
    trial: int
    value: float
    """Validation loss; may be infinite."""
    test_value: float | None
    """Test loss at the same point, or None where the problem has none."""
    gradient_evaluations: int | float | None
    """What the run has spent when this trial ends; the gradient of one minibatch counts as 1. None: nobody says."""
    seconds: float
    """Wall seconds that evaluating this trial took."""
    ask_seconds: float
    tell_seconds: float
    status: str
    error: str | None
    cross_validated: float | None = None
    """The validation loss that counts each example where it was held back, or None where nothing was."""
    hyperparameters: dict[str, str | bool | int | float | None] | None = None
    """What was evaluated, as `in_short` returns it. None in records that are older than this field."""

    def __post_init__(self) -> None:
        for name in ("seconds", "ask_seconds", "tell_seconds"):  # more digits are noise, and fill the disk
            object.__setattr__(self, name, round(getattr(self, name), 4))

    @property
    def key(self) -> Key:
        """The run that this trial belongs to."""
        return self.problem, self.method, self.seed

    @property
    def sound(self) -> bool:
        """Whether the trial was evaluated to the end, and its value means something."""
        return self.status in SOUND

    @property
    def failed(self) -> bool:
        """Whether the trial has no sound value although it was not pruned."""
        return not self.sound and self.status != PRUNED


@dataclass(frozen=True)
class Run:
    """A run that finished, with `trials` records, and that could spend `budget` of its `unit`."""

    problem: str
    method: str
    seed: int
    budget: int | float
    trials: int
    wall_seconds: float
    fresh: tuple[float, ...] = ()
    """Test losses of training at what the run has found, with keys that no trial had; none where there are none."""
    unit: str = GRADIENT_EVALUATIONS
    gradients: bool = False
    """Whether the method is one of ours, which follow gradients."""
    reseed: bool = False
    """Whether each trial had a seed of its own."""

    @property
    def key(self) -> Key:
        """What names the run."""
        return self.problem, self.method, self.seed

    @property
    def limit(self) -> Budget:
        """What the run could spend."""
        return Budget(self.budget, self.unit)


@dataclass(frozen=True)
class Plan:
    """What must stay the same when a study is continued: the host, the budget as the user stated it, and the goal."""

    backend: str
    budget: int | float
    unit: str = GRADIENT_EVALUATIONS
    direction: str = "minimize"
    metric: str = "loss"

    @property
    def options(self) -> dict[str, str]:
        """What the command line calls it."""
        budget = Budget(self.budget, self.unit).option
        return {"backend": self.backend, "budget": budget, "direction": self.direction, "metric": self.metric}


@dataclass(frozen=True)
class Study:
    """All that a report is made from. Without `runs` (None), every run counts as finished."""

    records: tuple[Record, ...]
    runs: tuple[Run, ...] | None = None

    @property
    def parts(self) -> tuple[tuple[Record, ...], tuple[Run, ...] | None]:
        """Records and runs, as the functions of a report take them."""
        return self.records, self.runs

    @classmethod
    def load(cls, out: Path) -> Self:
        """Read the study in folder `out`. Raises `BrokenRecords`, also where records of a run are missing."""
        records = json_lines.read(out / "records.jsonl", Record)
        if not (out / "runs.jsonl").exists():
            return cls(tuple(records))
        runs = json_lines.read(out / "runs.jsonl", Run)
        found = Counter(record.key for record in records)
        for number, run in enumerate(runs, 1):
            if found[run.key] != run.trials:
                raise BrokenRecords(
                    f"{out / 'runs.jsonl'}, line {number}: run {run.key} has {run.trials} trials, but "
                    f"records.jsonl holds {found[run.key]}; remove this line and continue the study"
                )
        return cls(tuple(records), tuple(runs))


def in_short(hyperparameters: Mapping[str, Any]) -> dict[str, str | bool | int | float | None]:
    """Return hyperparameters as a record keeps them: plain values as they are, and arrays and all else as short texts.

    The coordinates of an array, such as "l2[0]" and "l2[1]", count as the array. What is nested has a name for each
    value, such as "opt/rate".

    Example:
        >>> import numpy as np
        >>> from hypergrad_studies.records import in_short
        >>> in_short({"rate": 0.1, "l2": np.array([0.25, 0.5, 4.0]), "b[0]": 0.5, "b[1]": 1.0})
        {'rate': 0.1, 'l2': '3 numbers, 0.25 to 4, median 0.5', 'b': '2 numbers, 0.5 to 1, median 0.75'}
    """
    return {name: _short(value) for name, value in joined(_flat(hyperparameters)).items()}


def _flat(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(flat(hyperparameters))
    except ValueError:  # in a search space of a user's own, the keys of a dict may be anything
        return dict(hyperparameters)


def _short(value: Any) -> str | bool | int | float | None:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if plain is None or isinstance(plain, str | bool | int) or (isinstance(plain, float) and math.isfinite(plain)):
        return plain
    if (
        isinstance(value, np.ndarray | jax.Array)
        and value.ndim
        and value.size
        and np.issubdtype(value.dtype, np.number)
    ):
        return described(np.asarray(value))
    return shown(plain)


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other processes from writing into folder `out`, which is made. Raises `Busy` where one does already."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Busy(f"another process is writing into {out}; wait for it, or choose another --out") from None
    with lock:
        lock.release()  # of the two times that it is held now
        yield


def merge(out: Path, folder: Path) -> int:
    """Add the finished runs of a study in `folder` that folder `out` lacks, and return how many they are.

    Raises `OtherStudy` where the two have different plans, and `BrokenRecords`.
    """
    (plan,) = json_lines.read(folder / "plan.json", Plan)
    done, other = begin(out, plan), Study.load(folder)
    new = [run for run in other.runs or () if run.key not in done]
    for run in new:
        add(out, *(record for record in other.records if record.key == run.key))
        finish(out, run)
    return len(new)


def begin(out: Path, plan: Plan) -> set[Key]:
    """Start the study `plan` in folder `out`, or continue it, and return the runs that need not run again.

    Trials of runs that were cut off are removed. Raises `OtherStudy` where `out` holds a study with another
    plan, and `BrokenRecords`.
    """
    path = out / "plan.json"
    if not path.exists():
        if any((out / name).exists() for name in ("records.jsonl", "runs.jsonl")):
            raise OtherStudy(f"{out} holds records but no plan.json to compare with; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        json_lines.replace(path, [plan])
    plans = json_lines.read(path, Plan)
    if len(plans) != 1:
        raise BrokenRecords(f"{path}: must hold one line, got {len(plans)}; choose another --out")
    before, now = plans[0].options, plan.options
    for name in before:
        if before[name] != now[name]:
            raise OtherStudy(
                f"{out} holds a study with {name} {before[name]}, which cannot continue with {name} {now[name]}; "
                f"choose another --out, or --{name} {before[name]}"
            )
    keep_finished(out)
    return finished(out)


def add(out: Path, *of_run: Record) -> None:
    """Add the trials of a run to the study in folder `out`, and wait until they are on disk."""
    json_lines.append(out / "records.jsonl", *of_run)


def finish(out: Path, run: Run) -> None:
    """Mark `run` as finished, after its last record was added."""
    json_lines.append(out / "runs.jsonl", run)


def finished(out: Path) -> set[Key]:
    """Return the runs in folder `out` that finished; empty where there are none."""
    path = out / "runs.jsonl"
    return {run.key for run in json_lines.read(path, Run)} if path.exists() else set()


def keep_finished(out: Path) -> None:
    """Remove the records of runs that were cut off, and a last line cut short, so that they can run again.

    Each file is replaced at once: a kill in the midst of this loses nothing. Raises `BrokenRecords`.
    """
    runs = json_lines.read(out / "runs.jsonl", Run, drop_cut=True)
    keys = {run.key for run in runs}
    records = json_lines.read(out / "records.jsonl", Record, drop_cut=True)
    json_lines.replace(out / "runs.jsonl", runs)
    json_lines.replace(out / "records.jsonl", [record for record in records if record.key in keys])
