"""One message on its way over a connection that may break: its chunks, going out or coming in.

No I/O: an :class:`Outgoing` says which bytes are next, an :class:`Incoming` checks what came. Each
chunk goes on exactly where the last one ended: a message is whole and in order, or refused.
"""

from __future__ import annotations

from dovetail.errors import RemoteProtocolError
from dovetail.wire.payload import Payload

CHUNK = 1 << 20
"""Longest chunk, in bytes."""
GRAIN = 64 << 10
"""All chunks of a message but the last are a multiple of this, in bytes."""
INLINE = 64 << 10
"""Longest answer that may come inside its offer, in bytes."""


class Outgoing:
    """A message that is being sent.

    Attributes:
        payload: the message.
        begun: whether any of it was ever handed out.
        finished: whether all of it was.
    """

    def __init__(self, payload: Payload) -> None:
        self.payload = payload
        self.begun = False
        self.finished = False
        self._offset = 0
        self._reached = 0

    @property
    def total(self) -> int:
        """Length of the message, in bytes."""
        return len(self.payload)

    def resume(self, offset: int) -> None:
        """Goes on from where the other side says it is.

        Raises:
            RemoteProtocolError: it cannot be there.
        """
        if offset > self._reached or offset % GRAIN or (offset >= self.total and offset):
            raise RemoteProtocolError("a transfer was to go on where it never was")
        self._offset = offset
        self.finished = False

    def next(self, size: int) -> tuple[int, list[memoryview]]:
        """The next chunk's offset and its bytes, ``size`` of them or what is left.

        ``size`` is a multiple of ``GRAIN``, at most ``CHUNK``. Not to be called once finished.
        """
        offset = self._offset
        parts = list(self.payload.slices(offset, size))
        self._offset = min(offset + size, self.total)
        self._reached = max(self._reached, self._offset)
        self.begun = True
        self.finished = self._offset == self.total
        return offset, parts


class Incoming:
    """A message that is being received; memory is taken as bytes come, not as they are announced.

    Attributes:
        total: length of the message, in bytes.
        data: what has come so far.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.data = bytearray()
        self._empty = total == 0

    @property
    def complete(self) -> bool:
        """Whether all of it has come."""
        return len(self.data) == self.total and not self._empty

    def take(self, offset: int, total: int, data: memoryview) -> None:
        """Adds a chunk.

        Raises:
            RemoteProtocolError: it does not go on where the last one ended, is of a length that
                no chunk may have, or belongs to a message of another length. Nothing was added.
        """
        if total != self.total:
            raise RemoteProtocolError("the chunks of a message do not agree on its length")
        if offset != len(self.data) or self.complete:
            raise RemoteProtocolError("a chunk does not go on where the last one ended")
        left = total - offset
        if len(data) > min(CHUNK, left) or (len(data) < left and (not data or len(data) % GRAIN)):
            raise RemoteProtocolError("a chunk is of a length that is not allowed")
        self.data += data
        self._empty = False
