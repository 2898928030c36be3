"""A client of the Control service: asks a coordinator on behalf of an analyst or operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, Self

import grpc  # type: ignore[import-untyped]

from dovetail.errors import (
    INTERNAL_ERROR,
    LocalProtocolError,
    RemoteProtocolError,
    error_from,
)
from dovetail.wire.control_service import METHODS, SERVICE
from dovetail.wire.document import ERROR_KEY, read_document, read_piece, write_document
from dovetail.wire.peers import DOCUMENT_BYTES, Access, Record
from dovetail.wire.status import transport_error
from dovetail.wire.tls import channel_credentials, client_options

__all__ = ["METHODS", "ControlClient"]


class ControlClient:
    """A connection to a coordinator's Control service, made when it is first needed.

    All methods raise the ``DovetailError`` that the coordinator raised, as this side sees it; a
    ``TransportError`` where there is no connection; and a ``RemoteProtocolError`` for answers that
    cannot be read.
    """

    def __init__(self, access: Access, *, timeout: float = 60.0) -> None:
        """No connection yet.

        Args:
            access: how to reach the coordinator.
            timeout: most seconds that a call may take; watching and fetching take any time.
        """
        self._timeout = timeout
        self._channel = grpc.secure_channel(
            access.address, channel_credentials(access), client_options(DOCUMENT_BYTES)
        )

    def call(self, method: str, record: Record) -> Record:
        """Asks one of :data:`METHODS`."""
        if method not in METHODS:
            raise LocalProtocolError(f"Control has no method {method!r}")
        ask = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            raw = ask(write_document(record, DOCUMENT_BYTES), timeout=self._timeout)
        except grpc.RpcError as error:
            _raise(error)
        return read_document(raw, DOCUMENT_BYTES)

    def watch(self, record: Record) -> Iterator[Record]:
        """Events as they happen; whoever closes the iterator wants no more."""
        for raw in self._stream("Watch", record):
            yield read_document(raw, DOCUMENT_BYTES)

    def fetch(self, record: Record, sink: Callable[[bytes], None]) -> Record:
        """Fetches a file; returns what it is after all its bytes went to ``sink``, in order."""
        described: Record | None = None
        for raw in self._stream("Fetch", record):
            piece = read_piece(raw, DOCUMENT_BYTES)
            if isinstance(piece, dict) != (described is None):
                raise RemoteProtocolError("the pieces of a file came out of order")
            if isinstance(piece, dict):
                described = piece
            else:
                sink(piece)
        if described is None:
            raise RemoteProtocolError("a file came without a description")
        return described

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(self, method: str, record: Record) -> Iterator[bytes]:
        call = self._channel.unary_stream(f"/{SERVICE}/{method}")(
            write_document(record, DOCUMENT_BYTES)
        )
        try:
            yield from call
        except grpc.RpcError as error:
            _raise(error)
        finally:
            call.cancel()


def _raise(error: grpc.RpcError) -> NoReturn:
    """Raises what the coordinator raised, or what became of the connection."""
    metadata = dict(error.trailing_metadata() or ())
    number = str(metadata.get(ERROR_KEY, ""))
    if number.isascii() and number.isdigit() and len(number) < 10:
        code = int(number)
        if code == INTERNAL_ERROR:
            raise RemoteProtocolError("internal error at the coordinator") from None
        if known := error_from(code, error.details() or ""):
            raise known from None
    raise transport_error(error.code(), error.details()) from None
