import gc
import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg

from dovetail.errors import (
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower._compat import new_message
from dovetail.flower.actions import arrays_of
from dovetail.flower.client import answer, client_app, new_context
from dovetail.flower.codec import decode, encode
from dovetail.flower.grid import CheckedGrid, Expected, Report, ask
from dovetail.flower.records import array_record, named_arrays
from dovetail.wire.memory import Handler, MemoryChannel
from dovetail.wire.payload import Payload

SHAPES = {"w": (2, 3), "b": (1,)}
WEIGHTS = {1: 10.0, 2: 20.0, 3: 30.0}
MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float32)}


def update(arrays: Mapping[str, Any], weight: Any = 10.0, **extra: Any) -> RecordDict:
    metrics = MetricRecord({"weight": weight})
    return RecordDict({"arrays": array_record(arrays), "metrics": metrics, **extra})


def good(node: int) -> RecordDict:
    return update({k: v + node for k, v in MODEL.items()}, WEIGHTS[node])


def node(number: int, content: Callable[[], RecordDict] | None = None) -> Handler:
    def train(message: Message, context: Context) -> Message:
        return Message(content() if content else good(number), reply_to=message)

    app = client_app({"train": train, "query.ping": train})
    return lambda data: answer(app, lambda _: new_context(number, {}, {}), data)


def grid_over(handlers: Mapping[int, Handler], **options: Any) -> CheckedGrid:
    settings: dict[str, Any] = {
        "quorum": 2,
        "deadline": 60.0,
        "new_id": map(str, itertools.count()).__next__,
    }
    return CheckedGrid(MemoryChannel(handlers), Expected(SHAPES, WEIGHTS), **(settings | options))


def to(*nodes: int, message_type: str = "train") -> list[Message]:
    return [Message(RecordDict({"arrays": array_record(MODEL)}), n, message_type) for n in nodes]


def test_good_replies_come_through_by_node() -> None:
    reports: list[Report] = []
    grid = grid_over({n: node(n) for n in (1, 2, 3)}, report=reports.append)
    replies = grid.send_and_receive(to(3, 1, 2))
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3]
    assert [reply.content for reply in replies] == [good(1), good(2), good(3)]
    assert grid.faults == {}
    assert reports == [Report(asked=(3, 1, 2), good=(3, 1, 2), faults={})]


FLOAT64 = {k: v.astype(np.float64) for k, v in MODEL.items()}
BAD: dict[str, Callable[[], RecordDict]] = {
    "array missing": lambda: update({"w": MODEL["w"]}),
    "array too many": lambda: update(MODEL | {"x": MODEL["b"]}),
    "array renamed": lambda: update({"w": MODEL["w"], "c": MODEL["b"]}),
    "shape": lambda: update(MODEL | {"w": MODEL["w"].T}),
    "broadcastable shape": lambda: update(MODEL | {"b": np.float32(1).reshape(())}),
    "float64": lambda: update(FLOAT64),
    "nan": lambda: update(MODEL | {"b": np.array([np.nan], np.float32)}),
    "infinite": lambda: update(MODEL | {"b": np.array([-np.inf], np.float32)}),
    "too large to sum": lambda: update(MODEL | {"b": np.array([-3e37], np.float32)}),
    "weight nan": lambda: update(MODEL, float("nan")),
    "weight infinite": lambda: update(MODEL, float("inf")),
    "weight zero": lambda: update(MODEL, 0.0),
    "weight negative": lambda: update(MODEL, -5),
    "weight above the public one": lambda: update(MODEL, 10.000001),
    "weight far too large": lambda: update(MODEL, 2**62),
    "weight a list": lambda: update(MODEL, [10.0]),
    "weight missing": lambda: RecordDict(
        {"arrays": array_record(MODEL), "metrics": MetricRecord({"num-examples": 1})}
    ),
    "metric too many": lambda: RecordDict(
        {"arrays": array_record(MODEL), "metrics": MetricRecord({"weight": 1, "loss": 0.123})}
    ),
    "record too many": lambda: update(MODEL, more=ConfigRecord({"rows": 1234})),
    "no arrays": lambda: RecordDict({"metrics": MetricRecord({"weight": 1})}),
    "no metrics": lambda: RecordDict({"arrays": array_record(MODEL)}),
    "records swapped": lambda: RecordDict({"arrays": MetricRecord(), "metrics": ArrayRecord()}),
    "nothing": RecordDict,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_dropped_and_recorded(content: Callable[[], RecordDict]) -> None:
    grid = grid_over({1: node(1, content), 2: node(2), 3: node(3)})
    replies = grid.send_and_receive(to(1, 2, 3))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3]
    assert list(grid.faults) == [1]
    assert not any(number in grid.faults[1] for number in ("1234", "0.123", "10.0", "-5"))


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_stock_strategy_never_notices_a_bad_reply(content: Callable[[], RecordDict]) -> None:
    grid = grid_over({1: node(1, content), 2: node(2), 3: node(3)})
    strategy = FedAvg(fraction_evaluate=0, min_train_nodes=3, weighted_by_key="weight")
    result = strategy.start(grid, array_record(MODEL), num_rounds=2)
    expected = (20 * 2 + 30 * 3) / 50
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-6)


