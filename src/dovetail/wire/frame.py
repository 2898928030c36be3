"""A message's head and its arrays' elements as one string of bytes.

The bytes are an ordinary ``dovetail.v1.Message``. They are put together and taken apart here by
hand because protobuf copies a large ``bytes`` field several times; here it is copied once to send
and not at all to receive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from dovetail.errors import RemoteProtocolError
from dovetail.wire.generated.message_pb2 import Head

MAX_HEAD_BYTES = 4 << 20
"""Largest head that is parsed. Parsed, a byte of the head can become some forty of memory."""

_HEAD_TAG = b"\x0a"  # field 1, length-delimited
_ELEMENTS_TAG = b"\x12"  # field 2, length-delimited
_MAX_LENGTH_BYTES = 9


def pack(head: Head, elements: Sequence[bytes | memoryview]) -> bytes:
    """The bytes of a message.

    Args:
        head: everything but the arrays' elements; at most ``MAX_HEAD_BYTES``.
        elements: of each array, in the order in which they stand in ``head``.
    """
    packed = head.SerializeToString()
    parts: list[bytes | memoryview] = [_HEAD_TAG, _length(len(packed)), packed]
    for block in elements:
        parts += (_ELEMENTS_TAG, _length(len(block)), block)
    return b"".join(parts)


def unpack(data: bytes, max_bytes: int) -> tuple[Head, list[memoryview]]:
    """What :func:`pack` was given; the elements are views of ``data``.

    Raises:
        RemoteProtocolError: ``data`` is longer than ``max_bytes``, or is no such message.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError("the message is longer than allowed")
    fields = _fields(memoryview(data))
    tag, packed = next(fields, (b"", memoryview(b"")))
    if tag != _HEAD_TAG or len(packed) > MAX_HEAD_BYTES:
        raise RemoteProtocolError("the message does not begin with a head of allowed length")
    elements = []
    for tag, block in fields:
        if tag != _ELEMENTS_TAG:
            raise RemoteProtocolError("the message holds a field that does not belong to it")
        elements.append(block)
    try:
        return Head.FromString(bytes(packed)), elements
    except DecodeError:
        raise RemoteProtocolError("the head of the message cannot be read") from None


def _fields(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position < len(data):
        tag = bytes(data[position : position + 1])
        length, start = _read_length(data, position + 1)
        position = start + length
        if position > len(data):
            raise RemoteProtocolError("the message is cut off")
        yield tag, data[start:position]


def _length(value: int) -> bytes:
    """A number as a protobuf varint."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_length(data: memoryview, position: int) -> tuple[int, int]:
    """The varint at ``position``, and where it ends."""
    value = 0
    for i, group in enumerate(data[position : position + _MAX_LENGTH_BYTES]):
        value |= (group & 0x7F) << (7 * i)
        if group <= 0x7F:
            return value, position + i + 1
    raise RemoteProtocolError("the message is cut off")
