"""The coordinator's half of what it and one node say to each other, without I/O.

An exchange is a request to the node and the node's answer. It moves like this; whatever else the
node says about an exchange breaks the protocol, and costs the exchange and the connection::

    QUEUED     --first chunk handed out-->           SENDING
    SENDING    --last chunk handed out-->            ASKED
    ASKED      --offer-->                            OFFERED     --room granted--> RECEIVING
    RECEIVING  --last chunk-->                       ended
    RECEIVING  --nothing for too long-->             ended
    ASKED      --offer with the answer inside-->     ended
    any begun  --failed-->                           ended, unless an answer was offered
    any        --abandoned, or the node is lost-->   ended

Frames about an exchange that has ended are no fault: they may have been on their way. When the node
connects again it says what it holds (:meth:`Asking.resume`), and every exchange goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial

from dovetail.errors import RemoteProtocolError, TransportError, readable
from dovetail.wire.budget import Budget, Share
from dovetail.wire.channel import Answer
from dovetail.wire.envelope import ID_BYTES
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.outbox import Outbox
from dovetail.wire.payload import Payload
from dovetail.wire.transfer import INLINE, Incoming, Outgoing

Ended = Callable[[Answer, Share | None], None]
"""Told an exchange's outcome, once; the share of the budget is the receiver's to release."""


class Stage(Enum):
    """Where an exchange is; see the head of this file."""

    QUEUED = auto()
    SENDING = auto()
    ASKED = auto()
    OFFERED = auto()
    RECEIVING = auto()


class _Exchange:
    def __init__(self, name: bytes, request: Payload, ended: Ended) -> None:
        self.name = name
        self.outgoing = Outgoing(request)
        self.ended = ended
        self.incoming: Incoming | None = None
        self.share: Share | None = None
        self.seen_at = -1

    @property
    def stage(self) -> Stage:
        if self.incoming is not None:
            granted = self.share is not None and self.share.granted
            return Stage.RECEIVING if granted else Stage.OFFERED
        if not self.outgoing.begun:
            return Stage.QUEUED
        return Stage.ASKED if self.outgoing.finished else Stage.SENDING


class Asking:
    """All exchanges with one node, over all its connections.

    Attributes:
        outbox: what to send over the present connection.
    """

    def __init__(self, budget: Budget, max_bytes: int) -> None:
        """No exchange yet.

        Args:
            budget: for answers that are being received; shared with the other nodes.
            max_bytes: longest answer that is taken.
        """
        self.outbox = Outbox(pb.ToNode)
        self._budget = budget
        self._max_bytes = max_bytes
        self._exchanges: dict[bytes, _Exchange] = {}
        self._incarnation: bytes | None = None

    @property
    def outstanding(self) -> int:
        """How many exchanges have not ended."""
        return len(self._exchanges)

    def begin(self, name: bytes, request: Payload, ended: Ended) -> None:
        """Sends a request when its turn comes; ``name`` is 16 bytes that never occurred before."""
        exchange = _Exchange(name, request, ended)
        self._exchanges[name] = exchange
        self.outbox.send(name, exchange.outgoing)

    def abandon(self, name: bytes) -> None:
        """Wants the answer no more; does nothing where the exchange has ended."""
        if exchange := self._exchanges.get(name):
            self._forget(exchange)

    def fail(self, reason: str) -> None:
        """Ends every exchange: the node is gone for good."""
        for exchange in list(self._exchanges.values()):
            self._end(exchange, TransportError(reason))

    def drop_stalled(self) -> None:
        """Ends exchanges of whose answer nothing came since this was called last.

        They have room that others wait for. To be called now and then, while there is a connection.
        """
        for exchange in list(self._exchanges.values()):
            if exchange.incoming is None or exchange.stage is not Stage.RECEIVING:
                continue
            if len(exchange.incoming.data) == exchange.seen_at:
                self._drop(exchange, TransportError("the node stopped sending its answer"))
            else:
                exchange.seen_at = len(exchange.incoming.data)

    def suspend(self) -> None:
        """The connection is lost. Answers that only wait for room leave the queue for it."""
        self.outbox.clear()
        for exchange in self._exchanges.values():
            if exchange.share is not None and not exchange.share.granted:
                self._budget.release(exchange.share)
                exchange.share = None

    def resume(self, hello: pb.Hello, welcome: pb.Welcome, document: bytes) -> None:
        """The node connected: it is welcomed, and every exchange goes on, or ends if it cannot.

        Raises:
            RemoteProtocolError: the node's hello contradicts itself. Nothing was changed.
        """
        if len(hello.incarnation) != ID_BYTES:
            raise RemoteProtocolError("the node's incarnation is malformed")
        holdings = {holding.exchange: holding for holding in hello.holdings}
        if len(holdings) != len(hello.holdings) or any(len(name) != ID_BYTES for name in holdings):
            raise RemoteProtocolError("the node's holdings are malformed")
        same = hello.incarnation == self._incarnation
        self._incarnation = hello.incarnation
        self.suspend()  # where this connection came before the last one was known to be lost
        self.outbox.say(pb.ToNode(welcome=welcome), [document])
        for name in holdings.keys() - self._exchanges.keys():
            self.outbox.say(pb.ToNode(done=pb.Done(exchange=name)))
        for name, exchange in list(self._exchanges.items()):
            if same:
                self._resume(exchange, holdings.get(name))
            elif exchange.outgoing.begun:
                self._end(exchange, TransportError("the node restarted; its answer was lost"))
            else:
                self.outbox.send(name, exchange.outgoing)

    def receive(self, frame: pb.FromNode, data: memoryview) -> None:
        """Takes a frame that is about an exchange.

        Raises:
            RemoteProtocolError: the protocol does not allow it. The exchange that it is about has
                ended, if there is one; the connection is to be ended too.
        """
        exchange = self._exchanges.get(_subject(frame))
        if exchange is None:
            return
        try:
            self._take(exchange, frame, data)
        except RemoteProtocolError as error:
            self._drop(exchange, TransportError(f"the node broke the protocol: {error}"))
            raise

    def _take(self, exchange: _Exchange, frame: pb.FromNode, data: memoryview) -> None:
        match frame.WhichOneof("frame"), exchange.stage:
            case "offer", Stage.ASKED:
                self._offered(exchange, frame.offer, data)
            case "chunk", Stage.RECEIVING:
                self._chunk(exchange, frame.chunk, data)
            case "failed", Stage.SENDING | Stage.ASKED:
                self._drop(exchange, TransportError(readable(frame.failed.reason)))
            case _:
                raise RemoteProtocolError("a frame came out of turn")

    def _offered(self, exchange: _Exchange, offer: pb.Offer, data: memoryview) -> None:
        if not offer.inlined:
            self._make_room(exchange, offer.total)
        elif len(data) != offer.total or offer.total > INLINE:
            raise RemoteProtocolError("an answer is not as long as it is said to be")
        else:
            self._drop(exchange, bytes(data))

    def _make_room(self, exchange: _Exchange, total: int) -> None:
        if total > self._max_bytes:
            self._drop(exchange, TransportError("the node's answer is longer than allowed"))
            return
        exchange.incoming = exchange.incoming or Incoming(total)
        if exchange.share is None:
            exchange.share = self._budget.ask(total, partial(self._granted, exchange))
        else:
            self._granted(exchange)

    def _granted(self, exchange: _Exchange) -> None:
        if exchange.incoming is not None:
            grant = pb.SendFrom(exchange=exchange.name, offset=len(exchange.incoming.data))
            self.outbox.say(pb.ToNode(send_from=grant))

    def _chunk(self, exchange: _Exchange, chunk: pb.Chunk, data: memoryview) -> None:
        if exchange.incoming is None:
            raise RemoteProtocolError("a frame came out of turn")
        exchange.incoming.take(chunk.offset, chunk.total, data)
        if exchange.incoming.complete:
            self._drop(exchange, exchange.incoming.data)

    def _resume(self, exchange: _Exchange, holding: pb.Holding | None) -> None:
        try:
            self._go_on(exchange, holding)
        except RemoteProtocolError as error:
            self._drop(exchange, TransportError(f"the node broke the protocol: {error}"))

    def _go_on(self, exchange: _Exchange, holding: pb.Holding | None) -> None:
        state = holding.WhichOneof("state") if holding is not None else None
        answering = exchange.incoming is not None
        match state:
            case None | "receiving" if not answering:
                exchange.outgoing.resume(holding.receiving if holding is not None else 0)
                self.outbox.send(exchange.name, exchange.outgoing)
            case "working" if exchange.stage is Stage.ASKED:
                pass
            case "offered" if exchange.stage not in (Stage.QUEUED, Stage.SENDING):
                self._offered_again(exchange, holding.offered if holding is not None else 0)
            case "failed" if exchange.outgoing.begun and not answering and holding is not None:
                self._drop(exchange, TransportError(readable(holding.failed)))
            case _:
                raise RemoteProtocolError("the node says it holds what it cannot hold")

    def _offered_again(self, exchange: _Exchange, total: int) -> None:
        if exchange.incoming is not None and exchange.incoming.total != total:
            raise RemoteProtocolError("the node's answer has changed its length")
        self._make_room(exchange, total)

    def _drop(self, exchange: _Exchange, answer: Answer) -> None:
        """Ends an exchange and lets the node forget it."""
        self.outbox.say(pb.ToNode(done=pb.Done(exchange=exchange.name)))
        self._end(exchange, answer)

    def _end(self, exchange: _Exchange, answer: Answer) -> None:
        share = self._remove(exchange)
        if share is not None and isinstance(answer, TransportError):
            self._budget.release(share)
            share = None
        exchange.ended(answer, share)

    def _forget(self, exchange: _Exchange) -> None:
        share = self._remove(exchange)
        if share is not None:
            self._budget.release(share)
        if exchange.outgoing.begun:
            self.outbox.say(pb.ToNode(done=pb.Done(exchange=exchange.name)))

    def _remove(self, exchange: _Exchange) -> Share | None:
        del self._exchanges[exchange.name]
        self.outbox.drop(exchange.name)
        exchange.incoming = None
        share, exchange.share = exchange.share, None
        return share


def _subject(frame: pb.FromNode) -> bytes:
    """The exchange that a frame is about."""
    match frame.WhichOneof("frame"):
        case "offer":
            return frame.offer.exchange
        case "chunk":
            return frame.chunk.exchange
        case "failed":
            return frame.failed.exchange
        case _:
            raise RemoteProtocolError("a frame came that does not belong here")
