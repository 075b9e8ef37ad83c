"""What the tests of Optuna's adapter share: databases that do not wait for the disk, and leave no connection open."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """Close the connections to databases, since Optuna never does, and Python warns of that."""
    opened: list[Any] = []

    def note(connection: Any, record: Any) -> None:
        opened.append(connection)
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")  # nothing outlives the tests

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", note)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", note)
    for connection in opened:
        connection.close()


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    """Silence Optuna, which logs a line for each trial; the line may hold hundreds of parameters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)
