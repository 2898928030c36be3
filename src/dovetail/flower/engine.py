"""Our coordinator and our client app on Flower's own engines: its simulation, and its SuperLink.

:class:`GridChannel` makes any stock grid look like a channel, so that a job's loop, which knows
channels only, runs inside a Flower ``ServerApp`` as it does over gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from dovetail.errors import LocalProtocolError, TransportError
from dovetail.flower import codec
from dovetail.flower._compat import new_message, run_simulation
from dovetail.flower.records import metric_record
from dovetail.wire.channel import Answer
from dovetail.wire.payload import Payload

PARTITION = "query.partition"
"""Message type that :func:`run_on_ray` adds to a client app, to learn which node is which."""
_SECONDS_TO_START = 120.0


class GridChannel:
    """A channel over a stock Flower grid.

    The grid gives messages ids and senders of its own; the channel answers with those of the
    request that it was handed. Answers come together once all nodes have answered or are late.
    """

    def __init__(self, grid: Grid, ids: Mapping[int, int] | None = None) -> None:
        """A channel.

        Args:
            grid: where the nodes are.
            ids: the grid's own id of each node of the channel; by default the same.
        """
        self._grid = grid
        self._ids = ids

    def nodes(self) -> Sequence[int]:
        """The nodes that the grid has now, in ascending order."""
        connected = set(self._grid.get_node_ids())
        if self._ids is None:
            return sorted(connected)
        return sorted(node for node, grid_id in self._ids.items() if grid_id in connected)

    def exchange(
        self, requests: Mapping[int, Payload], deadline: float
    ) -> Iterator[tuple[int, Answer]]:
        """See :class:`~dovetail.wire.channel.Channel`."""
        connected = set(self.nodes())
        originals = {node: codec.decode(data.joined()) for node, data in requests.items()}
        sent = [_readdressed(m, self._id(n)) for n, m in originals.items() if n in connected]
        replies = {
            reply.metadata.src_node_id: reply
            for reply in self._grid.send_and_receive(sent, timeout=deadline)
        }
        for node, original in originals.items():
            if node not in connected:
                yield node, TransportError("the node is not connected")
            elif self._id(node) not in replies:
                yield node, TransportError("the node did not answer in time")
            else:
                yield node, _answer(original, replies[self._id(node)])

    def _id(self, node: int) -> int:
        return node if self._ids is None else self._ids[node]


Main = Callable[[GridChannel, Context], None]
"""A coordinator, given a channel to the nodes and Flower's context."""


def server_app(
    main: Main, ids_of: Callable[[Grid], Mapping[int, int] | None] = lambda _: None
) -> ServerApp:
    """A server app that runs a coordinator.

    Args:
        main: the coordinator; what it raises ends the run.
        ids_of: the grid's own id of each node of the channel; by default the same.
    """
    app = ServerApp()

    @app.main()
    def start(grid: Grid, context: Context) -> None:
        main(GridChannel(grid, ids_of(grid)), context)

    return app


def run_on_ray(
    main: Main,
    client_app: ClientApp,
    nodes: int,
    *,
    cpus_per_node: float = 1.0,
) -> None:
    """Runs a coordinator and ``nodes`` nodes on Flower's Ray engine; returns when ``main`` does.

    A node finds which of them it is under ``partition-id`` of its context's node config; the
    channel knows it by the same number. Ray starts processes of its own and listens on every
    interface of the machine: run it where nobody else can reach it.

    Args:
        main: the coordinator.
        client_app: the nodes' app; its actions must be importable where Ray unpacks them.
        nodes: how many nodes, >= 1; their numbers are 0 to ``nodes - 1``.
        cpus_per_node: how many processor cores a node's process is given.

    Raises:
        TransportError: the nodes did not start.
        Exception: whatever ``main`` raised.
    """
    run_simulation(
        server_app=server_app(main, lambda grid: _ids_by_partition(grid, nodes)),
        client_app=_Numbered(client_app),
        num_supernodes=nodes,
        backend_config={
            "init_args": {"include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": cpus_per_node, "num_gpus": 0.0},
        },
    )


class _Numbered(ClientApp):
    """A client app that also says which partition it is: Flower's node ids are random."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != PARTITION:
            return self._app(message, context)
        number = int(context.node_config["partition-id"])
        return Message(RecordDict({PARTITION: metric_record({"id": number})}), reply_to=message)


def _ids_by_partition(grid: Grid, nodes: int) -> dict[int, int]:
    end = time.monotonic() + _SECONDS_TO_START
    while len(ids := list(grid.get_node_ids())) < nodes:
        if time.monotonic() > end:
            raise TransportError("the nodes did not start")
        time.sleep(0.05)
    asked = [Message(RecordDict(), grid_id, PARTITION) for grid_id in ids]
    replies = list(grid.send_and_receive(asked, timeout=_SECONDS_TO_START))
    if len(replies) < nodes or any(reply.has_error() for reply in replies):
        raise TransportError("the nodes did not start")
    return {
        cast("int", reply.content.metric_records[PARTITION]["id"]): reply.metadata.src_node_id
        for reply in replies
    }


def _readdressed(message: Message, grid_id: int) -> Message:
    """The message as a stock grid wants it: without an id, and from the grid's own process."""
    meta = message.metadata
    return Message(
        message.content,
        grid_id,
        meta.message_type,
        ttl=meta.ttl,
        group_id=meta.group_id,
    )


def _answer(original: Message, reply: Message) -> Answer:
    sent, got = original.metadata, reply.metadata
    metadata = Metadata(
        run_id=sent.run_id,
        message_id=got.message_id,
        src_node_id=sent.dst_node_id,
        dst_node_id=sent.src_node_id,
        reply_to_message_id=sent.message_id,
        group_id=got.group_id,
        created_at=got.created_at,
        ttl=got.ttl,
        message_type=got.message_type,
    )
    body = reply.error if reply.has_error() else reply.content
    try:
        return codec.encode(new_message(metadata, body))
    except LocalProtocolError:
        return TransportError("the node's answer cannot be passed on")
