"""Documents of the Control service: JSON objects of limited length, and files in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NoReturn

from google.protobuf.message import DecodeError

from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.wire.fields import length, tag
from dovetail.wire.generated import control_pb2 as pb
from dovetail.wire.payload import Part, Payload
from dovetail.wire.peers import Record
from dovetail.wire.transfer import CHUNK

ERROR_KEY = "dovetail-error"
"""Metadata that holds the code of an error that was raised on purpose."""

_DATA = tag(2)


def write_document(record: Record, max_bytes: int) -> bytes:
    """The object as a ``dovetail.v1.Document``.

    Raises:
        LocalProtocolError: it is no JSON, or longer than ``max_bytes``.
    """
    return _document(record, max_bytes).SerializeToString()


def read_document(raw: bytes, max_bytes: int) -> Record:
    """The object that :func:`write_document` was given.

    Raises:
        RemoteProtocolError: this is none, or it is longer than ``max_bytes``.
    """
    try:
        return _parsed(pb.Document.FromString(raw), max_bytes)
    except DecodeError:
        raise RemoteProtocolError("a document cannot be read") from None


def pieces(record: Record, data: Iterable[Part], max_bytes: int) -> Iterator[bytes]:
    """A file as ``dovetail.v1.Piece``: what it is, then its bytes, 1 MiB at a time.

    Raises:
        LocalProtocolError: as :func:`write_document`.
    """
    yield pb.Piece(document=_document(record, max_bytes)).SerializeToString()
    for part in data:
        whole = Payload(part)
        for offset in range(0, len(whole), CHUNK):
            views = list(whole.slices(offset, CHUNK))
            yield b"".join((_DATA, length(sum(map(len, views))), *views))


def read_piece(raw: bytes, max_bytes: int) -> Record | bytes:
    """The object that a file begins with, or some of its bytes.

    Raises:
        RemoteProtocolError: this is neither.
    """
    try:
        piece = pb.Piece.FromString(raw)
    except DecodeError:
        raise RemoteProtocolError("a piece of a file cannot be read") from None
    if piece.WhichOneof("kind") == "document":
        return _parsed(piece.document, max_bytes)
    return piece.data


def _document(record: Record, max_bytes: int) -> pb.Document:
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise LocalProtocolError("a document holds what JSON cannot") from None
    if len(text) > max_bytes:
        raise LocalProtocolError("a document is longer than allowed")
    return pb.Document(json=text)


def _parsed(document: pb.Document, max_bytes: int) -> Record:
    if len(document.json) > max_bytes:
        raise RemoteProtocolError("a document is longer than allowed")
    try:
        record = json.loads(document.json, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("a document is no JSON") from None
    if not isinstance(record, dict):
        raise RemoteProtocolError("a document is no JSON object")
    return record


def _no_number(_: str) -> NoReturn:
    raise ValueError
