from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from dovetail.errors import PolicyError, TransportError
from dovetail.flower._compat import new_message
from dovetail.flower.client import client_app, new_context
from dovetail.flower.engine import GridChannel
from dovetail.flower.grid import CheckedGrid, Expected, ask
from dovetail.flower.records import array_record, metric_record
from dovetail.flower.strategies import server_optimizer
from dovetail.wire.channel import Channel

MODEL = {"w": np.ones(3, np.float32)}


class StockLikeGrid(Grid):
    """As Flower's own grids do: ids of its own, random node ids, silence about who is missing."""

    def __init__(self, apps: dict[int, ClientApp], silent: Iterable[int] = ()) -> None:
        self.apps, self.silent, self.sent = apps, set(silent), 0

    def get_node_ids(self) -> Iterable[int]:
        return reversed(list(self.apps))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            assert message.metadata.message_id == ""
            self.sent += 1
            node = message.metadata.dst_node_id
            fields = {key.lstrip("_"): value for key, value in vars(message.metadata).items()}
            fields.pop("delivered_at")
            fields |= {"message_id": f"stock-{self.sent}", "run_id": 777}
            request = new_message(Metadata(**fields), message.content)
            try:
                reply = self.apps[node](request, new_context(node, {}, {}))
            except ValueError as error:
                reply = Message(Error(2, str(error)), reply_to=request)
            if node not in self.silent:
                replies.append(reply)
        return reversed(replies)

    def set_run(self, run: Any) -> None: ...
    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError


def train(message: Message, context: Context) -> Message:
    content = {"arrays": array_record(MODEL), "metrics": metric_record({"weight": 1})}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


def refuse(message: Message, context: Context) -> Message:
    raise PolicyError("budget", "month is spent")


APP = client_app({"train": train, "query.refuse": refuse})
IDS = {0: 2**63 + 9, 1: 4711, 2: 17}


@pytest.mark.parametrize("ids", [None, IDS])
def test_a_strategy_runs_over_a_stock_grid(ids: dict[int, int] | None) -> None:
    channel: Channel = GridChannel(StockLikeGrid(dict.fromkeys(IDS.values(), APP)), ids)
    nodes = list(channel.nodes())
    assert nodes == ([0, 1, 2] if ids else sorted(IDS.values()))
    expected = Expected({"w": (3,)}, dict.fromkeys(nodes, 1.0))
    grid = CheckedGrid(channel, expected, quorum=3, deadline=60)
    result = server_optimizer("fedavg", nodes=3).start(grid, array_record(MODEL), num_rounds=2)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), MODEL["w"])
    assert grid.faults == {}


def test_refusals_failures_and_absence_arrive_as_over_any_channel() -> None:
    def leak(message: Message, context: Context) -> Message:
        raise ValueError("row 1234")

    stock = ClientApp()
    stock.query("refuse")(leak)
    apps = {IDS[0]: APP, IDS[1]: APP, IDS[2]: stock}
    channel = GridChannel(StockLikeGrid(apps, silent=[IDS[1]]), IDS | {3: 99})
    messages = [Message(RecordDict(), node, "query.refuse") for node in range(4)]
    came = dict(ask(channel, messages, 60))
    assert isinstance(came[0], PolicyError)
    assert {node: str(came[node]) for node in (1, 2, 3)} == {
        1: "the node did not answer in time",
        2: "the node's app could not be run",
        3: "the node is not connected",
    }
    assert all(isinstance(came[node], TransportError) for node in (1, 2, 3))
