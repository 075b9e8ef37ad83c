"""Errors of the user's `load`, on their way through a program of JAX to the caller.

JAX turns an error that Python raises inside of a compiled program into one of its own, and keeps the text alone. So the
text holds a number, by which the error itself is found again.
"""

import functools
import itertools
import logging
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from hypergrad_search.trouble import see

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_NOTE = "HostBatches: this error is from load, at step"
_MARK = "HostBatches: error"
_MOST_KEPT = 16

_numbers = itertools.count()
_errors: dict[int, BaseException] = {}  # the last ones that JAX was told of


class LoadError(Exception):
    """What JAX is told of an error."""


def told(error: BaseException, step: int) -> LoadError:
    """Return the error to raise inside of a program of JAX, in place of one that `load` has raised."""
    number = next(_numbers)
    _errors[number] = error
    _errors.pop(number - _MOST_KEPT, None)
    return LoadError(f"{_MARK} {number} at step {step}: {type(error).__name__}: {error}")


def with_errors_of_load(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that waits for its results, and raises an error of a `load` as it is, not as JAX's."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            result = function(*args, **kwargs)
            jax.block_until_ready(result)  # type: ignore[no-untyped-call]  # JAX has no types here
            return result
        except Exception as error:  # JAX has several types for it
            original = _original(error)
            if original is None:
                raise
        raise original

    return call


def _original(error: Exception) -> BaseException | None:
    found = re.search(rf"{_MARK} (\d+)", str(error))
    return None if found is None else _errors.pop(int(found[1]), None)


def note(error: BaseException, step: int) -> None:
    """Add the note by which users and `is_of_load` see that an error is from `load`."""
    error.add_note(f"{_NOTE} {step}{see('load')}")


def is_of_load(error: BaseException) -> bool:
    """Return whether a `load`, or a check of what it returned, has raised this error."""
    return any(text.startswith(_NOTE) for text in getattr(error, "__notes__", ()))


def _is_of_another(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], LoadError))


# JAX logs each error of a callback with its traceback, but those of load reach the caller as they are.
logging.getLogger(jax.pure_callback.__module__).addFilter(_is_of_another)
