"""The Control service: what analysts and operators ask, handed to a handler in threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]

from dovetail.errors import DovetailError, error_code, error_text
from dovetail.wire.admission import Admission, Admitted, Refused, guarded
from dovetail.wire.document import ERROR_KEY, pieces, read_document, write_document
from dovetail.wire.peers import ControlHandler, Limits, Peer

SERVICE = "dovetail.v1.Control"
METHODS = (
    "Preview", "Submit", "Approve", "Cancel", "List", "Show", "Permits", "Nodes", "Agreement",
)  # fmt: skip
"""What can be asked and is answered by one document."""

Source = Callable[[Admitted, threading.Event], Iterator[bytes]]
"""Makes the messages of a stream; is run in a thread, and ends soon after the event."""

_THREADS = 8
_LOOK_UP = 0.5
"""Seconds after which a stream that its reader does not take looks whether it was cut."""
_logger = logging.getLogger(__name__)


class ControlService:
    """Calls of the Control service, on the wire's own thread; the handler runs in others."""

    def __init__(self, admission: Admission, handler: ControlHandler, limits: Limits) -> None:
        self._admission = admission
        self._handler = handler
        self._limits = limits
        self._calls = 0
        self._streams = 0
        self._call_threads = ThreadPoolExecutor(_THREADS, "dovetail-control")
        self._stream_threads = ThreadPoolExecutor(limits.streams, "dovetail-watch")

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The service's methods, as gRPC takes them; messages are bytes."""
        unary = grpc.unary_unary_rpc_method_handler
        stream = grpc.unary_stream_rpc_method_handler
        calls = {name: unary(guarded(partial(self._call, name))) for name in METHODS}
        streams = {"Watch": self._watch, "Fetch": self._fetch}
        return calls | {name: stream(guarded(call)) for name, call in streams.items()}

    def close(self) -> None:
        """Takes no further calls; those in progress are left to end."""
        self._call_threads.shutdown(wait=False, cancel_futures=True)
        self._stream_threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, method: str, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        full = self._calls >= self._limits.calls and "too many calls are in progress"
        admitted = await self._admitted(context, full)
        self._calls += 1
        loop = asyncio.get_running_loop()
        answering = loop.run_in_executor(self._call_threads, self._answer, method, admitted, raw)
        answering.add_done_callback(self._call_ended)
        try:
            return await asyncio.shield(answering)
        except Exception as error:  # noqa: BLE001 - is logged, and travels
            await _fail(context, admitted.peer, method, error)

    def _answer(self, method: str, admitted: Admitted, raw: bytes) -> bytes:
        record = read_document(raw, self._limits.document_bytes)
        answer = self._handler.call(method, admitted.peer, record)
        return write_document(answer, self._limits.document_bytes)

    def _call_ended(self, answering: asyncio.Future[bytes]) -> None:
        self._calls -= 1
        _take_note(answering)

    async def _watch(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        def events(admitted: Admitted, cancelled: threading.Event) -> Iterator[bytes]:
            record = read_document(raw, self._limits.document_bytes)
            for event in self._handler.watch(admitted.peer, record, cancelled):
                yield write_document(event, self._limits.document_bytes)

        await self._stream("Watch", context, events)

    async def _fetch(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        def file(admitted: Admitted, _: threading.Event) -> Iterator[bytes]:
            record = read_document(raw, self._limits.document_bytes)
            described, data = self._handler.fetch(admitted.peer, record)
            yield from pieces(described, data, self._limits.document_bytes)

        await self._stream("Fetch", context, file)

    async def _stream(self, method: str, context: grpc.aio.ServicerContext, source: Source) -> None:
        full = self._streams >= self._limits.streams and "too many watchers and fetchers"
        admitted = await self._admitted(context, full)
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()
        cut: asyncio.Future[str] = loop.create_future()
        self._streams += 1
        pumping = loop.run_in_executor(
            self._stream_threads, _pump, source, admitted, cancelled, context, loop
        )
        pumping.add_done_callback(self._stream_ended)
        try:
            with self._admission.lasting(admitted, partial(_settle, cut)):
                first: list[asyncio.Future[Any]] = [pumping, cut]
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.set()
        if cut.done():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, cut.result())
        error = pumping.exception()
        if error is not None:
            await _fail(context, admitted.peer, method, error)

    def _stream_ended(self, pumping: asyncio.Future[None]) -> None:
        self._streams -= 1
        _take_note(pumping)

    async def _admitted(self, context: grpc.aio.ServicerContext, full: str | bool) -> Admitted:
        try:
            admitted = self._admission.admit(context, "analyst", "operator")
            if full:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise Refused(admitted.peer, code, str(full))
        except Refused as refused:
            await self._admission.abort(context, refused)
        return admitted


def _pump(
    source: Source,
    admitted: Admitted,
    cancelled: threading.Event,
    context: grpc.aio.ServicerContext,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Sends a stream, one message after the other is taken; runs in a thread of its own."""
    for raw in source(admitted, cancelled):
        if cancelled.is_set():
            return
        writing = asyncio.run_coroutine_threadsafe(context.write(raw), loop)
        while not _taken(writing):
            if cancelled.is_set():
                writing.cancel()
                return


def _taken(writing: Future[None]) -> bool:
    try:
        writing.result(_LOOK_UP)
    except TimeoutError:
        return False
    return True


async def _fail(
    context: grpc.aio.ServicerContext, peer: Peer, method: str, error: BaseException
) -> NoReturn:
    """Ends a call with an error: its class and text, where it was raised on purpose."""
    foreseen = isinstance(error, DovetailError)
    if foreseen:
        _logger.warning("refused %s to %s %r: %s", method, peer.role, peer.name, error)
    else:
        _logger.error("a control call failed", exc_info=error)
    code = grpc.StatusCode.FAILED_PRECONDITION if foreseen else grpc.StatusCode.INTERNAL
    await context.abort(code, error_text(error), ((ERROR_KEY, str(error_code(error))),))
    raise AssertionError("abort raises")


def _settle(cut: asyncio.Future[str], reason: str) -> None:
    if not cut.done():
        cut.set_result(reason)


def _take_note(future: asyncio.Future[bytes] | asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # was told; or whoever asked has left, and there is nobody to tell
