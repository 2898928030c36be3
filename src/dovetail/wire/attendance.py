"""A node's end of the wire: it dials out, stays connected, and has requests answered."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import grpc  # type: ignore[import-untyped]

from dovetail.errors import RemoteProtocolError, TransportError, readable
from dovetail.wire import envelope
from dovetail.wire.answering import Answering
from dovetail.wire.channel import Received
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.link import LAST_WORD, PACE, Link, Pace
from dovetail.wire.peers import DOCUMENT_BYTES, Access
from dovetail.wire.status import transport_error
from dovetail.wire.tls import channel_credentials, client_options

Handler = Callable[[Received], bytes]
"""What the node does with a request; a ``TransportError`` it raises reaches whoever asked."""
OnWelcome = Callable[[bytes, float], None]
"""Told the coordinator's document and its clock, in seconds since 1970."""

_METHOD = "/dovetail.v1.Federation/Attend"
_BEAT = envelope.write(pb.FromNode(beat=pb.Beat()))
_THREADS = 4
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 30.0
_SETTLED = 10.0
"""Seconds that a connection over which nothing was asked lasts before the next one is tried for
without waiting longer."""
_LEAST_BEAT = 0.05
_BEATS_OF_SILENCE = 3
_UNEXPLAINED = "the coordinator ended the connection"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """How a node's connection is.

    Attributes:
        phase: ``connecting``, ``connected``, ``waiting`` to try again, or ``stopped``.
        reason: why the last connection ended or was not made; empty where none has.
    """

    phase: Literal["connecting", "connected", "waiting", "stopped"]
    reason: str = ""


class Attendance:
    """One node's attendance at a coordinator, over as many connections as it takes."""

    def __init__(
        self,
        access: Access,
        handler: Handler,
        on_welcome: OnWelcome,
        *,
        pace: Pace = PACE,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        incarnation: bytes | None = None,
    ) -> None:
        """A node that does not attend yet.

        Args:
            access: how to reach the coordinator.
            handler: answers requests; runs in up to four threads at once.
            on_welcome: told what the coordinator says first, and whenever that changes. Nothing
                else is taken from the coordinator meanwhile.
            pace: when a silent coordinator is gone, until it says how often it gives signs of life.
            clock: seconds since 1970.
            jitter: numbers from 0 to 1, so that nodes do not all come back at one moment.
            incarnation: 16 bytes that no other start of this node has; drawn where not given.
        """
        self.state = State("connecting")
        self._access = access
        self._handler = handler
        self._on_welcome = on_welcome
        self._pace = pace
        self._clock = clock
        self._jitter = jitter
        self._answering = Answering(incarnation or os.urandom(envelope.ID_BYTES), self._work)
        self._threads = ThreadPoolExecutor(_THREADS, "dovetail-answer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False

    def run(self, stop: threading.Event) -> None:
        """Attends until ``stop`` is set; returns soon after it, whatever the handler does."""
        try:
            asyncio.run(self._attend(stop))
        finally:
            self.state = State("stopped", self.state.reason)
            self._threads.shutdown(wait=False, cancel_futures=True)

    def nudge(self) -> None:
        """Tells the coordinator that something changed here; any thread may call it.

        Where there is no connection nothing is sent: that the node comes back says as much.
        """
        self._on_wire(self._nudge)

    def _nudge(self) -> None:
        if self.state.phase == "connected":
            self._answering.outbox.say(pb.FromNode(nudge=pb.Nudge()))

    async def _attend(self, stop: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        threading.Thread(target=self._wait, args=(stop, stopping), daemon=True).start()
        ended = asyncio.ensure_future(stopping.wait())
        attending = asyncio.ensure_future(self._stay())
        try:
            await asyncio.wait([ended, attending], return_when=asyncio.FIRST_COMPLETED)
            if attending.done():
                attending.result()
        finally:
            self._loop = None
            ended.cancel()
            attending.cancel()
            calls = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait([*calls], timeout=LAST_WORD)  # gRPC ends what it has begun

    def _wait(self, stop: threading.Event, stopping: asyncio.Event) -> None:
        stop.wait()
        self._on_wire(stopping.set)

    async def _stay(self) -> None:
        wait = _FIRST_WAIT
        while True:
            self.state = State("connecting", self.state.reason)
            self._asked, began = False, time.monotonic()
            reason = await self._connect()
            if reason != self.state.reason or self.state.phase == "connected":
                _logger.warning("not connected: %s", reason)
            if self._asked or time.monotonic() - began > _SETTLED:
                wait = _FIRST_WAIT
            self.state = State("waiting", reason)
            await asyncio.sleep(wait * (0.5 + 0.5 * self._jitter()))
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _connect(self) -> str:
        """One connection, from beginning to end; returns why it ended."""
        credentials = channel_credentials(self._access)
        options = client_options(DOCUMENT_BYTES)
        try:
            async with grpc.aio.secure_channel(self._access.address, credentials, options) as line:
                call = line.stream_stream(_METHOD)()
                try:
                    return await self._carry(call) or _UNEXPLAINED
                finally:
                    call.cancel()
        except (TransportError, RemoteProtocolError) as error:
            return str(error)
        except grpc.aio.AioRpcError as error:
            if self.state.phase == "connected" and error.code() is grpc.StatusCode.UNAVAILABLE:
                return "the connection to the coordinator was lost"
            return str(transport_error(error.code(), error.details()))

    async def _carry(self, call: grpc.aio.StreamStreamCall) -> str:
        self._answering.hello(self._clock())
        link = Link(_ClientStream(call), self._answering.outbox, _BEAT, self._pace)
        return await link.carry(partial(self._hear, link))

    async def _hear(self, link: Link, raw: bytes) -> None:
        frame, data = envelope.read(raw, pb.ToNode)
        match frame.WhichOneof("frame"):
            case "welcome":
                await self._welcomed(link, frame.welcome, bytes(data))
            case "farewell":
                link.end(readable(frame.farewell.reason) or _UNEXPLAINED)
            case "beat":
                pass
            case _:
                self._asked = True
                self._answering.receive(frame, data)

    async def _welcomed(self, link: Link, welcome: pb.Welcome, document: bytes) -> None:
        if not (math.isfinite(welcome.clock) and _LEAST_BEAT <= welcome.beat <= self._pace.silence):
            raise RemoteProtocolError("the coordinator's welcome is malformed")
        link.keep(Pace(welcome.beat, _BEATS_OF_SILENCE * welcome.beat))
        self.state = State("connected")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._on_welcome, document, welcome.clock)
        except Exception:
            _logger.exception("the coordinator's welcome could not be used")

    def _work(self, exchange: bytes, request: Received) -> None:
        self._threads.submit(self._answer, exchange, request)

    def _answer(self, exchange: bytes, request: Received) -> None:
        """Answers a request, in one of the threads."""
        try:
            answer = self._handler(request)
        except TransportError as error:
            self._on_wire(self._answering.refuse, exchange, readable(str(error)))
        except Exception:
            _logger.exception("a request could not be answered")
            self._on_wire(self._answering.refuse, exchange, "the node failed to answer")
        else:
            self._on_wire(self._answering.answer, exchange, answer)

    def _on_wire(self, function: Callable[..., None], *args: object) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            _logger.debug("the connection is closed for good")


class _ClientStream:
    """The call of a node, as :class:`~dovetail.wire.link.Stream`."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self._call = call

    async def read(self) -> bytes | None:
        raw = await self._call.read()
        return None if raw is grpc.aio.EOF else raw

    async def write(self, frame: bytes) -> None:
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.Event().wait()  # the call has ended, and reading says why
