"""What the pages of the documentation say can be run: their commands exist, and no example is left out."""

import re
import shlex
from pathlib import Path

import click
import pytest

from hypergrad_studies.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "docs").rglob("*.md"))}
TESTED = {
    "docs/reversible_optimizers.md": "tests/project/test_reversible_optimizers.py",
    "docs/weighing_data.md": "tests/project/test_weighing_data.py",
}


def commands(text: str) -> list[str]:
    """Return the commands of `hypergrad` in a page: between backticks, and in blocks of code."""
    text = text.replace("\\\n", " ")
    spans = re.findall(r"(?<!`)`(hypergrad [^`]+)`", text)
    lines = re.findall(r"^ *(?:\$ )?(hypergrad [^`\n]+)$", text, flags=re.MULTILINE)
    return [" ".join(command.split()) for command in (*spans, *lines)]


def options(command: click.Command) -> set[str]:
    """Return the options of a command, and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    return own.union(*map(options, below))


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_run_by_the_build_or_by_a_test(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    if "```python" in text:
        assert PAGES[page].name in (ROOT / TESTED[page]).read_text(encoding="utf-8")
    if "```{code-cell}" in text:
        assert text.startswith("---\nfile_format: mystnb\n")


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page: str) -> None:
    for command in commands(PAGES[page].read_text(encoding="utf-8")):
        _, name, *arguments = shlex.split(command, comments=True)
        if name.startswith("-"):
            continue
        assert name in cli.commands, command
        known = options(cli.commands[name])
        used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert used <= known | {"--help"}, command


def test_commands_are_found() -> None:
    assert sum(len(commands(path.read_text(encoding="utf-8"))) for path in PAGES.values()) > 15
