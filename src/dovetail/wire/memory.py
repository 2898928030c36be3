"""A channel to nodes in the same process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from dovetail.errors import TransportError
from dovetail.wire.channel import Answer
from dovetail.wire.payload import Payload

Handler = Callable[[bytes], bytes]
"""What a node does with a request; a ``TransportError`` it raises reaches whoever asked."""
Clock = Callable[[], float]
"""Seconds from some fixed moment, never running backwards."""
Lane = deque[tuple[int, Payload]]
"""Nodes to ask one after the other, each with its request."""

_logger = logging.getLogger(__name__)


class MemoryChannel:
    """Nodes as functions.

    Without threads the handlers run in the caller's, one after the other: deterministic, and the
    fastest for short work; a handler that hangs then hangs the caller, and the deadline is looked
    at between nodes. With threads they run side by side and the deadline holds whatever they do.
    """

    def __init__(
        self, handlers: Mapping[int, Handler], *, threads: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self._handlers = dict(handlers)
        self._threads = threads
        self._clock = clock
        self._busy = {node: threading.Lock() for node in handlers}

    def nodes(self) -> Sequence[int]:
        """All nodes, in the order in which they were given."""
        return list(self._handlers)

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        """See :class:`~dovetail.wire.channel.Channel`."""
        end = self._clock() + deadline
        if not self._threads:
            return self._one_by_one(requests, end)
        lane: Lane = deque(requests.items())
        lanes = [lane] * min(self._threads, len(requests))
        return side_by_side(lanes, self._ask, end, self._clock)

    def _one_by_one(
        self, requests: Mapping[int, Payload], end: float
    ) -> Iterator[tuple[int, Answer]]:
        for node, request in requests.items():
            answer = self._ask(node, request) if self._clock() < end else late()
            yield node, answer if self._clock() < end else late()

    def _ask(self, node: int, request: Payload) -> Answer:
        if node not in self._handlers:
            return TransportError("the node is not connected")
        if not self._busy[node].acquire(blocking=False):
            return TransportError("the node is still busy with an earlier request")
        try:
            return self._handlers[node](request.joined())
        except TransportError as error:
            return error
        except Exception:
            _logger.exception("node %d failed", node)
            return TransportError("the node failed to answer")
        finally:
            self._busy[node].release()


def late() -> TransportError:
    """The answer of a node that did not answer in time."""
    return TransportError("the node did not answer in time")


def side_by_side(
    lanes: Sequence[Lane], ask: Callable[[int, Payload], Answer], end: float, clock: Clock
) -> Iterator[tuple[int, Answer]]:
    """Asks along several lanes at once, each in a thread of its own.

    Args:
        lanes: who is still to be asked; a lane that is given twice is emptied by two threads.
        ask: asks one node. May block for ever: its thread is then left behind.
        end: when, on ``clock``, whoever has not answered is late.
        clock: the time.
    """
    waiting = {node for lane in lanes for node, _ in lane}
    answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    for lane in lanes:
        threading.Thread(target=_empty, args=(lane, ask, answers), daemon=True).start()
    try:
        while waiting and (left := end - clock()) > 0:
            with suppress(queue.Empty):
                node, answer = answers.get(timeout=left)
                waiting.remove(node)
                yield node, answer
    finally:
        for lane in lanes:
            lane.clear()
    for node in sorted(waiting):
        yield node, late()


def _empty(
    lane: Lane,
    ask: Callable[[int, Payload], Answer],
    answers: queue.SimpleQueue[tuple[int, Answer]],
) -> None:
    with suppress(IndexError):
        while True:
            node, request = lane.popleft()
            answers.put((node, ask(node, request)))
