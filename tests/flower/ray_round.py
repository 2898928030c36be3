"""The same coordinator over Flower's Ray engine and in process; run by ``test_ray.py``."""

import numpy as np
from flwr.app import Context, Message, RecordDict

from dovetail.errors import DovetailError, PolicyError
from dovetail.flower.client import answer, client_app, get_state, new_context, put_state
from dovetail.flower.engine import run_on_ray
from dovetail.flower.grid import CheckedGrid, Expected, ask
from dovetail.flower.records import NamedArrays, array_record, metric_record, named_arrays
from dovetail.flower.strategies import server_optimizer
from dovetail.wire.channel import Channel
from dovetail.wire.memory import Handler, MemoryChannel

NODES = 3
START: NamedArrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(1, "f4")}


def train(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    rounds = (get_state(context, "rounds") or {"n": np.zeros((), np.float32)})["n"] + 1
    put_state(context, "rounds", {"n": np.asarray(rounds)})
    arrays = named_arrays(message.content.array_records["arrays"])
    moved = {name: array + np.float32(number) * rounds for name, array in arrays.items()}
    weight = metric_record({"weight": number + 1.0})
    return Message(RecordDict({"arrays": array_record(moved), "metrics": weight}), reply_to=message)


def refuse(message: Message, context: Context) -> Message:
    raise PolicyError("budget", "month is spent")


def crash(message: Message, context: Context) -> Message:
    raise ValueError("row 1234")


APP = client_app({"train": train, "query.refuse": refuse, "query.crash": crash})


def coordinate(channel: Channel) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Two rounds of FedAdam, then what refusing and crashing nodes answer."""
    shapes = {name: array.shape for name, array in START.items()}
    expected = Expected(shapes, {node: node + 1.0 for node in range(NODES)})
    grid = CheckedGrid(channel, expected, quorum=NODES, deadline=120)
    strategy = server_optimizer("fedadam", nodes=NODES, learning_rate=0.1)
    result = strategy.start(grid, array_record(START), num_rounds=2)
    model = {name: array.ravel().tolist() for name, array in named_arrays(result.arrays).items()}
    return model, {kind: errors(channel, kind) for kind in ("query.refuse", "query.crash")}


def errors(channel: Channel, kind: str) -> list[str]:
    messages = [Message(RecordDict(), node, kind) for node in channel.nodes()]
    came = sorted(ask(channel, messages, 120), key=lambda pair: pair[0])
    return [repr(error) for _, error in came if isinstance(error, DovetailError)]


def in_process() -> MemoryChannel:
    def handler(node: int) -> Handler:
        context = new_context(node, {"partition-id": node}, {})
        return lambda data: answer(APP, lambda _: context, data)

    return MemoryChannel({node: handler(node) for node in range(NODES)})


def main(channel: Channel, context: Context) -> None:
    assert list(channel.nodes()) == list(range(NODES))
    on_ray = coordinate(channel)
    assert on_ray == coordinate(in_process()), on_ray
    assert on_ray[1]["query.refuse"] == ["PolicyError('budget: month is spent')"] * NODES
    assert on_ray[1]["query.crash"] == ["RemoteProtocolError('internal error at the node')"] * NODES


if __name__ == "__main__":
    run_on_ray(main, APP, NODES)
    print("ray and memory agree")
