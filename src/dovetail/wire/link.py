"""Carries frames over one connection, both ways, until it ends; says nothing about what they mean.

Both sides run this. Any frame is a sign of life; a side that has nothing to say sends a beat. The
other side is gone when nothing came for ``silence`` seconds, and also when it took nothing for as
long: a peer that sends beats and reads no more would else hold its exchanges for ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from dovetail.errors import DovetailError, RemoteProtocolError, TransportError
from dovetail.wire.outbox import Outbox
from dovetail.wire.transfer import CHUNK, GRAIN

_QUICK, _SLOW = 0.1, 1.0
"""Seconds in which a frame is taken; a slow one halves the length of the chunks that follow."""
_BUFFERED = 8 << 20
"""Bytes that buffers on the way may take at once: that many taken quickly prove a quick link."""
LAST_WORD = 1.0
"""Seconds that a connection which was ended waits for its last frame to be taken."""


@dataclass(frozen=True)
class Pace:
    """When a silent side is gone.

    Attributes:
        beat: seconds between two signs of life.
        silence: seconds without any, after which the other side is gone.
    """

    beat: float = 4.0
    silence: float = 12.0


PACE = Pace()
"""The pace unless a coordinator has another."""


class Stream(Protocol):
    """The two directions of one connection."""

    async def read(self) -> bytes | None:
        """The next frame; ``None`` once there will be no more."""
        ...

    async def write(self, frame: bytes) -> None:
        """Sends a frame; returns when there is room for the next."""
        ...


class Link:
    """One connection.

    Attributes:
        heard: when the last frame came, on ``time.monotonic``.
    """

    def __init__(self, stream: Stream, outbox: Outbox, beat: bytes, pace: Pace) -> None:
        """Nothing is carried yet.

        Args:
            stream: what carries the frames.
            outbox: what to send.
            beat: a frame that says only that this side lives.
            pace: when a silent side is gone.
        """
        self.heard = time.monotonic()
        self._pace = pace
        self._repaced = asyncio.Event()
        self._stream = stream
        self._outbox = outbox
        self._beat = beat
        self._more = asyncio.Event()
        self._beat_due = False
        self._hearing = False
        self._writing_since: float | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        outbox.on_more = self._more.set

    async def carry(self, hear: Callable[[bytes], Awaitable[None]]) -> str:
        """Carries frames until one side ends the connection.

        Args:
            hear: told of each frame; the next is not read before it returns.

        Returns:
            The reason given to :meth:`end`; empty where the other side ended it.

        Raises:
            TransportError: the other side fell silent.
        """
        sides = (self._read(hear), self._write(), self._watch())
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(side) for side in sides]
        reading, writing, watching = tasks
        try:
            await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
            error = next((e for e in map(_failure, (watching, reading, writing)) if e), None)
            self.end(str(error) if isinstance(error, DovetailError) else "")
            there = not reading.done() or isinstance(error, RemoteProtocolError)
            if there and not watching.done() and self._writing_since is not None:
                await asyncio.wait([writing], timeout=LAST_WORD)  # a last frame may follow
            if error is not None:
                raise error
            return self.reason
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def reason(self) -> str:
        """Why this side ended the connection; empty where it did not."""
        return self._ended.result() if self._ended.done() else ""

    def keep(self, pace: Pace) -> None:
        """Keeps another pace from now on."""
        self._pace = pace
        self._repaced.set()

    def end(self, reason: str) -> None:
        """Ends the connection from this side; the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def say_last(self, frame: bytes) -> None:
        """Sends a last frame once nothing is carried any more, if the other side takes it."""
        with suppress(Exception):
            async with asyncio.timeout(LAST_WORD):
                await self._stream.write(frame)

    async def _read(self, hear: Callable[[bytes], Awaitable[None]]) -> None:
        while (frame := await self._stream.read()) is not None and not self._ended.done():
            self._hearing = True
            await hear(frame)
            self._hearing = False
            self.heard = time.monotonic()

    async def _write(self) -> None:
        stride = Stride()
        while not self._ended.done():  # a next connection may be using the outbox by then
            self._more.clear()
            frame = self._outbox.next(stride.size) or self._due_beat()
            if frame is None:
                await self._more.wait()
                continue
            began = self._writing_since = time.monotonic()
            await self._stream.write(frame)
            self._writing_since = None
            stride.took(len(frame), time.monotonic() - began)

    def _due_beat(self) -> bytes | None:
        due, self._beat_due = self._beat_due, False
        return self._beat if due else None

    async def _watch(self) -> None:
        beaten = time.monotonic()
        while True:
            wake_at = min(beaten + self._pace.beat, self._gone_at())
            if await self._repaced_before(wake_at):
                continue
            now = time.monotonic()
            if now >= beaten + self._pace.beat:
                beaten, self._beat_due = now, True
                self._more.set()
            if now - wake_at > self._pace.beat:  # this side stood still: what came is not read yet
                self.heard = now
            if now >= self._gone_at():
                raise TransportError("the other side has fallen silent")

    async def _repaced_before(self, moment: float) -> bool:
        """Waits until a moment, or until the pace changes before it."""
        self._repaced.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(moment - time.monotonic()):
                return await self._repaced.wait()
        return False

    def _gone_at(self) -> float:
        """When, with no further sign of life, the other side is gone."""
        heard = time.monotonic() if self._hearing else self.heard
        return min(heard, self._writing_since or math.inf) + self._pace.silence


def _failure(task: asyncio.Future[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


class Stride:
    """How long chunks are: short on a slow link, so that signs of life come through in time.

    Attributes:
        size: of the next chunk, in bytes: a multiple of ``GRAIN``, at most ``CHUNK``.
    """

    def __init__(self) -> None:
        self.size = 4 * GRAIN
        self._quick = 0

    def took(self, sent: int, seconds: float) -> None:
        """Learns how long it took until so many bytes were taken."""
        if seconds > _SLOW:
            self.size, self._quick = max(self.size // 2, GRAIN), 0
        elif seconds < _QUICK:
            self._quick += sent
        if self._quick > _BUFFERED:
            self.size, self._quick = min(2 * self.size, CHUNK), 0
