"""The file in which a searcher saves its state: in binary, so that arrays are small and keep every bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import cloudpickle


def write(path: str, state: Mapping[str, Any]) -> None:
    """Write a state to a file."""
    with Path(path).open("wb") as file:
        cloudpickle.dump(dict(state), file, protocol=5)  # type: ignore[no-untyped-call]  # Ray's is not typed


def read(path: str) -> Any:
    """Return what `write` wrote; raise `ValueError` where it is no such file."""
    with Path(path).open("rb") as file:
        try:
            return cloudpickle.load(file)
        except Exception as error:  # pickle raises nearly every kind of error for a file that is no pickle
            raise ValueError(
                f"HypergradSearch: checkpoint_path must name a file that save wrote, got {path!r}"
            ) from error
