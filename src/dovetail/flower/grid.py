"""A Flower ``Grid`` that checks what comes back before a strategy sees it.

Flower's own strategies take NaN and negative weights, give up at one bad reply, and return an
empty model where every node failed. Here a bad reply is dropped and recorded, and a round with too
few good ones raises.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid

from dovetail.errors import (
    DovetailError,
    LocalProtocolError,
    RemoteProtocolError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower import codec
from dovetail.flower._compat import Run, new_message
from dovetail.flower.client import error_from_reply
from dovetail.flower.records import view
from dovetail.wire.channel import Answer, Channel

ARRAYS = "arrays"
"""Record that holds a model's arrays, in requests and in replies."""
METRICS = "metrics"
"""Record of a reply that holds its weight, and nothing else."""
WEIGHT = "weight"
"""Metric that holds the public weight of a node."""
MASKED = "masked"
"""The array of a reply whose contribution is masked."""
_LARGEST_SUM = float(np.finfo(np.float32).max) / 2


def ask(
    channel: Channel,
    messages: Iterable[Message],
    deadline: float,
    new_id: Callable[[], str] = lambda: uuid4().hex,
) -> Iterator[tuple[int, Message | DovetailError]]:
    """Sends at most one message to each node, and yields what came of each as it comes.

    Args:
        channel: where the nodes are.
        messages: to send; each is given an id of its own.
        deadline: seconds until whoever has not answered yields a ``TransportError``.
        new_id: makes message ids.

    Yields:
        The node, and its reply with content; or the error it answered with
        (:func:`~dovetail.flower.client.error_from_reply`); or a ``RemoteProtocolError`` where its
        bytes are no reply to this message; or a ``TransportError``.

    Raises:
        LocalProtocolError: two messages go to one node.
    """
    requests: dict[int, Message] = {}
    for message in messages:
        node = message.metadata.dst_node_id
        if node in requests:
            raise LocalProtocolError("a node was to be sent two messages at once")
        requests[node] = _with_id(message, new_id())
    payloads = dict(zip(requests, codec.payloads(list(requests.values())), strict=True))
    for node, answer in channel.exchange(payloads, deadline):
        reply = _reply(requests[node], answer)
        del answer
        yield node, reply
        del reply


@dataclass(frozen=True)
class Expected:
    """What a good reply to a training message holds.

    Attributes:
        shapes: of the arrays, by name; all are float32.
        weights: the public weight of each node, > 0: the most it may claim.
    """

    shapes: Mapping[str, tuple[int, ...]]
    weights: Mapping[int, float]

    def check(self, node: int, content: RecordDict) -> None:
        """Refuses a reply that is not as expected.

        Raises:
            RemoteProtocolError: says what is wrong, without any number from the reply.
        """
        if set(content) != {ARRAYS, METRICS}:
            raise RemoteProtocolError("the reply does not hold just arrays and metrics")
        arrays, metrics = content[ARRAYS], content[METRICS]
        if not (isinstance(arrays, ArrayRecord) and isinstance(metrics, MetricRecord)):
            raise RemoteProtocolError("the reply's records are of the wrong kind")
        self._check_arrays(arrays)
        self._check_weight(node, metrics)

    def _check_arrays(self, arrays: ArrayRecord) -> None:
        if set(arrays) != set(self.shapes):
            raise RemoteProtocolError("the reply does not hold the arrays of the model")
        for name, shape in self.shapes.items():
            array = arrays[name]
            if array.dtype != "float32" or tuple(array.shape) != tuple(shape):
                raise RemoteProtocolError(f"array {name!r} has another shape or dtype")
            if not self._summable(view(array)):
                raise RemoteProtocolError(f"array {name!r} is not finite, or too large to sum")

    def _summable(self, array: npt.NDArray[np.float32]) -> bool:
        """Whether weighted sums stay finite where all arrays are like this one; takes no memory."""
        weight = math.fsum(self.weights.values())
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        return -_LARGEST_SUM <= low * weight <= high * weight <= _LARGEST_SUM

    def _check_weight(self, node: int, metrics: MetricRecord) -> None:
        if set(metrics) != {WEIGHT}:
            raise RemoteProtocolError("the reply's metrics are not just its weight")
        weight = metrics[WEIGHT]
        if isinstance(weight, list) or not math.isfinite(weight) or weight <= 0:
            raise RemoteProtocolError("the reply's weight is not a positive finite number")
        if weight > self.weights.get(node, 0.0):
            raise RemoteProtocolError("the reply's weight is above the node's public weight")


@dataclass(frozen=True)
class MaskedExpected:
    """What a good reply holds where contributions are masked.

    Attributes:
        size: numbers of the masked input.
        bits: of each, 32 or 64.
    """

    size: int
    bits: int

    def masked(self, content: RecordDict) -> npt.NDArray[Any]:
        """The masked input of a reply, not writable.

        Raises:
            RemoteProtocolError: the reply is not as expected.
        """
        arrays = content.get(ARRAYS)
        if set(content) != {ARRAYS, METRICS} or not isinstance(arrays, ArrayRecord):
            raise RemoteProtocolError("the reply does not hold just arrays and metrics")
        if set(arrays) != {MASKED}:
            raise RemoteProtocolError("the reply does not hold just a masked input")
        array = arrays[MASKED]
        if array.dtype != f"uint{self.bits}" or tuple(array.shape) != (self.size,):
            raise RemoteProtocolError("the masked input has another size or dtype")
        return view(array)


