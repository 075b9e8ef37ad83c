"""Options of the command line that several commands share."""

from collections.abc import Callable
from typing import Any

import click


def names_of(value: str) -> list[str]:
    """Return the names in a text, which are separated by commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def numbers_of(each: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a function that returns the numbers in a text, each converted by `each`; repetitions count once."""
    return lambda value: list(dict.fromkeys(each(part.strip()) for part in value.split(",")))


def checked(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter whose `ValueError`s are errors of the option."""

    def converted(value: str) -> Any:
        try:
            return convert(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return converted
