"""Comparisons of search by hypergradients with its rivals: `compare`, and the command line `hypergrad`.

Names are looked up when they are used, so that `hypergrad` can say what to install where a package is missing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypergrad_studies.comparison import CannotRun, Comparison, compare
    from hypergrad_studies.rivals import Rival, of_factory
    from hypergrad_studies.verdict import Verdict

_HOMES = {
    "CannotRun": "comparison",
    "Comparison": "comparison",
    "Rival": "rivals",
    "Verdict": "verdict",
    "compare": "comparison",
    "of_factory": "rivals",
}

__all__ = ["CannotRun", "Comparison", "Rival", "Verdict", "compare", "of_factory"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
