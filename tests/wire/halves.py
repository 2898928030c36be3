"""Both halves of a conversation without sockets, and what the tests of either need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dovetail.wire import envelope
from dovetail.wire.answering import Answering
from dovetail.wire.asking import Asking
from dovetail.wire.budget import Budget, Share
from dovetail.wire.channel import Answer, Received
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.payload import Payload
from dovetail.wire.transfer import CHUNK, GRAIN

LIMIT = 6 * GRAIN
"""The budget for answers."""
LONGEST = 10 * GRAIN
"""Longest answer that is taken."""


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Asker:
    """The coordinator's half, and what came of its exchanges."""

    def __init__(self, budget: Budget | None = None, longest: int = LONGEST) -> None:
        self.budget = budget or Budget(LIMIT)
        self.asking = Asking(self.budget, longest)
        self.outcomes: dict[int, Answer] = {}
        self.shares: dict[int, Share] = {}

    def begin(self, number: int, request: bytes) -> None:
        def ended(answer: Answer, share: Share | None) -> None:
            assert number not in self.outcomes, "an exchange ends once"
            self.outcomes[number] = answer
            if share is not None:
                self.shares[number] = share

        self.asking.begin(name(number), Payload(request), ended)

    def hello(self, hello: pb.Hello) -> None:
        self.asking.resume(hello, pb.Welcome(), b"")

    def send(self, size: int = GRAIN) -> tuple[pb.ToNode, bytes] | None:
        raw = self.asking.outbox.next(size)
        if raw is None:
            return None
        frame, data = envelope.read(raw, pb.ToNode)
        return frame, bytes(data)

    def said(self) -> list[pb.ToNode]:
        """Everything that waits to be sent."""
        frames = []
        while sent := self.send(CHUNK):
            frames.append(sent[0])
        return frames

    def hear(self, frame: pb.FromNode, data: bytes = b"") -> None:
        self.asking.receive(frame, memoryview(data))


class Answerer:
    """The node's half, and the requests that it has to answer."""

    def __init__(self, incarnation: int = 1) -> None:
        self.to_do: deque[tuple[bytes, Received]] = deque()
        self.answering = Answering(name(incarnation), lambda *work: self.to_do.append(work))

    def hello(self, clock: float = 0.0) -> pb.Hello:
        self.answering.hello(clock)
        sent = self.send()
        assert sent is not None
        return sent[0].hello

    def send(self, size: int = GRAIN) -> tuple[pb.FromNode, bytes] | None:
        raw = self.answering.outbox.next(size)
        if raw is None:
            return None
        frame, data = envelope.read(raw, pb.FromNode)
        return frame, bytes(data)

    def said(self) -> list[pb.FromNode]:
        """Everything that waits to be sent."""
        frames = []
        while sent := self.send(CHUNK):
            frames.append(sent[0])
        return frames

    def hear(self, frame: pb.ToNode, data: bytes = b"") -> None:
        self.answering.receive(frame, memoryview(data))

    def work(self, answer: Callable[[Received], bytes]) -> None:
        exchange, request = self.to_do.popleft()
        self.answering.answer(exchange, answer(request))
