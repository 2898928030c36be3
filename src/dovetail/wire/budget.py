"""Room for what is being received: a fixed number of bytes, shared out first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Share:
    """Part of a budget, asked for and perhaps granted.

    Attributes:
        size: in bytes.
        granted: whether it may be used now.
    """

    def __init__(self, size: int, on_grant: Callable[[], None]) -> None:
        self.size = size
        self.granted = False
        self.on_grant = on_grant


class Budget:
    """Bytes that may be held at once.

    Who asks is told when there is room; nobody overtakes. A share larger than the whole budget is
    granted once nothing else is held.

    Guarantees:
        Shares granted and not released sum to at most ``limit``, or all but one are empty.
    """

    def __init__(self, limit: int) -> None:
        self.used = 0
        """Bytes that are granted now."""
        self._limit = limit
        self._held: set[Share] = set()
        self._waiting: deque[Share] = deque()

    def ask(self, size: int, on_grant: Callable[[], None]) -> Share:
        """Queues for ``size`` bytes; ``on_grant`` is called at once or later, at most once."""
        share = Share(size, on_grant)
        self._waiting.append(share)
        self._grant()
        return share

    def release(self, share: Share) -> None:
        """Gives a share back, or leaves the queue; does nothing where that was done before."""
        if share in self._held:
            self._held.remove(share)
            self.used -= share.size
        elif share in self._waiting:
            self._waiting.remove(share)
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            share = self._waiting.popleft()
            self._held.add(share)
            self.used += share.size
            share.granted = True
            share.on_grant()

    def _fits(self, share: Share) -> bool:
        return not self.used or self.used + share.size <= self._limit
