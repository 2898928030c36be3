"""A coordinator and its peers over real mutual TLS on this machine, for the tests of the wire."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Self

from dovetail.crypto.certificates import new_certificate, pin_of
from dovetail.wire.attendance import Attendance, Handler, OnWelcome
from dovetail.wire.channel import Answer
from dovetail.wire.link import PACE, Pace
from dovetail.wire.payload import Part, Payload
from dovetail.wire.peers import LIMITS, Access, Identity, Limits, LinkEvent, Peer, Record, Role
from dovetail.wire.server import FederationServer

HOST = "127.0.0.1"
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""


def certificate(name: str, hosts: tuple[str, ...] = (), days: int = 730) -> tuple[bytes, bytes]:
    """The certificate and key of this description: the same ones each time."""
    return _certificate(name, hosts, days)


@cache
def _certificate(name: str, hosts: tuple[str, ...], days: int) -> tuple[bytes, bytes]:
    return new_certificate(name, datetime.now(UTC), hosts, days)


COORDINATOR = certificate("coordinator", (HOST,))


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for something of which nothing gives notice."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.005)


class Members:
    """A directory that tests change as they go."""

    def __init__(self) -> None:
        self._admitted: dict[str, tuple[bytes, Peer]] = {}

    def admit(self, name: str, role: Role, number: int = 0, days: int = 730) -> None:
        pem, _ = certificate(name, days=days)
        self._admitted[pin_of(pem)] = (pem, Peer(name, role, number))

    def revoke(self, name: str) -> None:
        del self._admitted[pin_of(certificate(name)[0])]

    def certificates(self) -> bytes:
        return b"".join(pem for pem, _ in self._admitted.values())

    def peer(self, pin: str) -> Peer | None:
        return self._admitted[pin][1] if pin in self._admitted else None


class Clerk:
    """A control handler that says what it was asked."""

    def call(self, method: str, peer: Peer, record: Record) -> Record:
        return {"method": method, "peer": peer.name, "record": record}

    def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
        yield {"peer": peer.name, "record": record}

    def fetch(self, peer: Peer, record: Record) -> tuple[Record, Iterable[Part]]:
        return {"peer": peer.name, "record": record}, [b"ab", b"c" * 3_000_000]


@dataclass
class Node:
    """A node that attends in a thread."""

    attendance: Attendance
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> Self:
        self.thread = threading.Thread(target=self.attendance.run, args=(self.stop,), daemon=True)
        self.thread.start()
        return self

    def leave(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive()


class Coordinator:
    """A server with its members; nodes are numbered from 1 in the order of their names."""

    def __init__(
        self,
        *names: str,
        limits: Limits = LIMITS,
        pace: Pace = PACE,
        clerk: Clerk | None = None,
        port: int = 0,
    ) -> None:
        self.members = Members()
        for number, name in enumerate(names, 1):
            self.members.admit(name, "node", number)
        self.members.admit("analyst", "analyst")
        self.events: list[LinkEvent] = []
        self.document = b"terms"
        self.before_welcome: Callable[[], object] = lambda: None
        self.server = FederationServer(
            f"{HOST}:{port}",
            Identity(*COORDINATOR),
            self.members,
            clerk or Clerk(),
            self.welcome,
            limits,
            self.events.append,
            pace=pace,
        )
        self.port = 0

    def welcome(self, peer: Peer) -> bytes:
        self.before_welcome()
        return self.document + b" for " + peer.name.encode()

    def access(self, name: str, port: int | None = None, days: int = 730) -> Access:
        mine = certificate(name, days=days)
        return Access(f"{HOST}:{port or self.port}", COORDINATOR[0], *mine)

    def node(
        self,
        name: str,
        handler: Handler,
        port: int | None = None,
        on_welcome: OnWelcome = lambda *_: None,
    ) -> Node:
        return Node(Attendance(self.access(name, port), handler, on_welcome))

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what a change of the nodes brings about."""
        seen = self.server.changes
        while not condition():
            before, seen = seen, self.server.wait_for_change(PATIENCE, seen)
            assert seen != before, "nothing changed for too long"

    def until_present(self, *nodes: int) -> None:
        self.until(lambda: set(nodes) <= set(self.server.nodes()))

    def until_absent(self, node: int) -> None:
        self.until(lambda: node not in self.server.nodes())

    def ask(self, requests: Mapping[int, bytes], deadline: float = PATIENCE) -> dict[int, Answer]:
        payloads = {node: Payload(request) for node, request in requests.items()}
        return dict(self.server.exchange(payloads, deadline))


@contextmanager
def meeting(
    handlers: Mapping[str, Handler],
    *,
    limits: Limits = LIMITS,
    pace: Pace = PACE,
    clerk: Clerk | None = None,
) -> Iterator[Coordinator]:
    """A coordinator to which a node with each of these names and handlers has connected."""
    with ExitStack() as stack:
        coordinator = Coordinator(*handlers, limits=limits, pace=pace, clerk=clerk)
        coordinator.port = coordinator.server.start()
        stack.callback(coordinator.server.stop, 0)
        for name, handler in handlers.items():
            stack.callback(coordinator.node(name, handler).start().leave)
        coordinator.until_present(*range(1, len(handlers) + 1))
        yield coordinator


class Proxy:
    """Passes TCP connections on, counts their bytes, and cuts them when it is told to.

    Attributes:
        up: bytes passed on from the one who dials.
        down: bytes passed on to it.
        cut_up: once ``up`` reaches this, connections are cut, once.
        cut_down: once ``down`` reaches this, connections are cut, once.
        rate: most bytes a second that are passed on each way.
    """

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self.cut_up: int | None = None
        self.cut_down: int | None = None
        self.rate = math.inf
        self.cuts = threading.Semaphore(0)
        self._target = (HOST, port)
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Ends all connections at once."""
        for side in list(self._open):
            self._open.discard(side)
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
        self.cuts.release()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(self._target)
                self._open |= {here, there}
                for way in ((here, there, True), (there, here, False)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                sink.sendall(data)
                time.sleep(len(data) / self.rate)
                self._count(len(data), upwards)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int, upwards: bool) -> None:
        if upwards:
            self.up += size
            if self.cut_up is not None and self.up >= self.cut_up:
                self.cut_up = None
                self.cut()
        else:
            self.down += size
            if self.cut_down is not None and self.down >= self.cut_down:
                self.cut_down = None
                self.cut()
