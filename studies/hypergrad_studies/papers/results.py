"""What every reproduction has in common: how it is called, and what it leaves behind."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from hypergrad_studies.records import BrokenRecords, OtherStudy

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Scale = Literal["small", "paper"]


@dataclass(frozen=True)
class Result:
    """A number beside the paper's: `paper` is None where it has none, `ours` the median over seeds."""

    study: str
    quantity: str
    paper: float | None
    ours: float
    seeds: int
    seconds: float


_Record = TypeVar("_Record", bound="DataclassInstance")

#: (scale, folder for records and figure, how many seeds, console) -> results
Study = Callable[[Scale, Path, int, Console], list[Result]]


class Row(NamedTuple):
    """A quantity: the paper's number, None where it has none, and ours for each seed."""

    quantity: str
    paper: float | None
    ours: list[float]


def medians(study: str, rows: Iterable[Row], seconds: float, scale: Scale) -> list[Result]:
    """Every number as the median over seeds; the paper's beside those of its own scale."""
    return [
        Result(
            study=f"{study} ({scale})",
            quantity=quantity,
            paper=paper if scale == "paper" else None,
            ours=float(np.median(ours)),
            seeds=len(ours),
            seconds=seconds,
        )
        for quantity, paper, ours in rows
    ]


def line(record: "DataclassInstance") -> str:
    """A dataclass as a line of records."""
    return json.dumps(strict(asdict(record)), allow_nan=False) + "\n"


def parse(text: str, kind: type[_Record]) -> _Record:
    """The inverse of `line`, for dataclasses of plain fields."""
    document = json.loads(text)
    return kind(**{f.name: float(document[f.name]) if f.type is float else document[f.name] for f in fields(kind)})


def known(path: Path, kind: type[_Record]) -> list[_Record]:
    """The records in `path`, but for a last one that was cut short; none where there is no file."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        return [parse(text, kind) for text in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenRecords(f"{path}: a line is not a record ({error!r}); remove the file to begin again") from None


def rewrite(path: Path, records: Iterable["DataclassInstance"]) -> None:
    """Write `records` anew, all at once."""
    _replace(path, "".join(map(line, records)))


def claim(folder: Path, study: str, scale: Scale) -> None:
    """Make `folder` that of a study at a scale; raises `OtherStudy` where it is that of another."""
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / "study.json", f"{study} ({scale})"
    if not path.exists():
        if (folder / "records.jsonl").exists():
            raise OtherStudy(f"{folder} holds records of another study; choose another --out")
        _replace(path, json.dumps(mine) + "\n")
    elif (held := _load(path)) != mine:
        raise OtherStudy(f"{folder} holds the study {held}, not {mine}; choose another --out")


def read(path: Path, study: str, scale: Scale, seeds: int) -> list[Result]:
    """What `write` wrote, of this study with so many seeds; nothing where it has not, or not of that."""
    if not path.exists():
        return []
    results = [parse(json.dumps(document), Result) for document in _load(path)]
    wanted = (f"{study} ({scale})", seeds)
    return results if all((r.study, r.seeds) == wanted for r in results) else []


def write(path: Path, results: Iterable[Result]) -> None:
    """Write `results` as a JSON list; numbers that JSON lacks as in `records`, "inf", "-inf" and "nan"."""
    _replace(path, json.dumps([strict(asdict(result)) for result in results], indent=2, allow_nan=False) + "\n")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BrokenRecords(f"{path}: is not JSON ({error}); remove it to make it again") from None


def _replace(path: Path, text: str) -> None:
    """All at once: a kill in the midst of this leaves the file before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """`document` with strings for the floats that JSON lacks."""
    return {
        name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in document.items()
    }


def table(results: Iterable[Result]) -> Table:
    """The results as the terminal shows them."""
    grid = Table("study", "quantity", "paper", "ours", "seeds", "seconds")
    for r in results:
        paper = "" if r.paper is None else number(r.paper)
        grid.add_row(r.study, r.quantity, paper, number(r.ours), str(r.seeds), f"{r.seconds:.0f}")
    return grid


def number(value: float) -> str:
    """A number as tables show it."""
    return f"{value:.4g}"
