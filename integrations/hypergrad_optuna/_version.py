"""It refuses an Optuna that is missing or too old, in one line, before anything else is imported from it."""

import re

#: the lowest version of Optuna that works, the same as in pyproject.toml
LOWEST = "5.0"

try:
    import optuna
except ModuleNotFoundError as error:
    raise ImportError(
        f"hypergrad_optuna needs optuna {LOWEST} or newer; pip install 'hypergrad-search[optuna]'"
    ) from error


def check(version: str) -> None:
    """Raise `ImportError` where a version of Optuna is too old."""
    if _numbers(version) < _numbers(LOWEST):
        raise ImportError(
            f"hypergrad_optuna needs optuna {LOWEST} or newer, got {version}; pip install 'optuna>={LOWEST}'"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


check(optuna.__version__)
