"""A rogue coordinator and the node that it is let loose on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.intruders.house import (
    House,
    leaks,
)
from tests.intruders.rogues import (
    RogueCoordinator,
    rogue_coordinator,
)


@pytest.fixture(scope="module")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RogueCoordinator]:
    """A node that admitted job-1, of which the first round is done."""
    house = House(tmp_path_factory.mktemp("house"))
    with rogue_coordinator(house) as rogue:
        assert rogue.propose(house.asked()) == "job-1"
        rogue.train(1)
        yield rogue


@pytest.fixture
def rogue(
    admitted: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> Iterator[RogueCoordinator]:
    """The rogue of a test that is to change nothing and to learn nothing."""
    before = admitted.house.head("retailer")
    yield admitted
    assert admitted.house.head("retailer") == before
    assert admitted.leaked() == []
    assert leaks(caplog.text.encode()) == []


@pytest.fixture
def alone(tmp_path: Any) -> Iterator[RogueCoordinator]:
    """A rogue with a node of its own, which has admitted nothing yet."""
    with rogue_coordinator(House(tmp_path)) as rogue:
        yield rogue
        assert rogue.leaked() == []
