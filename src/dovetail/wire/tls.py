"""How connections are secured and kept alive: the same settings for everybody."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]

from dovetail.wire.peers import Access, Directory, Identity
from dovetail.wire.transfer import CHUNK

_ROOM = 256 << 10
"""Bytes that a gRPC message may be longer than the chunk or document in it."""
_BOTH_SIDES = (
    # These find dead connections on which nothing is said. Who is frozen is found sooner, by beats;
    # pings wait behind data, and on a slow link they may be answered late.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER = (
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a second coordinator at the same address is an error
    ("grpc.max_concurrent_streams", 64),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
)
_CLIENT = (("grpc.use_local_subchannel_pool", 1),)

Options = list[tuple[str, int]]


def server_options(document_bytes: int) -> Options:
    """Settings of the coordinator's side."""
    return [*_BOTH_SIDES, *_SERVER, *_message_length(document_bytes)]


def client_options(document_bytes: int) -> Options:
    """Settings of everybody else's side."""
    return [*_BOTH_SIDES, *_CLIENT, *_message_length(document_bytes)]


def server_credentials(identity: Identity, directory: Directory) -> grpc.ServerCredentials:
    """Mutual TLS; whom to trust is asked anew at each handshake.

    Guarantees:
        Nobody connects without a certificate that the directory holds at that moment, that has not
        expired, and whose private key they have.
    """
    trusted = directory.certificates()

    def configuration() -> grpc.ServerCertificateConfiguration:
        pair = (identity.private_key_pem, identity.certificate_pem)
        return grpc.ssl_server_certificate_configuration([pair], trusted)

    def newer_configuration() -> grpc.ServerCertificateConfiguration | None:
        nonlocal trusted
        now = directory.certificates()
        if now == trusted:
            return None  # as before: else every connection would hold all certificates anew
        trusted = now
        return configuration()

    return grpc.dynamic_ssl_server_credentials(
        configuration(), newer_configuration, require_client_authentication=True
    )


def channel_credentials(access: Access) -> grpc.ChannelCredentials:
    """Mutual TLS to one coordinator, whose certificate is the only one trusted."""
    return grpc.ssl_channel_credentials(
        access.server_certificate, access.private_key, access.certificate
    )


def _message_length(document_bytes: int) -> Options:
    longest = max(document_bytes, CHUNK) + _ROOM
    return [
        ("grpc.max_receive_message_length", longest),
        ("grpc.max_send_message_length", longest),
    ]
