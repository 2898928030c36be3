import pytest

from dovetail.errors import RemoteProtocolError
from dovetail.wire.frame import MAX_HEAD_BYTES, pack, unpack
from dovetail.wire.generated import message_pb2 as pb

HEAD = pb.Head(metadata=pb.Metadata(run_id=2**64 - 1, message_id="m"), error=pb.Error(code=3))


@pytest.mark.parametrize("sizes", [(), (0,), (1, 0, 127, 128), (300_000,)])
def test_frame_is_the_protobuf_message_itself(sizes: tuple[int, ...]) -> None:
    elements = [bytes(size) for size in sizes]
    packed = pack(HEAD, elements).joined()
    assert pb.Message.FromString(packed) == pb.Message(head=HEAD, elements=elements)
    head, views = unpack(packed, len(packed))
    assert head == HEAD
    assert [bytes(view) for view in views] == elements


def test_elements_are_not_copied() -> None:
    packed = pack(HEAD, [b"abcd"]).joined()
    _, (view,) = unpack(packed, 1000)
    assert view.obj is packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\x05ab",
        b"\x12\x01a",
        b"\x0a\x00\x1a\x01a",
        b"\x0a\x00\x12" + b"\xff" * 10,
        b"\x0a" + b"\xff" * 8 + b"\x7f",
        b"\x0a\x02\xff\xff",
        b"\x0a\x00\x0a\x00",
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(data, 1 << 20)


def test_too_long_a_message_is_refused() -> None:
    packed = pack(HEAD, [bytes(100)]).joined()
    with pytest.raises(RemoteProtocolError, match="longer"):
        unpack(packed, len(packed) - 1)


def test_too_long_a_head_is_refused_unparsed() -> None:
    head = pb.Head(error=pb.Error(reason="x" * MAX_HEAD_BYTES))
    with pytest.raises(RemoteProtocolError, match="head"):
        unpack(pack(head, []).joined(), 1 << 30)
