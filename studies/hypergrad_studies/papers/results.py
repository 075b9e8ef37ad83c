"""What every reproduction has in common: how it is called, and the numbers that it leaves behind."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from hypergrad_studies import json_lines
from hypergrad_studies.json_lines import BrokenRecords
from hypergrad_studies.records import OtherStudy

Scale = Literal["small", "paper"]


@dataclass(frozen=True)
class Result:
    """A number of a study beside the paper's.

    `ours` is the median over seeds. `paper` is None where the paper has no such number.
    """

    study: str
    quantity: str
    paper: float | None
    ours: float
    seeds: int
    seconds: float


#: (scale, folder for records and figure, how many seeds, console) -> results
Study = Callable[[Scale, Path, int, Console], list[Result]]


class Row(NamedTuple):
    """A quantity: the paper's number, None where it has none, and ours for each seed."""

    quantity: str
    paper: float | None
    ours: list[float]


def medians(study: str, rows: Iterable[Row], seconds: float, scale: Scale) -> list[Result]:
    """Return each row as a result: the median over seeds, beside the paper's number where the scale is the paper's."""
    return [
        Result(
            study=_title(study, scale),
            quantity=quantity,
            paper=paper if scale == "paper" else None,
            ours=float(np.median(ours)),
            seeds=len(ours),
            seconds=seconds,
        )
        for quantity, paper, ours in rows
    ]


def claim(folder: Path, study: str, scale: Scale) -> None:
    """Reserve `folder` for a study at a scale. Raises `OtherStudy` where the folder holds another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / "study.json", _title(study, scale)
    if not path.exists():
        if (folder / "records.jsonl").exists():
            raise OtherStudy(f"{folder} holds records of another study; choose another --out")
        _replace(path, json.dumps(mine) + "\n")
        return
    other = _load(path)
    if other != mine:
        raise OtherStudy(f"{folder} holds the study {other}, not {mine}; choose another --out")


def read(path: Path, study: str, scale: Scale, seeds: int) -> list[Result]:
    """Return the results saved in `path` for this study, scale and number of seeds; empty where there are none.

    Raises `BrokenRecords` where the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        results = [json_lines.from_document(document, Result) for document in _load(path)]
    except (ValueError, TypeError) as error:
        raise BrokenRecords(f"{path}: {error}; remove the file to make it again") from None
    wanted = (_title(study, scale), seeds)
    return results if all((r.study, r.seeds) == wanted for r in results) else []


def write(path: Path, results: Iterable[Result]) -> None:
    """Write `results` as a JSON list; numbers that JSON lacks become the strings "inf", "-inf" and "nan"."""
    documents = [json_lines.document(result) for result in results]
    _replace(path, json.dumps(documents, indent=2, allow_nan=False) + "\n")


def table(results: Iterable[Result]) -> Table:
    """Return the results as the terminal shows them."""
    grid = Table("study", "quantity", "paper", "ours", "seeds", "seconds")
    for r in results:
        paper = "" if r.paper is None else number(r.paper)
        grid.add_row(r.study, r.quantity, paper, number(r.ours), str(r.seeds), f"{r.seconds:.0f}")
    return grid


def number(value: float) -> str:
    """Return a number as tables show it."""
    return f"{value:.4g}"


def _title(study: str, scale: Scale) -> str:
    return f"{study} ({scale})"


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BrokenRecords(f"{path}: is not JSON ({error}); remove the file to make it again") from None


def _replace(path: Path, text: str) -> None:
    """Write the whole file anew, so that a kill in the middle of this leaves the old file."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
