"""One frame of a connection as bytes: a small protobuf message, and the data that belongs to it.

Written and read by hand for the same reason as :mod:`dovetail.wire.frame`: the data of a chunk is
copied once to send and not at all to receive. The bytes are an ordinary ``dovetail.v1.ToNode`` or
``dovetail.v1.FromNode`` of ``protos/dovetail/v1/federation.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError

from dovetail.errors import RemoteProtocolError
from dovetail.wire.fields import fields, length, tag
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.payload import Part

MAX_HEAD_BYTES = 64 << 10
"""Longest frame without its data."""
ID_BYTES = 16
"""Length of an exchange's id, and of a node's incarnation."""

Frame = TypeVar("Frame", pb.ToNode, pb.FromNode)
_DATA = tag(15)
_FRAMES = {tag(number) for number in range(1, 7)}


def write(frame: pb.ToNode | pb.FromNode, data: Iterable[Part] = ()) -> bytes:
    """The frame followed by its data, given in parts."""
    parts = list(data)
    size = sum(map(len, parts))
    head = frame.SerializeToString()
    return b"".join((head, _DATA + length(size), *parts)) if size else head


def read(raw: bytes, kind: type[Frame]) -> tuple[Frame, memoryview]:
    """What :func:`write` was given; the data is a view of ``raw``.

    Raises:
        RemoteProtocolError: ``raw`` is no such frame, or is one that this version does not know.
    """
    found = fields(memoryview(raw))
    number, content = next(found, (b"", memoryview(b"")))
    data_tag, data = next(found, (_DATA, memoryview(b"")))
    if data_tag != _DATA or next(found, None) is not None or len(content) > MAX_HEAD_BYTES:
        raise RemoteProtocolError("a frame is malformed")
    if number not in _FRAMES:
        raise RemoteProtocolError("a frame is of no known kind")
    try:
        frame = kind.FromString(number + length(len(content)) + bytes(content))
    except DecodeError:
        raise RemoteProtocolError("a frame cannot be read") from None
    return frame, data
