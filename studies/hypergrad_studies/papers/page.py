"""A page, and a section of another, that show what reproductions have found, made of the files that they left."""

import base64
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from hypergrad_studies.pages import render
from hypergrad_studies.papers.results import Result, Study, number

#: the results of each study by its name
Found = Mapping[str, Sequence[Result]]


class _Row(NamedTuple):
    quantity: str
    paper: str
    ours: str
    seeds: int


class _Figure(NamedTuple):
    name: str
    data: str


class _Section(NamedTuple):
    name: str
    title: str
    paragraphs: list[str]
    figures: list[_Figure]
    rows: list[_Row]
    seconds: str


def write_page(folder: Path, found: Found, studies: Mapping[str, Study], command: str) -> Path:
    """Write `folder/index.html`: the text, figures and numbers of each study.

    The figures are read from `folder/NAME`, the text is the docstring of the study's module, and `command` is what
    makes the page again.
    """
    sections = [_section(name, results, studies[name], folder / name) for name, results in found.items()]
    path = folder / "index.html"
    path.write_text(render("reproduction.html", studies=sections, command=command), encoding="utf-8")
    return path


def markdown(found: Found, command: str) -> str:
    """Return a table of the quantities for which a paper has a number, below a line with the command and machine."""
    lines = [
        "| study | quantity | in the paper | ours | seeds | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, results in found.items():
        for i, row in enumerate(_rows(r for r in results if r.paper is not None)):
            study, seconds = (f"`{name}`", _seconds(results)) if i == 0 else ("", "")
            lines.append(f"| {study} | {row.quantity} | {row.paper} | {row.ours} | {row.seeds} | {seconds} |")
    where = f"on {os.cpu_count()} cores ({jax.default_backend().upper()}), with jax {jax.__version__}"
    what = "medians over seeds (inf: never), and the seconds of a study's searches, all training runs together"
    return f"`{command}`, {where}; {what}.\n\n" + "\n".join(lines) + "\n"


def _section(name: str, results: Sequence[Result], study: Study, folder: Path) -> _Section:
    text = inspect.getdoc(sys.modules[study.__module__]) or ""
    head, *paragraphs = text.replace("`", "").split("\n\n")
    figures = [_Figure(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in sorted(folder.glob("*.svg"))]
    return _Section(name, head.partition(": ")[2], paragraphs, figures, _rows(results), _seconds(results))


def _rows(results: Iterable[Result]) -> list[_Row]:
    return [_Row(r.quantity, "" if r.paper is None else number(r.paper), number(r.ours), r.seeds) for r in results]


def _seconds(results: Sequence[Result]) -> str:
    return f"{results[0].seconds:,.0f}"
