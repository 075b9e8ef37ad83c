"""Sections of a page that commands write: the text between `<!-- name -->` and `<!-- /name -->`."""

import re


def has_section(text: str, name: str) -> bool:
    """Return whether `text` has the markers of section `name`."""
    return _section(name).search(text) is not None


def rewritten(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between the markers of section `name`, and nothing else changed.

    Raises `ValueError` where `text` has no such section.
    """
    if not has_section(text, name):
        raise ValueError(f"the text has no <!-- {name} --> ... <!-- /{name} -->; add these two lines")
    return _section(name).sub(lambda _: content, text, count=1)


def _section(name: str) -> re.Pattern[str]:
    name = re.escape(name)
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
