"""The gRPC server of a coordinator, as a channel that many threads may use at once.

gRPC runs in a thread of its own; what the threads of jobs ask is handed over to it, and answers
come back through a queue per exchange.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from dovetail.errors import TransportError
from dovetail.wire import control_service, federation
from dovetail.wire.admission import Admission, guarded
from dovetail.wire.budget import Share
from dovetail.wire.channel import Answer
from dovetail.wire.control_service import ControlService
from dovetail.wire.federation import Federation
from dovetail.wire.link import PACE, Pace
from dovetail.wire.memory import late
from dovetail.wire.payload import Payload
from dovetail.wire.peers import (
    LIMITS,
    ControlHandler,
    Directory,
    Identity,
    Limits,
    NodeLink,
    OnLink,
    Peer,
)
from dovetail.wire.tls import server_credentials, server_options

_SPARE_CALLS = 100
"""Calls that may be in progress beside those with limits of their own: health, reflection."""
_LOOK_UP = 1.0
"""Seconds after which a thread that waits for answers looks whether any can still come."""
_STOPPING = "the coordinator is stopping"
_logger = logging.getLogger(__name__)


class _Outcome:
    """What came of one request; its answer can be taken once."""

    def __init__(self, node: int, answer: Answer, share: Share | None) -> None:
        self.node = node
        self.share = share
        self._answer: Answer | None = answer

    def take(self) -> Answer:
        answer, self._answer = self._answer, None
        assert answer is not None  # noqa: S101 - taken once
        return answer


class _Collection:
    """One call of ``exchange``: what is still open, and what came."""

    def __init__(self) -> None:
        self.outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        self.abandon: list[Callable[[], None]] = []


class FederationServer:
    """The coordinator's end of the wire; a :class:`~dovetail.wire.channel.Channel`."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        directory: Directory,
        control: ControlHandler,
        welcome: Callable[[Peer], bytes],
        limits: Limits = LIMITS,
        on_link: OnLink = lambda _: None,
        *,
        pace: Pace = PACE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A server that does not listen yet.

        Args:
            address: ``host:port`` to listen at; port 0 takes a free one.
            identity: of the coordinator.
            directory: who is admitted.
            control: answers analysts and operators.
            welcome: the document that a node is welcomed with; quick, on the wire's thread.
            limits: what is taken.
            on_link: told what happens to connections.
            pace: when a silent node is gone.
            clock: seconds since 1970.
        """
        self._address = address
        self._identity = identity
        self._directory = directory
        self._limits = limits
        self._admission = Admission(directory, on_link, clock)
        self._federation = Federation(self._admission, welcome, limits, pace, clock)
        self._control = ControlService(self._admission, control, limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._grace = 0.0
        self._thread = threading.Thread(target=self._run, name="dovetail-wire", daemon=True)
        self._port: Future[int] = Future()

    def start(self) -> int:
        """Listens; returns the port.

        Raises:
            TransportError: the address cannot be listened at.
        """
        self._thread.start()
        return self._port.result()

    def stop(self, grace: float = 1.0) -> None:
        """Ends all exchanges and connections, and listens no more.

        Args:
            grace: seconds that control calls in progress are given.
        """
        self._grace = grace
        if self._stopping is not None:
            self._on_wire(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join()

    def nodes(self) -> Sequence[int]:
        """The nodes that are connected, in ascending order."""
        return self._federation.presence.nodes()

    def links(self) -> list[NodeLink]:
        """The connected nodes, with what is known of their connections."""
        return self._federation.presence.links()

    @property
    def changes(self) -> int:
        """How often a node came, went, or said that something changed there."""
        return self._federation.presence.changes

    def wait_for_change(self, timeout: float, seen: int | None = None) -> int:
        """Waits until a node comes, goes, or says that something changed there.

        Args:
            timeout: most seconds to wait.
            seen: ``changes`` as it was when the caller last looked, so that nothing is missed that
                happened since; ``None`` waits for what happens from now on.

        Returns:
            ``changes`` as it is then.
        """
        return self._federation.presence.wait_for_change(timeout, seen)

    def announce(self) -> None:
        """Sends every connected node its welcome again: the document has changed."""
        self._on_wire(self._federation.announce)

    def drop_revoked(self) -> None:
        """Cuts the connections of those whom the directory admits no more, or as others."""
        self._on_wire(self._admission.recheck)

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        """See :class:`~dovetail.wire.channel.Channel`; any thread may call it.

        Sending begins when the first answer is asked for. The room that an answer takes is free
        for others once the next one is asked for, or the iterator is closed.
        """
        return self._collect(dict(requests), time.monotonic() + deadline)

    def _collect(self, requests: dict[int, Payload], end: float) -> Iterator[tuple[int, Answer]]:
        collection = _Collection()
        waiting = set(requests)
        last: _Outcome | None = None
        self._on_wire(self._begin, collection, requests)
        del requests
        try:
            while waiting and (last := self._next(collection, end)):
                waiting.remove(last.node)
                yield last.node, last.take()
                self._on_wire(self._release, last)
        finally:
            self._on_wire(self._finish, collection, last)
        for node in sorted(waiting):
            yield node, late() if self._thread.is_alive() else TransportError(_STOPPING)

    def _next(self, collection: _Collection, end: float) -> _Outcome | None:
        """The next outcome; ``None`` where none came in time, or none can come any more."""
        while self._thread.is_alive() and (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                return collection.outcomes.get(timeout=min(left, _LOOK_UP))
        return None

    def _begin(self, collection: _Collection, requests: dict[int, Payload]) -> None:
        for node, request in requests.items():

            def ended(answer: Answer, share: Share | None, node: int = node) -> None:
                collection.outcomes.put(_Outcome(node, answer, share))

            collection.abandon.append(self._federation.ask(node, request, ended))

    def _release(self, outcome: _Outcome) -> None:
        if outcome.share is not None:
            self._federation.release(outcome.share)

    def _finish(self, collection: _Collection, last: _Outcome | None) -> None:
        """Nobody waits for the rest: abandons what is open, and frees what is taken."""
        for abandon in collection.abandon:
            abandon()
        if last is not None:
            self._release(last)
        with suppress(queue.Empty):
            while True:
                self._release(collection.outcomes.get_nowait())

    def _on_wire(self, function: Callable[..., None], *args: object) -> None:
        """Runs a function on the wire's thread, soon, if there is one."""
        loop = self._loop
        with suppress(RuntimeError):  # it has just been closed
            if loop is not None:
                loop.call_soon_threadsafe(function, *args)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._port.done():
                _logger.exception("the wire's thread failed")
            else:
                self._port.set_exception(error)

    async def _serve(self) -> None:
        server = grpc.aio.server(
            options=server_options(self._limits.document_bytes),
            maximum_concurrent_rpcs=self._most_calls(),
        )
        checks = self._register(server)
        try:
            credentials = server_credentials(self._identity, self._directory)
            port = server.add_secure_port(self._address, credentials)
        except RuntimeError:
            raise TransportError(f"cannot listen at {self._address}: is it in use?") from None
        await server.start()
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._port.set_result(port)
        tending = asyncio.ensure_future(self._federation.tend())
        await self._stopping.wait()
        self._loop = None
        tending.cancel()
        await checks.enter_graceful_shutdown()
        await self._federation.close(_STOPPING)
        self._control.close()
        await server.stop(self._grace)

    def _register(self, server: grpc.aio.Server) -> health.aio.HealthServicer:
        attend = grpc.stream_stream_rpc_method_handler(guarded(self._federation.attend))
        look = grpc.unary_unary_rpc_method_handler(guarded(self._federation.look))
        generic = grpc.method_handlers_generic_handler
        server.add_generic_rpc_handlers(
            (
                generic(federation.SERVICE, {"Attend": attend, "Look": look}),
                generic(control_service.SERVICE, self._control.handlers()),
            )
        )
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (federation.SERVICE, control_service.SERVICE, health.SERVICE_NAME)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        return checks

    def _most_calls(self) -> int:
        limits = self._limits
        return 2 * limits.nodes + limits.calls + limits.streams + _SPARE_CALLS
