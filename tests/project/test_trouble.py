"""The page "trouble" says what to do about every status, and quotes messages as the code has them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hypergrad_search import Cost, Evaluation, Status
from hypergrad_search.trouble import sections, see

ROOT = Path(__file__).parents[2]
GAP = "..."  # what a message puts in, and what a quotation leaves out


def messages() -> Iterator[str]:
    """Yield the texts in the code, in which what is put in is a gap."""
    for folder in ("hypergrad_search", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(x.value) if isinstance(x, ast.Constant) else GAP for x in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quoted(section: str) -> list[str]:
    return [line.removeprefix("> ") for line in section.splitlines() if line.startswith("> ")]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(messages())


def test_every_status_has_a_section() -> None:
    assert {str(status) for status in Status} <= sections().keys()


@pytest.mark.parametrize("name", sections())
def test_quotations_are_what_the_code_says(name: str, texts: list[str]) -> None:
    for quotation in quoted(sections()[name]):
        pattern = ".*".join(re.escape(part) for part in quotation.split(GAP))
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), quotation


def test_every_section_but_those_without_a_message_quotes_one() -> None:
    assert {name for name, text in sections().items() if not quoted(text)} == {"ok", "running"}


def test_messages_name_every_section_and_no_other() -> None:
    """But for what to install, where the message itself is the remedy."""
    folders = (ROOT / "hypergrad_search", ROOT / "integrations")
    source = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    named = set(re.findall(r"""\bsee\(["'](\w[\w-]*)["']\)""", source))
    of_warnings = {"doubted", "useless", "failures"}
    assert named | of_warnings == sections().keys() - {str(status) for status in Status} - {"running", "install"}


@pytest.mark.parametrize("status", [status for status in Status if status != Status.OK])
def test_the_message_of_a_status_names_its_section_once(status: Status) -> None:
    evaluation = Evaluation(1.0, None, status, Cost(1.0, 0.0), "it failed")
    assert evaluation.message == f"it failed{see(status)}"
    again = Evaluation(1.0, None, status, Cost(1.0, 0.0), evaluation.message)
    assert again.message == evaluation.message
    assert replace(evaluation, status=Status.NAN).message == f"it failed{see('nan')}"
    assert Evaluation(1.0, None, Status.OK, Cost(1.0, 0.0), "a note").message == "a note"
    error = f"it failed{see('traced')}"  # which says more than that it was refused
    kept = Evaluation(1.0, None, status, Cost(1.0, 0.0), error).message == error
    assert kept == (status == Status.REFUSED)


def test_the_command_prints_a_section_without_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hypergrad_search", "exploded"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == sections()["exploded"]
    assert "###" not in done.stdout
    unknown = subprocess.run(
        [sys.executable, "-m", "hypergrad_search", "burst"], cwd=tmp_path, capture_output=True, text=True
    )
    assert unknown.returncode == 1
    assert "with one of ok, nan, overflow" in unknown.stderr


def test_the_page_of_the_documentation_is_this_one() -> None:
    assert "../hypergrad_search/trouble.md" in (ROOT / "docs" / "trouble.md").read_text(encoding="utf-8")
