"""What the tests of Optuna's adapter share: databases that do not wait for the disk, and leave no connection open."""

from collections.abc import Iterator

import optuna
import pytest


@pytest.fixture(autouse=True)
def _connections(closed_connections: None) -> None:
    """Close the connections to databases."""


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    """Silence Optuna, which logs a line for each trial; the line may hold hundreds of parameters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)
