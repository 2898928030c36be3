"""A coordinator and a partner that have all their keys and keep to nothing, over the real wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from dovetail.agreement import request as requests
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, request_record, signed_permit_from_record
from dovetail.agreement.terms import Terms
from dovetail.coordinator.parties import node_number
from dovetail.coordinator.round import Arrays, initial_arrays
from dovetail.crypto.keyring import Keyring
from dovetail.errors import DovetailError, TransportError
from dovetail.flower import actions, codec
from dovetail.flower.grid import ask
from dovetail.node.attending import access_of, attend
from dovetail.node.opening import OpenNode, kept_terms
from dovetail.node.session import Session
from dovetail.node.settings import load_settings
from dovetail.store.desk import Desk
from dovetail.wire.attendance import Attendance
from dovetail.wire.channel import Answer, Received
from dovetail.wire.payload import Part, Payload
from dovetail.wire.peers import Identity, Peer, Record
from dovetail.wire.server import FederationServer
from tests.intruders.house import COORDINATOR, HOST, REQUEST, House, leaks, now

PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""


def eventually(condition: Callable[[], object]) -> None:
    """Waits for something of which nothing gives notice."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


class Attending:
    """A node that attends in a thread, until it is stopped."""

    def __init__(self, run: Callable[[threading.Event], None]) -> None:
        self._stop, self.failed = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self._stop)
        except DovetailError as error:
            self.failed = str(error)

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def attending(house: House, name: str, keys: str | None = None) -> Attending:
    """A partner's node as its command serves it, but training in this process."""
    settings = load_settings(house.home(name) / "node.toml")
    return Attending(partial(_attend, settings, house.keys[keys or name]))


def _attend(settings: Any, keyring: Any, stop: threading.Event) -> None:
    attend(settings, keyring, stop, child=False)


class Clerk:
    """A coordinator's control desk that nobody comes to."""

    def call(self, method: str, peer: Peer, record: Record) -> Record:
        return {}

    def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
        yield {}

    def fetch(self, peer: Peer, record: Record) -> tuple[Record, Iterable[Part]]:
        return {}, []


class RogueCoordinator:
    """A coordinator that says what it likes to one node.

    Attributes:
        document: what it welcomes nodes with.
        ahead: seconds by which its clock is wrong.
        heard: every answer of the node, as it came.
    """

    def __init__(
        self, house: House, node: str = "retailer", identity: Keyring | None = None
    ) -> None:
        """Listens; ``identity`` is the coordinator's own unless it has somebody else's."""
        self.house, self.node = house, node_number(node)
        self.document, self.ahead = house.document(*house.versions), 0.0
        self.heard: list[bytes] = []
        own = identity or house.keys[COORDINATOR]
        self.server = FederationServer(
            f"{HOST}:0",
            Identity(own.certificate, own.tls_key),
            house.parties,
            Clerk(),
            lambda _: self.document,
            clock=lambda: time.time() + self.ahead,
        )
        self.port = self.server.start()
        house.reached_through(node, self.port)

    def until_there(self) -> None:
        eventually(lambda: self.node in self.server.nodes())

    def raw(self, request: bytes) -> Answer:
        """What the node answers to some bytes."""
        ((_, answer),) = self.server.exchange({self.node: Payload(request)}, PATIENCE)
        self.heard.append(str(answer).encode() if isinstance(answer, Exception) else bytes(answer))
        return answer

    def ask(self, message: Message) -> Message:
        """What the node answers to a message; raises the error that it answers with."""
        ((_, reply),) = ask(self, [message], PATIENCE)
        if isinstance(reply, DovetailError):
            raise reply
        return reply

    def nodes(self) -> list[int]:
        return [self.node]

    def exchange(self, requests: Any, deadline: float) -> Iterator[tuple[int, Answer]]:
        """The channel of :meth:`ask`, which writes down what it hears."""
        for node, payload in requests.items():
            yield node, self.raw(payload.joined())

    def propose(self, signed: SignedRequest) -> str:
        """The job's name in the permit that the node gives."""
        record = request_record(signed)
        reply = self.ask(actions.propose_message(self.node, record))
        return signed_permit_from_record(actions.permit_of(reply)).permit.job

    def preview(self, signed: SignedRequest) -> Any:
        message = actions.preview_message(self.node, request_record(signed))
        return actions.preview_of(self.ask(message))

    def train(
        self, number: int, request: Request = REQUEST, arrays: Arrays | None = None
    ) -> Message:
        return self.ask(self.training(number, request, arrays))

    def training(
        self, number: int, request: Request = REQUEST, arrays: Arrays | None = None
    ) -> Message:
        """The message that asks for a round."""
        arrays = good_arrays(self.house.terms) if arrays is None else arrays
        record = requests.to_record(request)
        return actions.train_messages({self.node: 1.0}, number, record, arrays)[0]

    def close(self, job: str) -> None:
        self.ask(actions.close_message(self.node, job))

    def keep(self, card: actions.Record, arrays: Arrays) -> None:
        self.ask(actions.keep_messages([self.node], card, arrays)[0])

    def show(self, document: bytes) -> None:
        """Welcomes the node with something else."""
        self.document = document
        self.server.announce()

    def leaked(self) -> list[str]:
        """What of the canaries the node ever told."""
        return [leak for answer in self.heard for leak in leaks(answer)]

    def stop(self) -> None:
        self.server.stop(0)


