import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.flower._compat import new_message
from dovetail.flower.codec import decode, encode, payloads
from dovetail.flower.records import DTYPES, elements_of
from dovetail.wire.frame import pack
from dovetail.wire.generated import message_pb2 as pb

VECTORS = Path(__file__).parents[1] / "vectors"
GOOD = json.loads((VECTORS / "message_good.json").read_text())
BAD = json.loads((VECTORS / "message_bad.json").read_text())


def described(vector: dict[str, Any]) -> Message:
    """The message that a vector describes, built with Flower's own constructors."""
    metadata = Metadata(**vector["metadata"])
    if "error" in vector:
        return new_message(metadata, Error(vector["error"]["code"], vector["error"]["reason"]))
    content = RecordDict()
    for name, (kind, record) in vector["content"].items():
        if kind == "arrays":
            content[name] = ArrayRecord(
                {k: Array(np.array(v, dtype).reshape(s)) for k, (dtype, s, v) in record.items()}
            )
        elif kind == "metrics":
            content[name] = MetricRecord(record)
        else:
            blobs = {k: bytes.fromhex(v[4:]) for k, v in record.items() if str(v)[:4] == "hex:"}
            content[name] = ConfigRecord(record | blobs)
    return new_message(metadata, content)


def same(first: Message, second: Message) -> bool:
    if first.metadata != second.metadata or first.has_error() != second.has_error():
        return False
    if first.has_error():
        return first.error == second.error
    return first.content == second.content and str(first.content) == str(second.content)


@pytest.mark.parametrize("vector", GOOD, ids=lambda v: v["why"])
def test_good_vectors(vector: dict[str, Any]) -> None:
    message = described(vector)
    assert encode(message).hex() == vector["bytes"]
    assert same(decode(bytes.fromhex(vector["bytes"])), message)


@pytest.mark.parametrize("vector", BAD, ids=lambda v: v["why"])
def test_bad_vectors(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(bytes.fromhex(vector["bytes"]))


uint64 = st.integers(0, 2**64 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
metadata = st.builds(
    Metadata,
    run_id=uint64,
    message_id=texts,
    src_node_id=uint64,
    dst_node_id=uint64,
    reply_to_message_id=texts,
    group_id=texts,
    created_at=finite,
    ttl=finite,
    message_type=st.sampled_from(["train", "query.propose", "evaluate"]),
    src_task_id=st.none() | uint64,
    dst_task_id=st.none() | uint64,
)
floats = st.floats(allow_nan=False)
metrics = int64 | floats | st.lists(int64, max_size=3) | st.lists(floats, max_size=3)
configs = (
    metrics
    | st.booleans()
    | texts
    | st.binary(max_size=8)
    | st.lists(st.booleans(), max_size=3)
    | st.lists(texts, max_size=3)
    | st.lists(st.binary(max_size=4), max_size=3)
)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
)
records = (
    st.dictionaries(texts, arrays.map(Array), max_size=2).map(ArrayRecord)
    | st.dictionaries(texts, metrics, max_size=2).map(MetricRecord)
    | st.dictionaries(texts, configs, max_size=2).map(ConfigRecord)
)
bodies = st.dictionaries(texts, records, max_size=3).map(RecordDict) | st.builds(
    Error, int64, st.none() | texts
)
messages = st.builds(new_message, metadata, bodies)


@given(messages)
def test_round_trip_is_exact(message: Message) -> None:
    data = encode(message)
    assert same(decode(data), message)
    assert encode(decode(data)) == data


@given(messages)
def test_any_protobuf_implementation_reads_it(message: Message) -> None:
    data = encode(message)
    assert pb.Message.FromString(data).SerializeToString(deterministic=True) == data


@settings(max_examples=300)
@given(messages, st.data())
def test_mutated_bytes_are_read_or_refused_and_nothing_else(
    message: Message, data: st.DataObject
) -> None:
    mutated = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "double"])):
            case "flip":
                mutated[place] = data.draw(st.integers(0, 255))
            case "cut":
                del mutated[place : place + data.draw(st.integers(0, 8))]
            case _:
                mutated[place:place] = mutated[place : place + 16]
        if not mutated:
            break
    try:
        decoded = decode(bytes(mutated))
    except RemoteProtocolError:
        return
    assert same(decode(encode(decoded)), decoded) or "nan" in str(decoded)


def test_many_random_mutations_of_one_message() -> None:
    source = random.Random(7)
    original = bytes.fromhex(max((vector["bytes"] for vector in GOOD), key=len))
    refused = 0
    for _ in range(3000):
        mutated = bytearray(original)
        for _ in range(source.randint(1, 6)):
            mutated[source.randrange(len(mutated))] = source.randrange(256)
        try:
            decode(bytes(mutated))
        except RemoteProtocolError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    "head",
    [
        pb.Head(content=pb.RecordDict(records=[pb.Record(name=str(i)) for i in range(9)])),
        pb.Head(content=pb.RecordDict(records=[pb.Record(name="")] * 200_000)),
        pb.Head(
            content=pb.RecordDict(
                records=[
                    pb.Record(
                        name="a",
                        arrays=pb.ArrayRecord(
                            arrays=[pb.Array(name="a", dtype="float32", shape=[2**40])]
                        ),
                    )
                ]
            )
        ),
        pb.Head(
            content=pb.RecordDict(
                records=[
                    pb.Record(
                        name="a",
                        arrays=pb.ArrayRecord(
                            arrays=[pb.Array(name="a", dtype="int8", shape=[1] * 500_000)]
                        ),
                    )
                ]
            )
        ),
    ],
)
def test_a_small_message_cannot_ask_for_much_memory(head: pb.Head) -> None:
    data = pack(head, []).joined()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(data) + (1 << 20)


def test_a_message_longer_than_allowed_is_refused() -> None:
    data = bytes.fromhex(GOOD[0]["bytes"])
    decode(data, max_bytes=len(data))
    with pytest.raises(RemoteProtocolError):
        decode(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"n": 2**63}),
        ConfigRecord({"n": [2**70]}),
        ConfigRecord({"t": "\ud800"}),
        ArrayRecord({"a": Array("complex64", (1,), "numpy.ndarray", b"")}),
        ArrayRecord({"a": Array("float32", (-1,), "numpy.ndarray", b"")}),
    ],
)
def test_what_cannot_travel_is_refused_before_it_is_sent(
    record: ConfigRecord | ArrayRecord,
) -> None:
    with pytest.raises(LocalProtocolError):
        encode(Message(RecordDict({"r": record}), 1, "train"))


def test_reading_copies_no_array() -> None:
    written = bytearray(
        encode(Message(RecordDict({"a": ArrayRecord([np.ones(9, "f4")])}), 1, "train"))
    )
    read = decode(written).content["a"]
    assert isinstance(read, ArrayRecord)
    assert elements_of(read["0"]).obj is written
    assert elements_of(read["0"]).readonly


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_that_messages_share_are_held_once(order: Any) -> None:
    array = Array(np.asarray(np.arange(6_000_000, dtype=np.float32).reshape(1000, -1), order=order))
    messages = [
        new_message(
            Metadata(run_id=1, message_id=str(node), src_node_id=0, dst_node_id=node,
                     reply_to_message_id="", group_id="", created_at=0.0, ttl=1.0,
                     message_type="train"),
            RecordDict({"model": ArrayRecord({"w": array})}),
        )
        for node in range(10)
    ]  # fmt: skip
    tracemalloc.start()
    try:
        written = payloads(messages)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < (100_000 if order == "C" else 24_100_000)
    assert peak < 80_000_000
    assert [payload.joined() for payload in written] == [encode(message) for message in messages]
