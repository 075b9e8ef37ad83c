"""Checks of arguments that many places share."""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def shown(value: Any) -> str:
    """Return a value as an error message shows it: on one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return `value` as an int; numpy's integers count as whole numbers, and booleans do not.

    Args:
        name: how the error calls the argument, with its owner, such as `"Hypernet: steps"`.
        value: what the caller got.
        least: the smallest value that is allowed; None for no limit.
        most: the largest value that is allowed; None for no limit.

    Raises:
        ValueError: `value` is not a whole number, or lies outside of the limits.
    """
    limits = ("" if least is None else f" from {least}") + ("" if most is None else f" to {most}")
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be a whole number{limits}, got {shown(value)}")
    return number


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Return `value` as a float; numpy's numbers count, booleans do not, and infinity counts where it is a limit.

    Raises:
        ValueError: `value` is not a number, or lies outside of the limits, which are allowed.
    """
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        limits = ("" if least == -math.inf else f" from {least:g}") + ("" if most == math.inf else f" to {most:g}")
        raise ValueError(f"{name} must be a number{limits}, got {shown(value)}")
    return float(value)


def number_or_traced(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> Any:
    """Return an array of JAX as it is, since it may be traced, and any other `value` as `number` does."""
    return value if hasattr(value, "aval") else number(name, value, least, most)


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool; raise `ValueError` unless it is True or False, or numpy's."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def random_key(name: str, value: Any) -> Any:
    """Return `value`; raise `ValueError` unless it is a key of `jax.random`."""
    kind, shape = str(getattr(value, "dtype", "")), getattr(value, "shape", None)
    if not (kind.startswith("key<") and shape == ()) and not (kind == "uint32" and shape == (2,)):
        raise ValueError(f"{name} must be a key such as jax.random.key(0), got {shown(value)}")
    return value


def check_arguments(name: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Raise `ValueError` unless `function` can be called with positional arguments like these."""
    if not takes(function, arguments):
        signature = inspect.signature(function)
        raise ValueError(f"{name} must take ({', '.join(arguments)}), got a function that takes {signature}")


def takes(function: Callable[..., Any], arguments: Sequence[str]) -> bool:
    """Return whether `function` can be called with positional arguments like these, as far as it tells."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some functions written in C do not tell
        pass
    return True
