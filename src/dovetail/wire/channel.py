"""The one interface between a coordinator and its nodes.

Whatever carries the bytes (a function call, a pipe, gRPC) implements :class:`Channel`; who speaks
over it cannot tell which, and simulation differs from production in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from dovetail.errors import TransportError
from dovetail.wire.payload import Payload

Received = bytes | bytearray
"""What came over a channel; not to be written to."""
Answer = Received | TransportError
"""What a node answered, or why no answer came."""


class Channel(Protocol):
    """Carries one request to each of some nodes, and their answers back."""

    def nodes(self) -> Sequence[int]:
        """The nodes that can be asked now."""
        ...

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        """Asks the nodes, and yields every node's answer once, as it comes.

        An answer that was yielded is not kept; the next may come only once it is asked for. Who
        closes the iterator wants no more answers.

        Args:
            requests: what to ask, by node.
            deadline: seconds from this call on. A node that has not answered by then
                yields a ``TransportError``; so does, at once, one that is unknown or gone.
        """
        ...
