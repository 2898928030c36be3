"""The Federation service: who attends, and what becomes of requests to them.

Everything here runs on the wire's own thread; only ``presence`` may be looked at from others.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]

from dovetail.errors import LocalProtocolError, RemoteProtocolError, TransportError
from dovetail.wire import envelope
from dovetail.wire.admission import Admission, Admitted, Refused
from dovetail.wire.answering import VERSION
from dovetail.wire.asking import Asking, Ended
from dovetail.wire.budget import Budget, Share
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.link import LAST_WORD, Link, Pace
from dovetail.wire.payload import Payload
from dovetail.wire.peers import Limits, LinkEvent, Peer
from dovetail.wire.presence import Presence, Seat
from dovetail.wire.transfer import CHUNK

SERVICE = "dovetail.v1.Federation"
_STALLED = 30.0
"""Seconds in which some of an answer comes, once there is room for it: at most twice as many."""
_BEAT = envelope.write(pb.ToNode(beat=pb.Beat()))


class Federation:
    """All nodes that attend, or did a moment ago."""

    def __init__(
        self,
        admission: Admission,
        welcome: Callable[[Peer], bytes],
        limits: Limits,
        pace: Pace,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], bytes] = lambda: os.urandom(envelope.ID_BYTES),
    ) -> None:
        """Nobody attends yet.

        Args:
            admission: who may.
            welcome: the document that a node is welcomed with.
            limits: what is taken.
            pace: when a silent node is gone.
            clock: seconds since 1970.
            new_id: makes ids of exchanges, 16 random bytes.
        """
        self.presence = Presence(clock)
        self.budget = Budget(limits.inbound_bytes)
        self._admission = admission
        self._welcome = welcome
        self._limits = limits
        self._pace = pace
        self._clock = clock
        self._new_id = new_id
        self._seats: dict[int, Seat] = {}
        self._attending: set[asyncio.Task[Any]] = set()

    def ask(self, node: int, request: Payload, ended: Ended) -> Callable[[], None]:
        """Sends a request; returns what abandons it."""
        seat = self._seats.get(node)
        if seat is None:
            refusal = "the node is not connected"
        elif seat.asking.outstanding >= self._limits.exchanges_per_node:
            refusal = "the node has too many requests to answer already"
        elif len(request) > self._limits.max_message_bytes:
            refusal = "the request is longer than allowed"
        else:
            name = self._new_id()
            seat.asking.begin(name, request, ended)
            return partial(seat.asking.abandon, name)
        ended(TransportError(refusal), None)
        return lambda: None

    def release(self, share: Share) -> None:
        """The answer that this share was for is no longer held."""
        self.budget.release(share)

    def announce(self) -> None:
        """Sends every node its welcome again."""
        for seat in self._seats.values():
            if seat.link is not None:
                welcome, document = self._welcome_to(seat.peer)
                seat.asking.outbox.say(pb.ToNode(welcome=welcome), [document])

    async def tend(self) -> None:
        """Sees to it, for ever, that no node keeps room for an answer that it does not send."""
        while True:
            await asyncio.sleep(_STALLED)
            for seat in list(self._seats.values()):
                if seat.link is not None:
                    seat.asking.drop_stalled()

    async def close(self, reason: str) -> None:
        """Ends all exchanges, and all connections once their last word is said."""
        for seat in list(self._seats.values()):
            self._dismiss(seat, reason)
        if self._attending:
            await asyncio.wait(self._attending, timeout=LAST_WORD)

    async def attend(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """The RPC ``Attend``: one connection of one node."""
        stream = _ServerStream(context)
        try:
            admitted = self._admission.admit(context, "node")
            hello = await self._hello(stream, admitted.peer)
            seat, link = self._take_seat(stream, admitted, hello)
        except Refused as refused:
            self._admission.note(context, refused)
            await self._turn_away(stream, refused.reason)
            await context.abort(refused.code, refused.reason)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        self._attending.add(task)
        try:
            with self._admission.lasting(admitted, partial(self._revoke, seat, link)):
                await self._carry(seat, link)
        finally:
            self._attending.discard(task)

    async def look(self, _: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """The RPC ``Look``: the welcome, without attending."""
        try:
            admitted = self._admission.admit(context, "node")
        except Refused as refused:
            await self._admission.abort(context, refused)
        welcome, document = self._welcome_to(admitted.peer)
        return envelope.write(pb.ToNode(welcome=welcome), [document])

    async def _carry(self, seat: Seat, link: Link) -> None:
        """Carries a connection to its end, and says why it ended if somebody is left to hear."""
        try:
            with suppress(TransportError, RemoteProtocolError):
                await link.carry(partial(self._hear, seat))
        finally:
            self._stand_up(seat, link)
        if link.reason:
            await link.say_last(_farewell(link.reason))

    async def _turn_away(self, stream: _ServerStream, reason: str) -> None:
        """Says why, and waits for the node to have read it: a call that ends at once may not."""
        with suppress(Exception):
            async with asyncio.timeout(LAST_WORD):
                await stream.write(_farewell(reason))
                while await stream.read() is not None:
                    pass

    async def _hello(self, stream: _ServerStream, peer: Peer) -> pb.Hello:
        try:
            async with asyncio.timeout(self._pace.silence):
                raw = await stream.read()
            frame, _ = envelope.read(raw or b"", pb.FromNode)
        except (RemoteProtocolError, TimeoutError) as error:
            raise _unintroduced(peer, str(error) or "the node did not say hello") from None
        if frame.WhichOneof("frame") != "hello":
            raise _unintroduced(peer, "the node did not say hello")
        if frame.hello.version != VERSION:
            raise _unintroduced(peer, "the node speaks another version of the protocol")
        return frame.hello

    def _take_seat(
        self, stream: _ServerStream, admitted: Admitted, hello: pb.Hello
    ) -> tuple[Seat, Link]:
        peer = admitted.peer
        seat = self._seats.get(peer.number)
        if seat is not None and seat.peer != peer:
            self._dismiss(seat, "another node has its number now")
            seat = None
        if seat is None and len(self._seats) >= self._limits.nodes:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise Refused(peer, code, "too many nodes are connected")
        seat = seat or Seat(peer, Asking(self.budget, self._limits.max_message_bytes))
        try:
            return seat, self._sit_down(seat, stream, admitted, hello)
        except RemoteProtocolError as error:
            raise _unintroduced(peer, str(error)) from None

    def _sit_down(
        self, seat: Seat, stream: _ServerStream, admitted: Admitted, hello: pb.Hello
    ) -> Link:
        welcome, document = self._welcome_to(admitted.peer)
        seat.asking.resume(hello, welcome, document)
        if seat.link is not None:
            seat.link.end("another connection of the same node took its place")
        if seat.leaving is not None:
            seat.leaving.cancel()
            seat.leaving = None
        seat.link = link = Link(stream, seat.asking.outbox, _BEAT, self._pace)
        seat.address = admitted.address
        seat.since = self._clock()
        seat.clock_ahead = hello.clock - seat.since if math.isfinite(hello.clock) else math.inf
        self._seats[admitted.peer.number] = seat
        self.presence.came(seat)
        self._admission.tell(LinkEvent("connected", admitted.peer, admitted.address))
        return link

    def _welcome_to(self, peer: Peer) -> tuple[pb.Welcome, bytes]:
        document = self._welcome(peer)
        if len(document) > self._limits.document_bytes:
            raise LocalProtocolError("the document to welcome nodes with is longer than allowed")
        welcome = pb.Welcome(clock=self._clock(), node=peer.number, beat=self._pace.beat)
        return welcome, document

    async def _hear(self, seat: Seat, raw: bytes) -> None:
        frame, data = envelope.read(raw, pb.FromNode)
        if len(data) > CHUNK:
            raise RemoteProtocolError("a frame is longer than allowed")
        match frame.WhichOneof("frame"):
            case "beat":
                pass
            case "nudge":
                self.presence.nudged(seat.peer.number)
            case _:
                seat.asking.receive(frame, data)

    def _revoke(self, seat: Seat, link: Link, reason: str) -> None:
        if seat.link is link:
            self._dismiss(seat, reason)
        link.end(reason)

    def _dismiss(self, seat: Seat, reason: str) -> None:
        """The node is out, and need not come back."""
        seat.asking.fail(reason)
        if seat.link is not None:
            seat.link.end(reason)
        self._forget(seat)

    def _stand_up(self, seat: Seat, link: Link) -> None:
        """The connection is over; the node has a while to come back."""
        reason = link.reason or "the connection was closed"
        self._admission.tell(LinkEvent("lost", seat.peer, seat.address, reason))
        if seat.link is not link:
            return
        seat.link = None
        seat.asking.suspend()
        self.presence.went(seat)
        if self._seats.get(seat.peer.number) is seat:
            grace = self._limits.reconnect_grace
            seat.leaving = asyncio.get_running_loop().call_later(grace, self._leave, seat)

    def _leave(self, seat: Seat) -> None:
        seat.asking.fail("the node was lost and did not come back")
        self._forget(seat)

    def _forget(self, seat: Seat) -> None:
        if seat.leaving is not None:
            seat.leaving.cancel()
        if self._seats.get(seat.peer.number) is seat:
            del self._seats[seat.peer.number]


def _farewell(reason: str) -> bytes:
    return envelope.write(pb.ToNode(farewell=pb.Farewell(reason=reason)))


def _unintroduced(peer: Peer, reason: str) -> Refused:
    return Refused(peer, grpc.StatusCode.FAILED_PRECONDITION, reason)


class _ServerStream:
    """A node's stream, as :class:`~dovetail.wire.link.Stream`."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        raw = await self._context.read()
        return None if raw is grpc.aio.EOF else raw

    async def write(self, frame: bytes) -> None:
        try:
            await self._context.write(frame)
        except Exception:  # noqa: BLE001 - gRPC raises several
            await asyncio.Event().wait()  # the call has ended: it is read from, or cancelled, next
