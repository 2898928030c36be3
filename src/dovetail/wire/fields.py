"""Protobuf's length-delimited fields, one by one and without a copy.

Source: Protocol Buffers, "Encoding", https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.errors import RemoteProtocolError

_MAX_LENGTH_BYTES = 9


def tag(number: int) -> bytes:
    """The tag of a length-delimited field; ``number`` is 1 to 15."""
    return bytes([number << 3 | 2])


def length(value: int) -> bytes:
    """A number as a varint."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def fields(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Each field's tag and content; a tag is any one byte, and the caller knows which it takes.

    Raises:
        RemoteProtocolError: a field does not end where ``data`` does, or before.
    """
    position = 0
    while position < len(data):
        found = bytes(data[position : position + 1])
        size, start = _read_length(data, position + 1)
        position = start + size
        if position > len(data):
            raise RemoteProtocolError("the message is cut off")
        yield found, data[start:position]


def _read_length(data: memoryview, position: int) -> tuple[int, int]:
    """The varint at ``position``, and where it ends."""
    value = 0
    for i, group in enumerate(data[position : position + _MAX_LENGTH_BYTES]):
        value |= (group & 0x7F) << (7 * i)
        if group <= 0x7F:
            return value, position + i + 1
    raise RemoteProtocolError("the message is cut off")
