"""A channel to nodes that run in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from dovetail.errors import DovetailError, TransportError
from dovetail.wire.channel import Answer
from dovetail.wire.memory import Clock, Handler, Lane, MemoryChannel, side_by_side
from dovetail.wire.payload import Payload

Factory = Callable[[Sequence[int]], Mapping[int, Handler]]
"""Makes the handlers of some nodes; called in the worker, so it must be picklable."""
Group = tuple[Factory, Sequence[int]]
"""The nodes of one worker, and what makes their handlers there."""

_NODE_BYTES = 8
_GOOD, _BAD = b"\x01", b"\x00"
_SECONDS_TO_LEAVE = 5.0


class ProcessChannel:
    """Nodes as functions, spread over worker processes.

    Each worker answers its own nodes one after the other, and workers work side by side. Workers
    are spawned, not forked: forking a process that runs torch or gRPC hangs. One that dies is gone
    for good, and its nodes yield a ``TransportError`` at once.

    Use it as a context manager; leaving it ends the workers.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Starts the workers and waits until all are ready.

        Args:
            groups: of each worker; it is sent its own factory and no other.
            clock: the time, in seconds.

        Raises:
            TransportError: a worker could not make its handlers.
        """
        self._clock = clock
        with ThreadPoolExecutor(len(groups)) as pool:  # a large factory is sent while all start
            starts = [pool.submit(_Worker, factory, tuple(nodes)) for factory, nodes in groups]
        self._workers = [start.result() for start in starts]
        self._worker_of = {node: worker for worker in self._workers for node in worker.nodes}
        try:
            for worker in self._workers:
                worker.wait_until_ready()
        except TransportError:
            self.close()
            raise

    def nodes(self) -> Sequence[int]:
        """The nodes whose worker lives."""
        return [node for node, worker in self._worker_of.items() if worker.alive]

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        """See :class:`~dovetail.wire.channel.Channel`."""
        end = self._clock() + deadline
        lanes: dict[_Worker | None, Lane] = {}
        for node, request in requests.items():
            lanes.setdefault(self._worker_of.get(node), deque()).append((node, request))
        return side_by_side(list(lanes.values()), self._ask, end, self._clock)

    def close(self) -> None:
        """Ends the workers: those at work are killed, the others leave by themselves."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, node: int, request: Payload) -> Answer:
        worker = self._worker_of.get(node)
        return worker.ask(node, request) if worker else _gone()


class _Worker:
    """One worker process, seen from here."""

    def __init__(self, factory: Factory, nodes: tuple[int, ...]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.nodes = nodes
        self._pipe, theirs = spawn.Pipe()
        self._at_work = threading.Lock()
        self._lost = False
        self._process = spawn.Process(target=_serve, args=(factory, nodes, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    @property
    def alive(self) -> bool:
        return not self._lost and self._process.is_alive()

    def wait_until_ready(self) -> None:
        try:
            state = self._pipe.recv_bytes()
        except (EOFError, OSError):
            state = _BAD
        if state != _GOOD:
            reason = state[1:].decode() or "see its own output"
            raise TransportError(f"a worker process could not start: {reason}")

    def ask(self, node: int, request: Payload) -> Answer:
        """The node's answer; blocks until it comes or the worker dies."""
        with self._at_work:
            try:
                self._pipe.send_bytes(b"".join((node.to_bytes(_NODE_BYTES, "big"), *request.parts)))
                answer = self._pipe.recv_bytes()
            except (EOFError, OSError):
                self._lost = True  # a moment before its process is seen to have ended
                return _gone()
        if answer[:1] == _GOOD:
            return answer[1:]
        return TransportError(answer[1:].decode())

    def dismiss(self) -> None:
        if self._at_work.acquire(blocking=False):
            self._pipe.close()  # the worker reads the end of its pipe, and leaves
            self._at_work.release()
        else:
            self._process.kill()

    def join(self) -> None:
        self._process.join(_SECONDS_TO_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(factory: Factory, nodes: tuple[int, ...], pipe: Connection) -> None:
    """Answers requests until the pipe ends; the whole life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends the pipe
    try:
        channel = MemoryChannel(factory(nodes))
    except DovetailError as error:
        pipe.send_bytes(_BAD + str(error).encode())
        return
    pipe.send_bytes(_GOOD)
    while True:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        node = int.from_bytes(data[:_NODE_BYTES], "big")
        ((_, answer),) = channel.exchange({node: Payload(data[_NODE_BYTES:])}, float("inf"))
        if isinstance(answer, TransportError):
            pipe.send_bytes(_BAD + str(answer).encode())
        else:
            pipe.send_bytes(_GOOD + answer)


def _gone() -> TransportError:
    return TransportError("the node is not connected")
