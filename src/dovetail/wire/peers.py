"""Who is who on the wire, what each may hold open, and what the rest of the house is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dovetail.wire.payload import Part

Role = Literal["node", "analyst", "operator"]
"""What a peer may do: attend; or ask things of the coordinator, as an analyst or as its owner."""
Record = dict[str, Any]
"""A JSON object."""
DOCUMENT_BYTES = 8 << 20
"""Longest document, unless the coordinator has another limit."""


@dataclass(frozen=True)
class Identity:
    """The coordinator's certificate and its private key, as PEM; the key is not encrypted."""

    certificate_pem: bytes
    private_key_pem: bytes

    def __repr__(self) -> str:
        return "Identity(...)"


@dataclass(frozen=True)
class Access:
    """How a node, analyst or operator reaches the coordinator.

    Attributes:
        address: ``host:port``; the host is one that the coordinator's certificate names.
        server_certificate: the coordinator's, PEM: the only one that is accepted.
        certificate: one's own, PEM.
        private_key: of one's own certificate, PEM, not encrypted.
    """

    address: str
    server_certificate: bytes
    certificate: bytes
    private_key: bytes

    def __repr__(self) -> str:
        return f"Access({self.address!r}, ...)"


@dataclass(frozen=True)
class Peer:
    """Somebody who was admitted.

    Attributes:
        name: the party's; a node connects once under it.
        role: what it may do.
        number: a node's number on the channel; 0 for others.
    """

    name: str
    role: Role
    number: int = 0


class Directory(Protocol):
    """Who is admitted now. Asked on the wire's own thread, so it answers from memory."""

    def certificates(self) -> bytes:
        """The certificates of all who are admitted, PEM one after the other.

        Asked at every handshake: who is not among them cannot connect.
        """
        ...

    def peer(self, pin: str) -> Peer | None:
        """Whom a certificate's key belongs to; ``None`` where it is admitted no more.

        Args:
            pin: see :func:`dovetail.crypto.certificates.pin_of`.
        """
        ...


class ControlHandler(Protocol):
    """Answers what analysts and operators ask; called from several threads at once.

    A ``DovetailError`` reaches whoever asked as its class and its text, anything else as "internal
    error".
    """

    def call(self, method: str, peer: Peer, record: Record) -> Record:
        """Answers one of :data:`~dovetail.wire.control.METHODS`."""
        ...

    def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
        """Events as they happen; ends when there will be no more, or soon after ``cancelled``."""
        ...

    def fetch(self, peer: Peer, record: Record) -> tuple[Record, Iterable[Part]]:
        """What a file is, and its bytes in pieces of any length."""
        ...


@dataclass(frozen=True)
class Limits:
    """What the coordinator's side takes. Beyond a limit it refuses, and says which limit it was.

    Attributes:
        max_message_bytes: longest request and longest answer.
        inbound_bytes: answers that are held at once, over all nodes; a longer one comes alone.
        nodes: connected at once.
        exchanges_per_node: requests to one node that have no answer yet.
        document_bytes: longest document.
        calls: control calls in progress at once.
        streams: watchers and fetchers at once.
        reconnect_grace: seconds that a lost node has to come back before its exchanges fail.
    """

    max_message_bytes: int = 1 << 30
    inbound_bytes: int = 128 << 20
    nodes: int = 1000
    exchanges_per_node: int = 16
    document_bytes: int = DOCUMENT_BYTES
    calls: int = 64
    streams: int = 64
    reconnect_grace: float = 20.0


LIMITS = Limits()
"""Limits unless a coordinator has others."""


@dataclass(frozen=True)
class LinkEvent:
    """Something happened between the coordinator and a peer; for logs and metrics.

    Attributes:
        kind: ``connected``, ``lost`` or ``refused``.
        peer: who; its name is empty where nobody knows the certificate.
        address: where the connection comes from.
        reason: why it was lost or refused.
    """

    kind: Literal["connected", "lost", "refused"]
    peer: Peer | None
    address: str
    reason: str = ""


@dataclass(frozen=True)
class NodeLink:
    """A connected node, for listing.

    Attributes:
        name: of the node.
        number: of the node.
        address: where it connects from.
        since: when it connected, seconds since 1970.
        heard: when it last gave a sign of life, seconds since 1970.
        clock_ahead: how far its clock was ahead of the coordinator's when it connected, seconds.
    """

    name: str
    number: int
    address: str
    since: float
    heard: float
    clock_ahead: float


OnLink = Callable[[LinkEvent], None]
"""Told what happens to connections, on the wire's own thread: to return at once."""
