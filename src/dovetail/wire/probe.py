"""A look at the coordinator without attending: is it there, and does it know this node?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]

from dovetail.errors import RemoteProtocolError
from dovetail.wire import envelope
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.peers import Access, Limits
from dovetail.wire.status import transport_error
from dovetail.wire.tls import channel_credentials, client_options

_METHOD = "/dovetail.v1.Federation/Look"


@dataclass(frozen=True)
class Welcome:
    """What a node would be welcomed with.

    Attributes:
        document: the coordinator's document.
        clock: its clock, seconds since 1970.
    """

    document: bytes
    clock: float


def probe(access: Access, timeout: float) -> Welcome:
    """Looks at the coordinator once; a node that serves meanwhile is not disturbed.

    Args:
        access: how to reach the coordinator.
        timeout: most seconds to wait.

    Raises:
        TransportError: it cannot be reached, or does not let this certificate in.
        RemoteProtocolError: it answered something else.
    """
    options = client_options(Limits().document_bytes)
    with grpc.secure_channel(access.address, channel_credentials(access), options) as channel:
        try:
            raw = channel.unary_unary(_METHOD)(b"", timeout=timeout)
        except grpc.RpcError as error:
            raise transport_error(error.code(), error.details()) from None
    frame, document = envelope.read(raw, pb.ToNode)
    if frame.WhichOneof("frame") != "welcome" or not math.isfinite(frame.welcome.clock):
        raise RemoteProtocolError("the coordinator's welcome is malformed")
    return Welcome(bytes(document), frame.welcome.clock)
