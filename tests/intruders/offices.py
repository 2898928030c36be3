"""A running coordinator of a house, and how its peers and a test see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dovetail.agreement.signing import SignedRequest, request_record
from dovetail.coordinator.app import Coordinator
from dovetail.coordinator.settings import load_settings
from dovetail.crypto.keyring import Keyring
from dovetail.wire.control import ControlClient
from dovetail.wire.peers import Limits
from tests.intruders.house import ANALYST, COORDINATOR, PARTNERS, House, leaks
from tests.intruders.rogues import Attending, attending, eventually


class Office:
    """A coordinator at work, and nodes that attend to it.

    Attributes:
        house: whose coordinator it is.
        coordinator: the running one.
    """

    def __init__(self, house: House, limits: Limits | None = None) -> None:
        self.house = house
        settings = load_settings(house.home(COORDINATOR))
        self.coordinator = Coordinator(settings, house.keys[COORDINATOR], limits=limits)
        self._nodes: list[Attending] = []

    def attend(self, *names: str) -> None:
        """Honest nodes come, and are ready."""
        self._nodes += [attending(self.house, name) for name in names]
        self.until_there(*names)
        for name in names:
            ledger = self.house.home(name) / f"{name}.ledger"
            eventually(ledger.exists)

    def until_there(self, *names: str) -> None:
        eventually(lambda: set(names) <= self.connected())

    def connected(self) -> set[str]:
        """The names of the nodes that are connected."""
        return {link.name for link in self.coordinator._server.links()}

    def client(self, keyring: Keyring) -> ControlClient:
        return ControlClient(self.house.access(keyring))

    def call(self, method: str, by: str = ANALYST, **record: Any) -> dict[str, Any]:
        """Asks as somebody; what is answered is searched for leaks."""
        with self.client(self.house.keys[by]) as client:
            answer = client.call(method, record)
        assert leaks(json.dumps(answer).encode()) == []
        return answer

    def submit(
        self, signed: SignedRequest, by: str = ANALYST, quorum: int = 0, deadline: float = 60.0
    ) -> dict[str, Any]:
        record = request_record(signed)
        return self.call("Submit", by, signed=record, quorum=quorum, deadline=deadline)

    def watch(self, job: str = "job-1") -> list[dict[str, Any]]:
        """What happened to a job, once it has ended and all partners were told."""
        with self.client(self.house.keys[COORDINATOR]) as client:
            events = list(client.watch({"job": job, "after": 0}))
        eventually(lambda: job not in self.coordinator._docket._running)
        assert leaks(json.dumps(events).encode()) == []
        return events

    def jobs(self) -> list[str]:
        """The names of all jobs."""
        found = self.call("List", COORDINATOR, states=[], limit=1000, before="")
        return [job["job"] for job in found["jobs"]]

    def heads(self) -> dict[str, str]:
        """What stands in each ledger."""
        names = [n for n in PARTNERS if (self.house.home(n) / f"{n}.ledger").exists()]
        return {name: self.house.head(name) for name in names}

    def close(self) -> None:
        for node in self._nodes:
            node.leave()
        self.coordinator.close()


@contextmanager
def office(house: House, *nodes: str, limits: Limits | None = None) -> Iterator[Office]:
    """An office with these nodes present."""
    opened = Office(house, limits)
    try:
        opened.coordinator.start()
        opened.attend(*nodes)
        yield opened
    finally:
        opened.close()


def refused_links(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why connections were refused, in the coordinator's own log."""
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [str(field["why"]) for field in fields if field.get("link") == "refused"]


def refused_calls(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was refused to whom, in the coordinator's own log."""
    records = [r for r in caplog.records if r.name == "dovetail.wire.control_service"]
    return [record.getMessage() for record in records]
