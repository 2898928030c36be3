"""A coordinator and nodes in this process, over mutual TLS on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovetail.agreement.terms import Terms
from dovetail.coordinator.app import Coordinator
from dovetail.coordinator.parties import Parties, node_number
from dovetail.coordinator.settings import load_settings as coordinator_settings
from dovetail.crypto.keyring import Keyring, load_keyring
from dovetail.errors import DovetailError
from dovetail.node.attending import attend
from dovetail.node.settings import load_settings
from dovetail.simulation.federation import COORDINATOR, Federation, Member
from dovetail.wire.control import ControlClient
from dovetail.wire.peers import Access, Limits
from tests.node.homes import SIZES, write_csv
from tests.samples import terms

PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""


def eventually(condition: Callable[[], object]) -> None:
    """Waits for something of which nothing gives notice."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


@dataclass
class Attending:
    """A node that attends in a thread, until it is stopped."""

    home: Path
    child: bool
    stop: threading.Event = field(default_factory=threading.Event)
    failed: DovetailError | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            settings = load_settings(self.home / "node.toml")
            attend(settings, load_keyring(settings.keys), self.stop, child=self.child)
        except DovetailError as error:
            self.failed = error

    def leave(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class Loopback:
    """A federation of which this process is the coordinator, and may be some nodes.

    Attributes:
        federation: its folders, keys and terms.
        coordinator: the running one.
    """

    def __init__(self, folder: Path, known: Terms) -> None:
        tables = folder / "tables"
        tables.mkdir(parents=True)
        members = {}
        for seed, partner in enumerate(known.partners):
            table = tables / f"{partner.name}.csv"
            write_csv(table, SIZES[partner.name], seed)
            members[partner.name] = Member(table)
        self.federation = Federation(folder / "federation", known, members)
        self._open = ExitStack()
        self.coordinator: Coordinator

    @property
    def terms(self) -> Terms:
        return self.federation.terms

    def home(self, party: str) -> Path:
        return self.federation.home(party)

    def keyring(self, party: str) -> Keyring:
        return load_keyring(self.home(party) / "keys")

    @property
    def parties(self) -> Parties:
        """Who may connect, as another process sees it."""
        return Parties(self.home(COORDINATOR) / "parties", self.federation.keyring)

    def start(self, limits: Limits | None = None) -> Coordinator:
        """Starts the coordinator, or starts it again."""
        settings = coordinator_settings(self.home(COORDINATOR))
        self.coordinator = Coordinator(settings, self.federation.keyring, limits=limits)
        self._open.callback(self.coordinator.close)
        self.coordinator.start()
        return self.coordinator

    def attend(self, *names: str, child: bool = False) -> list[Attending]:
        """Starts nodes and waits until they are connected."""
        nodes = [Attending(self.home(name), child) for name in names]
        for node in nodes:
            self._open.callback(node.leave)
        self.until_connected(*names)
        return nodes

    def until_connected(self, *names: str) -> None:
        numbers = {node_number(name) for name in names}
        eventually(lambda: numbers <= set(self.coordinator._server.nodes()))

    def until_gone(self, name: str) -> None:
        eventually(lambda: node_number(name) not in self.coordinator._server.nodes())

    def access(self, keyring: Keyring) -> Access:
        own = self.federation.keyring.certificate
        return Access(self.federation.address, own, keyring.certificate, keyring.tls_key)

    def client(self, keyring: Keyring | None = None) -> ControlClient:
        """A Control client: the operator's, or another party's."""
        client = ControlClient(self.access(keyring or self.federation.keyring))
        self._open.callback(client.close)
        return client

    def call(self, method: str, **record: Any) -> dict[str, Any]:
        """Asks as the operator."""
        with ControlClient(self.access(self.federation.keyring)) as client:
            return client.call(method, record)

    def watch(self, job: str = "job-1") -> list[str]:
        """What happened to a job, once it has ended and its nodes know it."""
        with ControlClient(self.access(self.federation.keyring)) as client:
            kinds = [event["kind"] for event in client.watch({"job": job, "after": 0})]
        eventually(lambda: not self.coordinator._docket._running)
        return kinds

    def close(self) -> None:
        self._open.close()


@contextmanager
def loopback(folder: Path, known: Terms | None = None) -> Iterator[Loopback]:
    """A federation in which nothing runs yet; all that is started is stopped."""
    made = Loopback(folder, known or terms())
    try:
        yield made
    finally:
        made.close()