def changed(**changes: Any) -> Handler:
    """A node whose reply has some of its metadata changed."""

    def handler(data: bytes) -> bytes:
        reply = decode(node(1)(data))
        fields = {key.lstrip("_"): value for key, value in vars(reply.metadata).items()}
        fields.pop("delivered_at", None)
        return encode(new_message(Metadata(**(fields | changes)), reply.content))

    return handler


@pytest.mark.parametrize(
    "changes",
    [
        {"reply_to_message_id": "another"},
        {"reply_to_message_id": ""},
        {"src_node_id": 2},
        {"message_type": "query.ping"},
        {"run_id": 77},
    ],
)
def test_a_reply_to_something_else_is_dropped(changes: dict[str, Any]) -> None:
    grid = grid_over({1: changed(**changes), 2: node(2), 3: node(3)})
    assert len(grid.send_and_receive(to(1, 2, 3))) == 2
    assert grid.faults == {1: "the node answered something else than it was asked"}


def test_a_replayed_reply_is_dropped() -> None:
    first: list[bytes] = []

    def replaying(data: bytes) -> bytes:
        first.append(node(1)(data))
        return first[0]

    grid = grid_over({1: replaying, 2: node(2), 3: node(3)})
    assert len(grid.send_and_receive(to(1, 2, 3))) == 3
    assert len(grid.send_and_receive(to(1, 2, 3))) == 2


def test_nonsense_errors_and_absence_are_faults() -> None:
    def refuse() -> RecordDict:
        raise PolicyError("budget", "month is spent")

    def crash() -> RecordDict:
        raise ValueError("row 1234")

    handlers = {1: node(1), 2: node(2, refuse), 3: lambda _: b"nonsense", 4: node(4, crash)}
    grid = grid_over(handlers, quorum=1)
    assert len(grid.send_and_receive(to(1, 2, 3, 4, 5))) == 1
    assert grid.faults == {
        2: "budget: month is spent",
        3: "the message is cut off",
        4: "internal error at the node",
        5: "the node is not connected",
    }


@pytest.mark.parametrize(("quorum", "enough"), [(2, True), (3, False)])
def test_quorum(quorum: int, enough: bool) -> None:
    reports: list[Report] = []
    handlers = {1: node(1), 2: node(2), 3: node(3, RecordDict)}
    grid = grid_over(handlers, quorum=quorum, report=reports.append)
    if enough:
        assert len(grid.send_and_receive(to(1, 2, 3))) == 2
    else:
        with pytest.raises(TooManyDropouts):
            grid.send_and_receive(to(1, 2, 3))
    assert set(reports[0].faults) == {3}, "told before it is raised"


def test_a_strategy_is_not_handed_an_empty_round() -> None:
    grid = grid_over({n: node(n, RecordDict) for n in (1, 2)})
    strategy = FedAvg(fraction_evaluate=0, weighted_by_key="weight")
    with pytest.raises(TooManyDropouts):
        strategy.start(grid, array_record(MODEL))


@pytest.mark.parametrize(("timeout", "expected"), [(None, 60.0), (5.0, 5.0), (3600.0, 60.0)])
def test_the_shorter_deadline_holds(timeout: float | None, expected: float) -> None:
    deadlines: list[float] = []

    class Channel(MemoryChannel):
        def exchange(self, requests: Mapping[int, Payload], deadline: float) -> Any:
            deadlines.append(deadline)
            return super().exchange(requests, deadline)

    grid = CheckedGrid(Channel({1: node(1)}), Expected(SHAPES, WEIGHTS), quorum=1, deadline=60.0)
    grid.send_and_receive(to(1), timeout=timeout)
    assert deadlines == [expected]


def test_waiting_for_nodes_ends() -> None:
    clock = itertools.count(0, 50).__next__
    grid = grid_over({1: node(1)}, quorum=1, clock=clock)
    assert grid.get_node_ids() == [1]
    assert grid.get_node_ids() == [1]
    with pytest.raises(TooManyDropouts):
        grid.get_node_ids()