@dataclass(frozen=True)
class Report:
    """What came of one exchange.

    Attributes:
        asked: the nodes that were sent a message.
        good: those whose reply went on to the strategy, in the order in which they came.
        faults: why the others' did not, by node; safe to show and to store.
    """

    asked: tuple[int, ...]
    good: tuple[int, ...]
    faults: Mapping[int, str]


class CheckedGrid(Grid):
    """A grid over a channel, for Flower's strategies.

    Replies to ``train`` messages must be as ``expected``; of others only the envelope is checked.

    Attributes:
        faults: why replies of the last exchange were dropped, by node.
    """

    def __init__(
        self,
        channel: Channel,
        expected: Expected,
        *,
        quorum: int,
        deadline: float,
        report: Callable[[Report], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        """A grid.

        Args:
            channel: where the nodes are.
            expected: what a good reply to a training message holds.
            quorum: fewest good replies that a round may have, >= 1.
            deadline: most seconds that one exchange, or waiting for nodes, may take.
            report: told what came of each exchange, before a missing quorum is raised.
            clock: the time, in seconds.
            new_id: makes message ids.
        """
        self.faults: dict[int, str] = {}
        self._channel = channel
        self._expected = expected
        self._quorum = quorum
        self._deadline = deadline
        self._report = report
        self._clock = clock
        self._new_id = new_id
        self._waiting_since: float | None = None
        self._kept: dict[str, Message] = {}
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Keeps Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run; Dovetail itself needs none."""
        if self._run is None:
            raise LocalProtocolError("this grid belongs to no Flower run")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """The nodes that can be asked now.

        A strategy that waits for more nodes calls this until they are there. It may do so for
        ``deadline`` seconds after the last exchange.

        Raises:
            TooManyDropouts: it has waited long enough.
        """
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since > self._deadline:
            raise TooManyDropouts("too few nodes are connected, and the deadline has passed")
        return self._channel.nodes()

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Sends messages and keeps the good replies for :meth:`pull_messages`."""
        replies = {reply.metadata.reply_to_message_id: reply for reply in self._round(messages)}
        self._kept.update(replies)
        return list(replies)

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        """The good replies to these messages; each is handed out once."""
        return [self._kept.pop(name) for name in message_ids if name in self._kept]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Sequence[Message]:
        """Sends messages and returns the good replies by node; the caller may change them.

        Args:
            messages: at most one to each node.
            timeout: seconds; the grid's own deadline where that is shorter.

        Raises:
            TooManyDropouts: fewer good replies than the quorum.
        """
        return self._round(messages, timeout)

    def receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Sends messages and yields the good replies as they come, each let go before the next.

        Why the other replies were not good stands in ``faults`` afterwards. No quorum is asked.

        Args:
            messages: at most one to each node.
            timeout: seconds; the grid's own deadline where that is shorter.
        """
        messages = list(messages)
        deadline = self._deadline if timeout is None else min(timeout, self._deadline)
        good: list[int] = []
        self.faults = {}
        for node, answer in ask(self._channel, messages, deadline, self._new_id):
            try:
                checked = self._checked(node, answer)
            except DovetailError as error:
                self.faults[node] = str(error)
                continue
            good.append(node)
            del answer
            yield checked
            del checked
        self._waiting_since = None
        asked = tuple(message.metadata.dst_node_id for message in messages)
        self._report(Report(asked, tuple(good), dict(self.faults)))

    def _round(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        if not messages:
            return []
        found = {r.metadata.src_node_id: r for r in self.receive(messages, timeout=timeout)}
        if len(found) < self._quorum:
            raise TooManyDropouts(f"fewer good replies than the quorum of {self._quorum}")
        return [found[node] for node in sorted(found)]

    def _checked(self, node: int, reply: Message | DovetailError) -> Message:
        if isinstance(reply, DovetailError):
            raise reply
        if reply.metadata.message_type.partition(".")[0] == "train":
            self._expected.check(node, reply.content)
        return reply


def _with_id(message: Message, message_id: str) -> Message:
    meta = message.metadata
    metadata = Metadata(
        run_id=meta.run_id,
        message_id=message_id,
        src_node_id=meta.src_node_id,
        dst_node_id=meta.dst_node_id,
        reply_to_message_id=meta.reply_to_message_id,
        group_id=meta.group_id,
        created_at=meta.created_at,
        ttl=meta.ttl,
        message_type=meta.message_type,
        src_task_id=meta.src_task_id,
        dst_task_id=meta.dst_task_id,
    )
    return new_message(metadata, message.content)


def _reply(request: Message, answer: Answer) -> Message | DovetailError:
    if isinstance(answer, TransportError):
        return answer
    try:
        reply = codec.decode(answer)
    except RemoteProtocolError as error:
        return error
    sent, got = request.metadata, reply.metadata
    if (got.reply_to_message_id, got.src_node_id, got.message_type, got.run_id) != (
        sent.message_id,
        sent.dst_node_id,
        sent.message_type,
        sent.run_id,
    ):
        return RemoteProtocolError("the node answered something else than it was asked")
    return error_from_reply(reply) if reply.has_error() else reply
