"""Flower messages as bytes, exactly, and back, carefully.

Flower has no public way to write a message. This one needs no pickle, no evaluated header and no
class named by the sender: what comes in is numbers, text and arrays of an allowed dtype, or is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
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

from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.flower._compat import new_message
from dovetail.flower.records import (
    DTYPES,
    BorrowedArray,
    array_from_elements,
    elements_of,
    wire_dtype,
)
from dovetail.wire.channel import Received
from dovetail.wire.frame import pack, unpack
from dovetail.wire.generated import message_pb2 as pb
from dovetail.wire.payload import Payload

MAX_MESSAGE_BYTES = 1 << 30
"""Longest message that :func:`decode` takes unless told otherwise."""

_MAX_DIMENSIONS = 32
_LIST_KINDS = {
    int: "integers",
    float: "numbers",
    bool: "flags",
    str: "texts",
    bytes: "blobs",
}
_SCALAR_KINDS = {int: "integer", float: "number", bool: "flag", str: "text", bytes: "blob"}


def encode(message: Message) -> bytes:
    """The message as bytes: a ``dovetail.v1.Message``.

    Arrays travel as dtype, shape and little-endian elements; column-major and big-endian ones
    arrive in the usual order with equal values.

    Raises:
        LocalProtocolError: the message holds what cannot travel: an integer beyond 64 bits, text
            that is no Unicode, an array of another dtype or with other bytes than its shape needs.
    """
    return _payload(message, elements_of).joined()


def payloads(messages: Sequence[Message]) -> list[Payload]:
    """The bytes of each message as :func:`encode` writes them, but not joined.

    The elements of an array that several messages share are held once, and are not copied where
    they lie as they travel.

    Raises:
        LocalProtocolError: as :func:`encode`.
    """
    known: dict[tuple[object, ...], memoryview] = {}

    def once(array: Array) -> memoryview:
        if isinstance(array, BorrowedArray):
            return elements_of(array)
        key = (id(array.data), array.stype, array.dtype, tuple(array.shape))  # messages keep data
        if key not in known:
            known[key] = elements_of(array)
        return known[key]

    return [_payload(message, once) for message in messages]


def decode(data: Received, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """The message that :func:`encode` wrote.

    Its arrays are views of ``data``, which must not change and lives as long as they do. Beside it
    memory stays within a small multiple of ``len(data)``.

    Raises:
        RemoteProtocolError: ``data`` is longer than ``max_bytes``, is malformed, or contradicts
            itself. Nothing else is raised, whatever ``data`` holds.
    """
    head, elements = unpack(data, max_bytes)
    blocks = iter(elements)
    try:
        metadata = _read_metadata(head.metadata)
        body = _read_body(head, blocks)
    except (TypeError, ValueError, OverflowError):
        raise RemoteProtocolError("the message holds a value that is not allowed there") from None
    if next(blocks, None) is not None:
        raise RemoteProtocolError("the message holds elements that belong to no array")
    return new_message(metadata, body)


def _payload(message: Message, elements_of: Callable[[Array], memoryview]) -> Payload:
    head = pb.Head()
    elements: list[memoryview] = []
    try:
        _write_metadata(head.metadata, message.metadata)
        if message.has_error():
            head.error.code = message.error.code
            if message.error.reason is not None:
                head.error.reason = message.error.reason
        else:
            head.content.SetInParent()
            for name, record in message.content.items():
                if isinstance(record, ArrayRecord):
                    elements += [elements_of(array) for array in record.values()]
                _write_record(head.content.records.add(name=name), record)
    except (TypeError, ValueError, OverflowError):
        raise LocalProtocolError("the message holds a value that cannot be sent") from None
    return pack(head, elements)


def _write_metadata(target: pb.Metadata, metadata: Metadata) -> None:
    target.run_id = metadata.run_id
    target.message_id = metadata.message_id
    target.src_node_id = metadata.src_node_id
    target.dst_node_id = metadata.dst_node_id
    target.reply_to_message_id = metadata.reply_to_message_id
    target.group_id = metadata.group_id
    target.created_at = metadata.created_at
    target.ttl = metadata.ttl
    target.message_type = metadata.message_type
    if metadata.src_task_id is not None:
        target.src_task_id = metadata.src_task_id
    if metadata.dst_task_id is not None:
        target.dst_task_id = metadata.dst_task_id


def _read_metadata(source: pb.Metadata) -> Metadata:
    if not (math.isfinite(source.created_at) and math.isfinite(source.ttl)):
        raise RemoteProtocolError("the times of the message are not finite")
    return Metadata(
        run_id=source.run_id,
        message_id=source.message_id,
        src_node_id=source.src_node_id,
        dst_node_id=source.dst_node_id,
        reply_to_message_id=source.reply_to_message_id,
        group_id=source.group_id,
        created_at=source.created_at,
        ttl=source.ttl,
        message_type=source.message_type,
        src_task_id=source.src_task_id if source.HasField("src_task_id") else None,
        dst_task_id=source.dst_task_id if source.HasField("dst_task_id") else None,
    )


def _read_body(head: pb.Head, blocks: Iterator[memoryview]) -> RecordDict | Error:
    match head.WhichOneof("body"):
        case "error":
            reason = head.error.reason if head.error.HasField("reason") else None
            return Error(head.error.code, reason)
        case "content":
            content = RecordDict()
            for record in head.content.records:
                _require_new(record.name, content)
                content[record.name] = _read_record(record, blocks)
            return content
        case _:
            raise RemoteProtocolError("the message holds neither content nor an error")


def _write_record(target: pb.Record, record: ArrayRecord | MetricRecord | ConfigRecord) -> None:
    if isinstance(record, ArrayRecord):
        target.arrays.SetInParent()
        for name, array in record.items():
            target.arrays.arrays.add(name=name, dtype=wire_dtype(array), shape=array.shape)
        return
    numbers_only = isinstance(record, MetricRecord)
    values = target.metrics if numbers_only else target.config
    values.SetInParent()
    for name, value in record.items():
        _write_value(values.values.add(name=name), value)


def _read_record(
    record: pb.Record, blocks: Iterator[memoryview]
) -> ArrayRecord | MetricRecord | ConfigRecord:
    match record.WhichOneof("kind"):
        case "arrays":
            arrays = ArrayRecord()
            for array in record.arrays.arrays:
                _require_new(array.name, arrays)
                arrays[array.name] = _read_array(array, next(blocks, None))
            return arrays
        case "metrics":
            return _read_values(record.metrics, MetricRecord())
        case "config":
            return _read_values(record.config, ConfigRecord())
        case _:
            raise RemoteProtocolError("a record of the message is of no known kind")


def _read_array(array: pb.Array, elements: memoryview | None) -> Array:
    if array.dtype not in DTYPES:
        raise RemoteProtocolError("an array has a dtype that is not allowed")
    if len(array.shape) > _MAX_DIMENSIONS:
        raise RemoteProtocolError("an array has too many dimensions")
    shape = tuple(array.shape)
    itemsize = np.dtype(array.dtype).itemsize
    if math.prod(dim or 1 for dim in shape) * itemsize > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError("an array's shape is too large")
    if elements is None or len(elements) != math.prod(shape) * itemsize:
        raise RemoteProtocolError("an array does not have the bytes that its shape needs")
    return array_from_elements(array.dtype, shape, elements)


def _write_value(target: pb.Value, value: object) -> None:
    if not isinstance(value, list):
        setattr(target, _SCALAR_KINDS[_plain_type(value)], value)
        return
    target_list = getattr(target, _LIST_KINDS[_plain_type(value[0]) if value else float])
    target_list.SetInParent()
    target_list.values.extend(value)


def _plain_type(value: object) -> type:
    """Which of Python's own types stands for a value: ``np.float64`` is a ``float``."""
    for plain in (bool, int, float, str, bytes):
        if isinstance(value, plain):
            return plain
    raise LocalProtocolError("a record holds a value that cannot be sent")


def _read_values(
    source: pb.MetricRecord | pb.ConfigRecord, record: MetricRecord | ConfigRecord
) -> MetricRecord | ConfigRecord:
    for value in source.values:
        _require_new(value.name, record)
        kind = value.WhichOneof("kind")
        if kind is None:
            raise RemoteProtocolError("a record holds a name without a value")
        plain = getattr(value, kind)
        record[value.name] = plain if kind in _SCALAR_KINDS.values() else list(plain.values)
    return record


def _require_new(name: str, taken: RecordDict | ArrayRecord | MetricRecord | ConfigRecord) -> None:
    if name in taken:
        raise RemoteProtocolError("a name occurs twice in the message")