def test_waiting_starts_anew_after_an_exchange() -> None:
    clock = itertools.count(0, 50).__next__
    grid = grid_over({1: node(1)}, quorum=1, clock=clock)
    for _ in range(3):
        assert [grid.get_node_ids(), grid.get_node_ids()] == [[1], [1]]
        assert len(grid.send_and_receive(to(1))) == 1


def test_a_strategy_that_wants_more_nodes_than_there_are_gives_up() -> None:
    clock = itertools.count(0, 100).__next__
    grid = grid_over({1: node(1)}, clock=clock)
    strategy = FedAvg(min_available_nodes=9, fraction_evaluate=0, weighted_by_key="weight")
    with pytest.raises(TooManyDropouts):
        strategy.start(grid, array_record(MODEL))


@pytest.mark.parametrize("kind", [FedMedian, FedTrimmedAvg])
def test_strategies_that_empty_the_replies_do_no_harm(kind: type[FedAvg]) -> None:
    kept = {n: good(n) for n in (1, 2, 3)}
    handlers = {n: node(n, lambda n=n: kept[n]) for n in kept}  # type: ignore[misc]
    strategy = kind(fraction_evaluate=0, min_train_nodes=3, weighted_by_key="weight")
    strategy.start(grid_over(handlers), array_record(MODEL), num_rounds=2)
    assert kept == {n: good(n) for n in kept}


def test_pushing_and_pulling() -> None:
    grid = grid_over({1: node(1), 2: node(2), 3: node(3, RecordDict)})
    ids = list(grid.push_messages(to(1, 2, 3)))
    assert len(ids) == 2
    assert len(list(grid.pull_messages(ids))) == 2
    assert list(grid.pull_messages(ids)) == []


def test_only_training_replies_must_be_models() -> None:
    grid = grid_over({1: node(1, RecordDict), 2: node(2)})
    assert len(grid.send_and_receive(to(1, 2, message_type="query.ping"))) == 2


def test_no_messages_is_no_round() -> None:
    assert list(grid_over({}).send_and_receive([])) == []


def test_a_reply_is_let_go_before_the_next_is_asked_for() -> None:
    seen: list[weakref.ref[Any]] = []

    def watched(number: int) -> Handler:
        def handler(data: bytes) -> bytes:
            assert not any(reply() for reply in seen)
            return node(number)(data)

        return handler

    gc.disable()  # nothing here may wait for it
    try:
        for reply in grid_over({n: watched(n) for n in (1, 2, 3)}).receive(to(1, 2, 3)):
            assert arrays_of(reply)["b"] == [1 + reply.metadata.src_node_id]
            seen.append(weakref.ref(reply.content["arrays"]))
            del reply
    finally:
        gc.enable()
    assert len(seen) == 3


def test_the_run_is_flowers_affair() -> None:
    grid = grid_over({})
    with pytest.raises(LocalProtocolError):
        _ = grid.run
    message = grid.create_message(RecordDict(), "train", 4, "7")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (4, "7")


def test_ask_yields_replies_and_errors() -> None:
    def refuse() -> RecordDict:
        raise PolicyError("purpose", "not agreed")

    channel = MemoryChannel({1: node(1), 2: node(2, refuse), 3: changed(run_id=9)})
    came = dict(ask(channel, to(1, 2, 3, 4), 60))
    assert isinstance(came[1], Message)
    np.testing.assert_array_equal(
        named_arrays(came[1].content.array_records["arrays"])["b"], np.array([2], np.float32)
    )
    assert isinstance(came[2], PolicyError)
    assert came[2].rule == "purpose"
    assert isinstance(came[3], RemoteProtocolError)
    assert isinstance(came[4], TransportError)


def test_one_node_is_asked_one_thing_at_a_time() -> None:
    with pytest.raises(LocalProtocolError):
        list(ask(MemoryChannel({1: node(1)}), to(1, 1), 60))


def test_an_error_reply_to_something_else_is_not_believed() -> None:
    def liar(data: bytes) -> bytes:
        request = decode(data)
        reply = Message(Error(1004, "budget: spent"), reply_to=request)
        fields = {key.lstrip("_"): value for key, value in vars(reply.metadata).items()}
        fields.pop("delivered_at", None)
        return encode(new_message(Metadata(**(fields | {"reply_to_message_id": "x"})), reply.error))

    ((_, came),) = ask(MemoryChannel({1: liar}), to(1), 60)
    assert isinstance(came, RemoteProtocolError)
