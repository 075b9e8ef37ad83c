"""What a study keeps on disk, and how it survives being cut off.

A study's folder holds three files, written in this order:

- `plan.json`: the `Plan`, so that a study cannot be continued as a different one;
- `records.jsonl`: one `Record` a line, for each trial, failures included;
- `runs.jsonl`: one `Run` a line, for each run that finished. A run that has no line here was cut off.

Every line is strict JSON. Numbers that JSON lacks are written as the strings "inf", "-inf" and "nan".
"""

import json
import math
import operator
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Self, TypeVar, get_args

Key = tuple[str, str, int]
"""A run's name: problem, method, seed."""

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_TYPES = {str: "a string", int: "an integer", float: 'a number, "inf" or "nan"', NoneType: "null"}


class BrokenRecords(ValueError):
    """A file of a study cannot be read. The message is one line: which file and line, why, what to do."""


class OtherStudy(ValueError):
    """The folder already holds a study with another plan. The message is one line and says what to do."""


@dataclass(frozen=True)
class Record:
    """One finished trial. `status` is "ok", "pruned", or the name of a failure ("nan", "overflow", ...)."""

    problem: str
    method: str
    seed: int
    trial: int
    value: float
    """Validation loss; may be infinite."""
    test_value: float | None
    """Test loss at the same point, or None where the problem has none."""
    gradient_evaluations: int
    """Spent by the run up to and with this trial; one minibatch gradient is 1."""
    seconds: float
    """Wall seconds that evaluating this trial took."""
    ask_seconds: float
    tell_seconds: float
    status: str
    error: str | None

    @property
    def key(self) -> Key:
        """The run that this trial belongs to."""
        return self.problem, self.method, self.seed


@dataclass(frozen=True)
class Run:
    """A run that finished, with `trials` records, and that could spend `budget` gradient evaluations."""

    problem: str
    method: str
    seed: int
    budget: int
    trials: int
    wall_seconds: float

    @property
    def key(self) -> Key:
        """The run's name."""
        return self.problem, self.method, self.seed


@dataclass(frozen=True)
class Plan:
    """What must stay the same when a study is continued: the host, and the budget as the user stated it."""

    backend: str
    budget: int


@dataclass(frozen=True)
class Study:
    """All that a report is made from. Without `runs` (None), every run counts as finished."""

    records: tuple[Record, ...]
    runs: tuple[Run, ...] | None = None

    @classmethod
    def load(cls, out: Path) -> Self:
        """Read the study in folder `out`. Raises `BrokenRecords`, also where records of a run are missing."""
        records = read(out / "records.jsonl")
        if not (out / "runs.jsonl").exists():
            return cls(tuple(records))
        runs = _read(out / "runs.jsonl", Run)
        found = Counter(record.key for record in records)
        for number, run in enumerate(runs, 1):
            if found[run.key] != run.trials:
                raise BrokenRecords(
                    f"{out / 'runs.jsonl'}, line {number}: run {run.key} has {run.trials} trials, but "
                    f"records.jsonl holds {found[run.key]}; remove this line and continue the study"
                )
        return cls(tuple(records), tuple(runs))


def append(path: Path, record: Record) -> None:
    """Add one line to `path` and wait until it is on disk: a kill costs at most the line being written."""
    _append(path, record)


def read(path: Path) -> list[Record]:
    """The records in file `path`, in the order written. Raises `BrokenRecords`."""
    return _read(path, Record)


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
        _replace(path, [plan])
    plans = _read(path, Plan)
    if len(plans) != 1:
        raise BrokenRecords(f"{path}: must hold one line, got {len(plans)}; choose another --out")
    for name in ("backend", "budget"):
        before, now = getattr(plans[0], name), getattr(plan, name)
        if before != now:
            raise OtherStudy(
                f"{out} holds a study with {name} {before}, asked to continue with {now}; "
                f"choose another --out, or --{name} {before}"
            )
    keep_finished(out)
    return finished(out)


def finish(out: Path, run: Run) -> None:
    """Mark `run` as finished, after its last record was appended."""
    _append(out / "runs.jsonl", run)


def finished(out: Path) -> set[Key]:
    """The runs in folder `out` that finished; empty where there are none."""
    path = out / "runs.jsonl"
    return {run.key for run in _read(path, Run)} if path.exists() else set()


def keep_finished(out: Path) -> None:
    """Remove the records of runs that were cut off, and a last line cut short, so that they can run again.

    Each file is replaced at once: a kill in the midst of this loses nothing. Raises `BrokenRecords`.
    """
    runs = _read(out / "runs.jsonl", Run, drop_cut=True)
    keys = {run.key for run in runs}
    records = _read(out / "records.jsonl", Record, drop_cut=True)
    _replace(out / "runs.jsonl", runs)
    _replace(out / "records.jsonl", [record for record in records if record.key in keys])


_Line = TypeVar("_Line", Record, Run, Plan)


def _read(path: Path, kind: type[_Line], drop_cut: bool = False) -> list[_Line]:
    """The lines of `path`. With `drop_cut`, a missing file is empty and a last line cut short is left out."""
    if not path.exists():
        if drop_cut:
            return []
        raise BrokenRecords(f"{path}: no such file; run a study into this folder first")
    *lines, rest = path.read_bytes().split(b"\n")
    if rest and not drop_cut:
        raise BrokenRecords(
            f"{path}, line {len(lines) + 1}: is cut short, as by a kill while it was written; "
            "continue the study, which repairs it, or remove the line"
        )
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            parsed.append(_parse(line, kind))
        except (ValueError, TypeError, OverflowError) as error:
            raise BrokenRecords(f"{path}, line {number}: {error}; mend or remove the line") from None
    return parsed


def _parse(line: bytes, kind: type[_Line]) -> _Line:
    try:
        document = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"must be a JSON object, got {_short(document)}")
    names = [field.name for field in fields(kind)]
    for name in names:
        if name not in document:
            raise ValueError(f"field {name!r} is missing")
    for name in document:
        if name not in names:
            raise ValueError(f"field {name!r} is unknown, expected {', '.join(names)}")
    return kind(**{field.name: _typed(field.name, document[field.name], field.type) for field in fields(kind)})


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type has it, or TypeError."""
    kinds = get_args(kind) or (kind,)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if float in kinds and isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    raise TypeError(f"field {name!r} must be {' or '.join(_TYPES[k] for k in kinds)}, got {_short(value)}")


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} must be written as "inf", "-inf" or "nan"')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(item: Record | Run | Plan) -> bytes:
    """One line, newline included, of plain numbers. What could not be read back is a TypeError."""
    document = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if value is not None and not isinstance(value, str):
            value = operator.index(value) if field.type is int else float(value)
        document[field.name] = _typed(field.name, value, field.type)
    strict = {
        name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in document.items()
    }
    return json.dumps(strict, allow_nan=False).encode() + b"\n"


def _append(path: Path, item: Record | Run) -> None:
    line = _line(item)
    # One write to a file opened for appending: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, line) != len(line):
            raise OSError(f"{path}: the line was written in part; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def _replace(path: Path, items: Iterable[Record | Run | Plan]) -> None:
    """Write all lines of `path` anew: the old file stays whole until the new one is on disk."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.writelines(_line(item) for item in items)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
