from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.host import Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """Forks parties' processes."""
    with Host() as started:
        yield started
