"""What reproductions have found, from the files that they left: a page, and a table for the README."""

import base64
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from hypergrad_studies.pages import render
from hypergrad_studies.papers.results import Result, Study, number

_SECTION = re.compile(r"(?<=<!-- reproduce -->\n).*?(?=<!-- /reproduce -->)", re.DOTALL)

Found = Mapping[str, Sequence[Result]]  # by the study's name


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
    """Write `folder/index.html`: each study's text, figures and numbers; its figures lie in `folder/NAME`."""
    sections = [_section(name, results, studies[name], folder / name) for name, results in found.items()]
    path = folder / "index.html"
    path.write_text(render("reproduction.html", studies=sections, command=command), encoding="utf-8")
    return path


def _section(name: str, results: Sequence[Result], study: Study, folder: Path) -> _Section:
    text = inspect.getdoc(sys.modules[study.__module__]) or ""
    head, *paragraphs = text.replace("`", "").split("\n\n")
    figures = [_Figure(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in sorted(folder.glob("*.svg"))]
    rows = [_Row(*cells) for cells in _cells(results)]
    return _Section(name, head.partition(": ")[2], paragraphs, figures, rows, f"{results[0].seconds:,.0f}")


def _cells(results: Iterable[Result]) -> list[tuple[str, str, str, int]]:
    return [(r.quantity, "" if r.paper is None else number(r.paper), number(r.ours), r.seeds) for r in results]


def has_section(text: str) -> bool:
    """Whether `rewritten` finds where to write."""
    return _SECTION.search(text) is not None


def rewritten(text: str, found: Found, command: str) -> str:
    """The text with the table between its markers."""
    return _SECTION.sub(lambda _: markdown(found, command), text, count=1)


def markdown(found: Found, command: str) -> str:
    """A table of the quantities for which a paper has a number."""
    lines = [
        "| study | quantity | in the paper | ours | seeds | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, results in found.items():
        for i, cells in enumerate(_cells(r for r in results if r.paper is not None)):
            quantity, paper, ours, seeds = cells
            first = (f"`{name}`", f"{results[0].seconds:,.0f}") if i == 0 else ("", "")
            lines.append(f"| {first[0]} | {quantity} | {paper} | {ours} | {seeds} | {first[1]} |")
    where = f"on {os.cpu_count()} cores ({jax.default_backend().upper()}), with jax {jax.__version__}"
    what = "medians over seeds (inf: never), and the seconds of a study's searches, all training runs together"
    return f"`{command}`, {where}; {what}.\n\n" + "\n".join(lines) + "\n"
