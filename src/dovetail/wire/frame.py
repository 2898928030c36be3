"""A message's head and its arrays' elements as one string of bytes.

The bytes are an ordinary ``dovetail.v1.Message``. They are put together and taken apart here by
hand because protobuf copies a large ``bytes`` field several times; here it is not copied before it
is sent, and not at all to receive.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from dovetail.errors import RemoteProtocolError
from dovetail.wire.channel import Received
from dovetail.wire.fields import fields, length, tag
from dovetail.wire.generated.message_pb2 import Head
from dovetail.wire.payload import Part, Payload

MAX_HEAD_BYTES = 4 << 20
"""Largest head that is parsed. Parsed, a byte of the head can become some forty of memory."""

_HEAD, _ELEMENTS = tag(1), tag(2)


def pack(head: Head, elements: Sequence[bytes | memoryview]) -> Payload:
    """The bytes of a message, in parts; ``elements`` are among them as they are.

    Args:
        head: everything but the arrays' elements; at most ``MAX_HEAD_BYTES``.
        elements: of each array, in the order in which they stand in ``head``.
    """
    packed = head.SerializeToString()
    parts: list[Part] = [_HEAD + length(len(packed)) + packed]
    for block in elements:
        parts += (_ELEMENTS + length(len(block)), block)
    return Payload(*parts)


def unpack(data: Received, max_bytes: int) -> tuple[Head, list[memoryview]]:
    """What :func:`pack` was given; the elements are views of ``data``.

    Raises:
        RemoteProtocolError: ``data`` is longer than ``max_bytes``, or is no such message.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError("the message is longer than allowed")
    blocks = fields(memoryview(data))
    found, packed = next(blocks, (b"", memoryview(b"")))
    if found != _HEAD or len(packed) > MAX_HEAD_BYTES:
        raise RemoteProtocolError("the message does not begin with a head of allowed length")
    elements = []
    for found, block in blocks:
        if found != _ELEMENTS:
            raise RemoteProtocolError("the message holds a field that does not belong to it")
        elements.append(block)
    try:
        return Head.FromString(bytes(packed)), elements
    except DecodeError:
        raise RemoteProtocolError("the head of the message cannot be read") from None
