"""What goes out next over one connection: short frames first, then the transfers by turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from dovetail.wire import envelope
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.payload import Part
from dovetail.wire.transfer import Outgoing


class Outbox:
    """Frames and transfers that wait to be sent. Nothing is put together before its turn.

    Attributes:
        on_more: called whenever there is more to send.
    """

    def __init__(self, kind: type[pb.ToNode] | type[pb.FromNode]) -> None:
        self.on_more: Callable[[], None] = lambda: None
        self._kind = kind
        self._frames: deque[tuple[pb.ToNode | pb.FromNode, Iterable[Part]]] = deque()
        self._transfers: deque[tuple[bytes, Outgoing]] = deque()

    @property
    def quiet(self) -> bool:
        """Whether no short frame waits."""
        return not self._frames

    def say(self, frame: pb.ToNode | pb.FromNode, data: Iterable[Part] = ()) -> None:
        """Sends a short frame before anything that is long."""
        self._frames.append((frame, data))
        self.on_more()

    def send(self, exchange: bytes, outgoing: Outgoing) -> None:
        """Sends a message, from where it is, in turn with the others."""
        self._transfers.append((exchange, outgoing))
        self.on_more()

    def drop(self, exchange: bytes) -> None:
        """Sends no more of an exchange's message."""
        self._transfers = deque(item for item in self._transfers if item[0] != exchange)

    def clear(self) -> None:
        """Forgets everything: the connection is another one."""
        self._frames.clear()
        self._transfers.clear()

    def next(self, size: int) -> bytes | None:
        """What to send now; ``None`` where nothing waits.

        Args:
            size: of a chunk, if it is one: a multiple of ``GRAIN``, at most ``CHUNK``.
        """
        if self._frames:
            return envelope.write(*self._frames.popleft())
        if not self._transfers:
            return None
        exchange, outgoing = self._transfers.popleft()
        offset, parts = outgoing.next(size)
        if not outgoing.finished:
            self._transfers.append((exchange, outgoing))
        chunk = pb.Chunk(exchange=exchange, offset=offset, total=outgoing.total)
        return envelope.write(self._kind(chunk=chunk), parts)
