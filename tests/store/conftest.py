from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Where a database can be made: a path, then a URL."""
    if request.param == "sqlite":
        return tmp_path / "coordinator.db"
    server: Server = request.getfixturevalue("postgres")
    return server.new_place()
