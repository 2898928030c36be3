"""Frames as bytes; the vectors were written once, so that no later version reads them otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import RemoteProtocolError
from dovetail.wire.envelope import MAX_HEAD_BYTES, read, write
from dovetail.wire.generated import federation_pb2 as pb

VECTORS = Path(__file__).parents[1] / "vectors"
GOOD = json.loads((VECTORS / "frame_good.json").read_text())
BAD = json.loads((VECTORS / "frame_bad.json").read_text())
CHUNK = pb.Chunk(exchange=bytes(16), offset=2**40, total=2**41)


@pytest.mark.parametrize("data", [b"", b"a", bytes(300_000)])
def test_a_frame_is_the_protobuf_message_itself(data: bytes) -> None:
    raw = write(pb.ToNode(chunk=CHUNK), [data[:1], data[1:]])
    assert pb.ToNode.FromString(raw) == pb.ToNode(chunk=CHUNK, data=data)
    frame, read_data = read(raw, pb.ToNode)
    assert frame == pb.ToNode(chunk=CHUNK)
    assert read_data == data


def test_the_data_is_not_copied() -> None:
    raw = write(pb.FromNode(chunk=CHUNK), [b"abc"])
    assert read(raw, pb.FromNode)[1].obj is raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x12",
        b"\x12\x05ab",
        b"\x7a\x01a",
        b"\x3a\x00",
        b"\x08\x01",
        b"\x12\x00\x12\x00",
        b"\x12\x00\x7a\x01a\x7a\x01a",
        b"\x12\x00\x7a\x05a",
        b"\x12\x02\xff\xff",
        b"\x12" + b"\xff" * 10,
        b"\x0a\xff\xff\x04" + bytes(MAX_HEAD_BYTES),
    ],
)
def test_malformed_frames_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(raw, pb.FromNode)


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["why"])
def test_a_good_vector_is_read_and_written_again(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["bytes"])
    kind: Any = pb.FromNode if vector["to"] == "coordinator" else pb.ToNode
    frame, data = read(raw, kind)
    assert frame.WhichOneof("frame") == vector["frame"]
    assert data.hex() == vector["data"]
    assert write(frame, [data]) == raw


@pytest.mark.parametrize("vector", BAD, ids=lambda vector: vector["why"])
def test_a_bad_vector_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        read(bytes.fromhex(vector["bytes"]), pb.FromNode)
