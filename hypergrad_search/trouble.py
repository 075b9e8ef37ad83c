"""What to do about statuses, errors and warnings: the page `trouble.md` beside this file, section by section."""

import re
from importlib.resources import files

_END = re.compile(r"; more: python -m hypergrad_search \S+$")
_HEADING = re.compile(r"^### (\S+)$", re.MULTILINE)


def see(section: str) -> str:
    """Return the end of a message that names a section of the page, and how to read it without a network."""
    return f"; more: python -m hypergrad_search {section}"


def has_end(message: str) -> bool:
    """Return whether a message has an end that `see` has made."""
    return _END.search(message) is not None


def ending_with(end: str, message: str) -> str:
    """Return a message with an end that `see` has made, in place of the one that it may have."""
    return _END.sub("", message) + end


def sections() -> dict[str, str]:
    """Return the sections of the page by their names, each without its heading."""
    page = files("hypergrad_search").joinpath("trouble.md").read_text(encoding="utf-8")
    _, *parts = _HEADING.split(page)
    return {name: text.partition("\n## ")[0].strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