@contextmanager
def rogue_coordinator(house: House, node: str = "retailer") -> Iterator[RogueCoordinator]:
    """A rogue coordinator that a node of the house has connected to."""
    rogue = RogueCoordinator(house, node)
    victim = attending(house, node)
    try:
        rogue.until_there()
        eventually(lambda: (house.home(node) / f"{node}.ledger").exists())
        yield rogue
    finally:
        victim.leave()
        rogue.stop()


def good_arrays(known: Terms, request: Request = REQUEST) -> Arrays:
    """The model that the first round of a job starts from."""
    return initial_arrays(request.task, known.schema.select(request.task.features))


def session_of(house: House, name: str) -> Session:
    """What a partner's node does with messages, without anything that carries them."""
    settings, keyring = load_settings(house.home(name) / "node.toml"), house.keys[name]
    return Session(
        kept_terms(settings, keyring),
        lambda known: OpenNode(settings, known, keyring, child=False),
        Desk(settings.desk),
        now,
    )


def swapped(arrays: Arrays, **others: Any) -> Arrays:
    """The model with some arrays replaced, or more of them; dots are written as underscores."""
    return {**arrays} | {name.replace("_", "."): array for name, array in others.items()}


WEIGHT, BIAS = (1, 7), (1,)
"""Shapes of the sample model's arrays."""


def told(caplog: pytest.LogCaptureFixture, refusal: str) -> bool:
    """Whether the node noted a refusal in its own log."""
    return any(
        record.name == "dovetail.node.session" and refusal in record.getMessage()
        for record in caplog.records
    )


Twist = Callable[[str, Message], Message | bytes]
"""Makes another answer of the honest one; told the kind of message that it answers."""


class RoguePartner:
    """A node that works honestly and answers something else.

    Attributes:
        twist: of its answers.
    """

    def __init__(self, house: House, name: str) -> None:
        self.twist: Twist = lambda _, reply: reply
        settings, keyring = load_settings(house.home(name) / "node.toml"), house.keys[name]
        self.session = session_of(house, name)
        self._attendance = Attendance(
            access_of(settings, keyring),
            self._handle,
            lambda document, _: self.session.welcome(document, now()),
        )
        self._attending = Attending(self._attendance.run)

    def leave(self) -> None:
        self._attending.leave()
        self.session.shut()

    def _handle(self, request: Received) -> bytes:
        kind = codec.decode(request).metadata.message_type
        twisted = self.twist(kind, codec.decode(self.session.handle(request)))
        return twisted if isinstance(twisted, bytes) else codec.encode(twisted)


def reason(answer: Answer) -> str:
    """Why there was no answer."""
    assert isinstance(answer, TransportError)
    return str(answer)


def kept_versions(home: Path) -> int:
    """How many versions of the agreement a node keeps on its disk."""
    path = home / "agreement.json"
    return path.read_text().count('"previous"') if path.exists() else 0
