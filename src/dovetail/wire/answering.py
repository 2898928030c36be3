"""The node's half of what it and the coordinator say to each other, without I/O.

An exchange is a request from the coordinator and the node's answer. It moves like this; whatever
else the coordinator says about an exchange breaks the protocol, and costs the connection::

    (new)      --first chunk-->             RECEIVING
    RECEIVING  --last chunk-->              WORKING      the request is handed on
    WORKING    --the answer is there-->     OFFERED
    WORKING    --there will be none-->      FAILED
    OFFERED    --send_from-->               SENDING
    any        --done-->                    forgotten

An answer is kept until the coordinator is done with it, over any number of connections: after each
the node says in its hello what it holds, and a transfer goes on where it stopped. Frames about
exchanges that are not known are no fault: both sides may have let go at the same moment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto

from dovetail.errors import RemoteProtocolError
from dovetail.wire.channel import Received
from dovetail.wire.envelope import ID_BYTES
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.outbox import Outbox
from dovetail.wire.payload import Payload
from dovetail.wire.transfer import INLINE, Incoming, Outgoing

VERSION = 1
"""Of the protocol in ``protos/dovetail/v1/federation.proto``."""
MAX_EXCHANGES = 64
"""Most exchanges that a node holds at once."""
MAX_REQUEST_BYTES = 1 << 30
"""Most bytes of requests that a node holds at once."""

_REMEMBERED = 4096


class Stage(Enum):
    """Where an exchange is; see the head of this file."""

    RECEIVING = auto()
    WORKING = auto()
    OFFERED = auto()
    SENDING = auto()
    FAILED = auto()


class _Exchange:
    def __init__(self, total: int) -> None:
        self.stage = Stage.RECEIVING
        self.request_bytes = total
        self.incoming = Incoming(total)
        self.answer = Outgoing(Payload())
        self.reason = ""


class Answering:
    """All exchanges that a node holds.

    Attributes:
        outbox: what to send over the present connection.
    """

    def __init__(self, incarnation: bytes, work: Callable[[bytes, Received], None]) -> None:
        """Nothing held yet.

        Args:
            incarnation: 16 bytes that no other start of this node has.
            work: told of every request that has come, with its exchange; is to see to it that
                :meth:`answer` or :meth:`refuse` is called later.
        """
        self.outbox = Outbox(pb.FromNode)
        self._incarnation = incarnation
        self._work = work
        self._exchanges: dict[bytes, _Exchange] = {}
        self._past: OrderedDict[bytes, None] = OrderedDict()

    def hello(self, clock: float) -> None:
        """Begins a connection: says who is there and what it holds."""
        self.outbox.clear()
        hello = pb.Hello(version=VERSION, incarnation=self._incarnation, clock=clock)
        for name, exchange in self._exchanges.items():
            if exchange.stage is Stage.SENDING:
                exchange.stage = Stage.OFFERED
            hello.holdings.append(_holding(name, exchange))
        self.outbox.say(pb.FromNode(hello=hello))

    def answer(self, name: bytes, answer: bytes) -> None:
        """Offers the answer to a request, unless the coordinator wants it no more."""
        exchange = self._exchanges.get(name)
        if exchange is None:
            return
        exchange.stage = Stage.OFFERED
        exchange.request_bytes = 0
        exchange.answer = Outgoing(Payload(answer))
        inlined = len(answer) <= INLINE
        offer = pb.Offer(exchange=name, total=len(answer), inlined=inlined)
        self.outbox.say(pb.FromNode(offer=offer), [answer] if inlined else ())

    def refuse(self, name: bytes, reason: str) -> None:
        """Says that there will be no answer; ``reason`` is safe to show another company."""
        exchange = self._exchanges.get(name)
        if exchange is not None:
            exchange.stage = Stage.FAILED
            exchange.request_bytes = 0
            exchange.reason = reason
            self.outbox.say(pb.FromNode(failed=pb.Failed(exchange=name, reason=reason)))

    def receive(self, frame: pb.ToNode, data: memoryview) -> None:
        """Takes a frame that is about an exchange.

        Raises:
            RemoteProtocolError: the protocol does not allow it; the connection is to be ended.
                Nothing was changed, and the next connection goes on from here.
        """
        match frame.WhichOneof("frame"):
            case "chunk":
                self._chunk(frame.chunk, data)
            case "send_from":
                self._send_from(frame.send_from)
            case "done":
                self._done(frame.done.exchange)
            case _:
                raise RemoteProtocolError("a frame came that does not belong here")

    def _chunk(self, chunk: pb.Chunk, data: memoryview) -> None:
        exchange = self._exchanges.get(chunk.exchange)
        if exchange is None:
            if chunk.offset:
                return  # of a request that was turned away when it began
            exchange = self._new(chunk)
            if exchange is None:
                return
        elif exchange.stage is not Stage.RECEIVING:
            raise RemoteProtocolError("part of a request came after the whole")
        exchange.incoming.take(chunk.offset, chunk.total, data)
        self._exchanges[chunk.exchange] = exchange
        if exchange.incoming.complete:
            exchange.stage = Stage.WORKING
            request, exchange.incoming = exchange.incoming.data, Incoming(0)
            self._work(chunk.exchange, request)

    def _new(self, chunk: pb.Chunk) -> _Exchange | None:
        """A place for a request, unless there is a reason to turn it away."""
        if len(chunk.exchange) != ID_BYTES:
            raise RemoteProtocolError("an exchange's id is malformed")
        held = sum(exchange.request_bytes for exchange in self._exchanges.values())
        if chunk.exchange in self._past:
            reason = "this exchange was over before"
        elif len(self._exchanges) >= MAX_EXCHANGES:
            reason = "the node holds too many exchanges"
        elif held + chunk.total > MAX_REQUEST_BYTES:
            reason = "the requests to the node are too long"
        else:
            return _Exchange(chunk.total)
        self.outbox.say(pb.FromNode(failed=pb.Failed(exchange=chunk.exchange, reason=reason)))
        return None

    def _send_from(self, grant: pb.SendFrom) -> None:
        exchange = self._exchanges.get(grant.exchange)
        if exchange is None:
            return
        if exchange.stage is not Stage.OFFERED:
            raise RemoteProtocolError("an answer was asked for that is not on offer")
        exchange.answer.resume(grant.offset)
        exchange.stage = Stage.SENDING
        self.outbox.send(grant.exchange, exchange.answer)

    def _done(self, name: bytes) -> None:
        self.outbox.drop(name)
        if self._exchanges.pop(name, None) is not None:
            self._past[name] = None
            if len(self._past) > _REMEMBERED:
                self._past.popitem(last=False)


def _holding(name: bytes, exchange: _Exchange) -> pb.Holding:
    match exchange.stage:
        case Stage.RECEIVING:
            return pb.Holding(exchange=name, receiving=len(exchange.incoming.data))
        case Stage.WORKING:
            return pb.Holding(exchange=name, working=pb.Working())
        case Stage.FAILED:
            return pb.Holding(exchange=name, failed=exchange.reason)
        case _:
            return pb.Holding(exchange=name, offered=exchange.answer.total)
