"""A message in the parts it was put together from, joined only where it must be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

Part = bytes | bytearray | memoryview
"""Bytes in one place; a memoryview's items are single bytes."""


class Payload:
    """The bytes of a message, in order, as parts that may be shared with other messages.

    Nothing is copied until the payload is joined or sent. Ten payloads that differ in their heads
    and share the elements of a model hold the model once.
    """

    __slots__ = ("_ends", "parts")

    def __init__(self, *parts: Part) -> None:
        self.parts = tuple(part for part in parts if len(part))
        self._ends = tuple(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def joined(self) -> bytes:
        """All of it in one piece; a copy, unless it is one ``bytes`` already."""
        if len(self.parts) == 1 and isinstance(self.parts[0], bytes):
            return self.parts[0]
        return b"".join(self.parts)

    def slices(self, offset: int, size: int) -> Iterator[memoryview]:
        """Views that together are the ``size`` bytes from ``offset``, fewer at the end."""
        end = min(offset + size, len(self))
        at = bisect_right(self._ends, offset)
        while offset < end:
            start = self._ends[at] - len(self.parts[at])
            view = memoryview(self.parts[at])[offset - start : end - start]
            yield view
            offset += len(view)
            at += 1
