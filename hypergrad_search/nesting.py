"""Nested hyperparameters: `{"opt": {"rate": 0.1}}` to a problem's functions, and the name `"opt/rate"` to all else."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

SEPARATOR = "/"


def flat(tree: Any, names: Collection[str] | None = None) -> Any:
    """Return a dict that may be nested as a flat one, with "/" between the keys; what is no dict stays as it is.

    With `names` only the dicts on the way to one of these names are taken apart, since others may be values.

    Raises `ValueError` where a key inside is no string, or two entries have the same name.

    Example:
        >>> from hypergrad_search.nesting import flat
        >>> flat({"opt": {"rate": 0.1, "steps": 3}, "l2": 0.0})
        {'opt/rate': 0.1, 'opt/steps': 3, 'l2': 0.0}
    """
    if not isinstance(tree, Mapping) or not any(isinstance(value, Mapping) for value in tree.values()):
        return tree
    folders = None if names is None else {folder for name in names for folder in _folders(name)}
    found: dict[Any, Any] = {}
    for name, value in _entries(tree, (), folders):
        if name in found:
            raise ValueError(f"{name!r} stands for two things in a nested dict; rename one of them")
        found[name] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inverse of `flat`: each name with "/" is the path of a value in dicts within dicts.

    Raises `ValueError` where one name stands for a value and for a dict.

    Example:
        >>> from hypergrad_search.nesting import nested
        >>> nested({"opt/rate": 0.1, "l2": 0.0})
        {'opt': {'rate': 0.1}, 'l2': 0.0}
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *folders, last = name.split(SEPARATOR)
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, _Folder())
            if not isinstance(inner, _Folder):
                raise ValueError(f"{name!r} is inside of {folder!r}, which is a value of its own; rename one of them")
        if last in inner:
            raise ValueError(f"{name!r} stands for two things, a value and a dict; rename one of them")
        inner[last] = value
    return _plain(tree)


def is_nested(names: Collection[str]) -> bool:
    """Return whether any of the names is a path."""
    return any(SEPARATOR in name for name in names)


class OfNested:
    """A user's function of hyperparameters, which gets them nested, whatever form they come in.

    `place` is the place of the hyperparameters among its arguments, counted from the last one, which is -1.
    """

    def __init__(self, function: Callable[..., Any], place: int) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.place = place

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        place = len(arguments) + self.place
        return self.function(*arguments[:place], nested(arguments[place]), *arguments[place + 1 :])


class _Folder(dict[str, Any]):
    """A dict that `nested` has made, which no value is."""


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, _Folder) else value for key, value in tree.items()}


def _folders(name: str) -> Iterator[str]:
    parts = name.split(SEPARATOR)
    return (SEPARATOR.join(parts[:length]) for length in range(1, len(parts)))


def _entries(tree: Mapping[Any, Any], path: tuple[str, ...], folders: set[str] | None) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items():
        name = SEPARATOR.join((*path, key)) if isinstance(key, str) else key
        if isinstance(value, Mapping) and isinstance(key, str) and (folders is None or name in folders):
            yield from _entries(value, (*path, key), folders)
        elif path and not isinstance(key, str):
            raise ValueError(f"nested dicts: names must be strings, got {key!r} in {SEPARATOR.join(path)!r}")
        else:
            yield name, value
