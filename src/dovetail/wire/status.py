"""gRPC's status codes in words, for whoever finds a connection refused or broken."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]

from dovetail.errors import TransportError, readable

_UNREACHABLE = (
    "the coordinator cannot be reached, or turned this certificate away: it may be down or at "
    "another address; or the certificate is not enrolled, was revoked, or has expired"
)
_MEANINGS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.OK: "the coordinator ended the connection",
    grpc.StatusCode.CANCELLED: "the connection was closed",
    grpc.StatusCode.UNKNOWN: "the other side failed",
    grpc.StatusCode.INVALID_ARGUMENT: "the coordinator could not read what it was sent",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the coordinator did not answer in time",
    grpc.StatusCode.NOT_FOUND: "the coordinator does not know what it was asked for",
    grpc.StatusCode.ALREADY_EXISTS: "the coordinator has this already",
    grpc.StatusCode.PERMISSION_DENIED: "the coordinator refused",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a limit was reached",
    grpc.StatusCode.FAILED_PRECONDITION: "the coordinator refused",
    grpc.StatusCode.ABORTED: "the coordinator broke off",
    grpc.StatusCode.OUT_OF_RANGE: "the coordinator refused",
    grpc.StatusCode.UNIMPLEMENTED: "the coordinator does not know this call: versions differ",
    grpc.StatusCode.INTERNAL: "the call failed, on its way or at the other side",
    grpc.StatusCode.UNAVAILABLE: _UNREACHABLE,
    grpc.StatusCode.DATA_LOSS: "the connection lost data",
    grpc.StatusCode.UNAUTHENTICATED: "the coordinator does not know this certificate",
}
_SAID_BY_THE_COORDINATOR = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
_CLUES = {
    "onnection refused": "nothing listens at the coordinator's address: it is down, or elsewhere",
    "CERTIFICATE_VERIFY_FAILED": "what answers there is not the coordinator that was named: its "
    "certificate is another one, has expired, or names another host",
    "DNS resolution failed": "the coordinator's host name is not known here",
}
"""What gRPC says of connections that were never made; a wording that changes costs only a hint."""


def transport_error(code: grpc.StatusCode, details: str | None) -> TransportError:
    """What a status means to whoever reads it."""
    meaning = _MEANINGS[code]
    if code in _SAID_BY_THE_COORDINATOR and details:
        return TransportError(f"{meaning}: {readable(details)}")
    if code is grpc.StatusCode.UNAVAILABLE:
        meaning = next((m for clue, m in _CLUES.items() if clue in (details or "")), meaning)
    return TransportError(meaning)
