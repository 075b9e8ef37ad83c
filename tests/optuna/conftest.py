"""SQLite in the tests does not wait for the disk, since nothing outlives them."""

from typing import Any

import pytest
import sqlalchemy


@pytest.fixture(autouse=True, scope="session")
def _sqlite_without_waiting() -> Any:
    def relax(connection: Any, record: Any) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", relax)
