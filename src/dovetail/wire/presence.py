"""Which nodes are there now: kept by the wire's thread, looked at by the threads of jobs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from dovetail.wire.asking import Asking
from dovetail.wire.link import Link
from dovetail.wire.peers import NodeLink, Peer

_BETWEEN_NUDGES = 1.0
"""Seconds in which a node's nudges are one change, so that it cannot keep everybody awake."""


class Seat:
    """What is kept of one node over its connections; belongs to the wire's thread.

    Attributes:
        link: its connection now, if it has one.
        leaving: when its exchanges fail, if it has none.
        address: where its connection comes from.
        since: when it connected, seconds since 1970.
        clock_ahead: how far its clock was ahead of the coordinator's then, seconds.
    """

    def __init__(self, peer: Peer, asking: Asking) -> None:
        self.peer = peer
        self.asking = asking
        self.link: Link | None = None
        self.leaving: asyncio.TimerHandle | None = None
        self.address = ""
        self.since = 0.0
        self.clock_ahead = 0.0


class Presence:
    """The nodes that are connected. Any thread may ask; only the wire's thread tells."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._changes = 0
        self._seats: dict[int, Seat] = {}
        self._nudges: dict[int, asyncio.TimerHandle] = {}
        self._nudged_again: set[int] = set()

    @property
    def changes(self) -> int:
        """How often a node came, went, or said that something changed there."""
        with self._changed:
            return self._changes

    def wait_for_change(self, timeout: float, seen: int | None) -> int:
        """See :meth:`dovetail.wire.server.FederationServer.wait_for_change`."""
        with self._changed:
            before = self._changes if seen is None else seen
            self._changed.wait_for(lambda: self._changes != before, timeout)
            return self._changes

    def nodes(self) -> list[int]:
        """Their numbers, in ascending order."""
        with self._changed:
            return sorted(self._seats)

    def links(self) -> list[NodeLink]:
        """Them, by number."""
        with self._changed:
            seats = [self._seats[number] for number in sorted(self._seats)]
        return [self._described(seat, seat.link) for seat in seats if seat.link is not None]

    def came(self, seat: Seat) -> None:
        """A node has connected, perhaps in the place of another connection."""
        with self._changed:
            self._seats[seat.peer.number] = seat
        self._tell()

    def went(self, seat: Seat) -> None:
        """A node has no connection any more."""
        with self._changed:
            if self._seats.get(seat.peer.number) is seat:
                del self._seats[seat.peer.number]
        self._tell()

    def nudged(self, node: int) -> None:
        """Something changed at a node: told at once, or once its last nudge is a while ago."""
        if node in self._nudges:
            self._nudged_again.add(node)
            return
        self._tell()
        loop = asyncio.get_running_loop()
        self._nudges[node] = loop.call_later(_BETWEEN_NUDGES, self._may_nudge, node)

    def _may_nudge(self, node: int) -> None:
        del self._nudges[node]
        if node in self._nudged_again:
            self._nudged_again.remove(node)
            self.nudged(node)

    def _tell(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _described(self, seat: Seat, link: Link) -> NodeLink:
        heard = self._clock() - (time.monotonic() - link.heard)
        peer = seat.peer
        return NodeLink(peer.name, peer.number, seat.address, seat.since, heard, seat.clock_ahead)
