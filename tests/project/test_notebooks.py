"""The notebooks of the documentation are small, clean, and keep what they print and draw."""

import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def said(notebook: Any) -> list[tuple[str, list[str]]]:
    """Return for each cell its code and what came out of it: words without their numbers, and kinds of pictures."""
    found = []
    for cell in code_of(notebook):
        outputs = [
            re.sub(r"[-\d.e ]+", "", "".join(out["text"])) if "text" in out else " ".join(sorted(out["data"]))
            for out in cell["outputs"]
        ]
        found.append(("".join(cell["source"]), outputs))
    return found


def test_there_are_four_and_each_is_on_the_first_page() -> None:
    index = (DOCS / "index.md").read_text()
    assert len(NOTEBOOKS) == 4
    assert all(f"notebooks/{path.stem}\n" in index for path in NOTEBOOKS)


@each
def test_a_notebook_keeps_its_pictures_and_nothing_else(path: Path) -> None:
    assert path.stat().st_size < 300_000
    notebook = json.loads(path.read_text())
    assert notebook["metadata"] == runpy.run_path(str(DOCS / "execute_notebooks.py"))["METADATA"]
    assert not any(cell["metadata"] for cell in notebook["cells"])
    code = code_of(notebook)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    pictures = 0
    for cell in code:
        last = "".join(cell["source"]).splitlines()[-1]
        drawn = ["image/png" in out.get("data", {}) for out in cell["outputs"]]
        if last.startswith("to_matplotlib(") or last == "plt.show()":
            assert any(drawn), f"{last} has left no picture; run `make notebooks`"
        pictures += any(drawn)
        for out in cell["outputs"]:
            assert out["output_type"] != "error"
            assert out.get("name") != "stderr", out["text"]
            assert not any(kind in out.get("data", {}) for kind in ("text/html", "application/javascript"))
    assert pictures >= 2


@pytest.mark.slow
@each
def test_a_notebook_does_what_it_shows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    monkeypatch.setitem(os.environ, "JUPYTER_PLATFORM_DIRS", "1")  # or Jupyter's packages warn
    execute = runpy.run_path(str(DOCS / "execute_notebooks.py"))["execute"]
    assert said(execute(path)) == said(json.loads(path.read_text())), "run `make notebooks`"
