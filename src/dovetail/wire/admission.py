"""Who may call what: every call's certificate is looked up, and looked up again when asked to."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]

from dovetail.crypto.certificates import pin_of, valid_until
from dovetail.wire.peers import Directory, LinkEvent, OnLink, Peer, Role

_logger = logging.getLogger(__name__)
Call = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]
"""How gRPC calls a method of a service."""

_WHAT = {"node": "attend", "analyst": "use Control", "operator": "use Control"}


@dataclass(frozen=True)
class Admitted:
    """A call whose peer is known.

    Attributes:
        peer: who calls.
        pin: of its certificate.
        address: where it calls from.
    """

    peer: Peer
    pin: str
    address: str


class Refused(Exception):  # noqa: N818 - the field's word
    """A call is not taken.

    Attributes:
        peer: who called; ``None`` where nobody knows the certificate.
        code: the status that the call ends with.
        reason: what the caller is told.
    """

    def __init__(self, peer: Peer | None, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer
        self.code = code
        self.reason = reason


class Admission:
    """The door that every call of our services goes through, on the wire's own thread."""

    def __init__(
        self, directory: Directory, on_link: OnLink, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._on_link = on_link
        self._lasting: dict[object, tuple[Admitted, Callable[[str], None]]] = {}

    def admit(self, context: grpc.aio.ServicerContext, *roles: Role) -> Admitted:
        """The peer that calls.

        Raises:
            Refused: it is not known, its certificate has expired, or it has none of the roles.
        """
        address = str(context.peer())
        certificate = _certificate(context)
        pin = pin_of(certificate) if certificate else ""
        peer = self._directory.peer(pin) if pin else None
        if peer is None:
            reason = "the certificate is not enrolled, or was revoked"
            raise Refused(None, grpc.StatusCode.PERMISSION_DENIED, reason)
        if valid_until(certificate).timestamp() < self._clock():  # a resumed session is not asked
            reason = "the certificate has expired"
            raise Refused(peer, grpc.StatusCode.PERMISSION_DENIED, reason)
        if peer.role not in roles:
            reason = f"{peer.role} {peer.name!r} may not {_WHAT[roles[0]]}"
            raise Refused(peer, grpc.StatusCode.PERMISSION_DENIED, reason)
        return Admitted(peer, pin, address)

    async def abort(self, context: grpc.aio.ServicerContext, refused: Refused) -> NoReturn:
        """Tells of a call that is refused, and ends it."""
        self.note(context, refused)
        await context.abort(refused.code, refused.reason)
        raise AssertionError("abort raises")

    def note(self, context: grpc.aio.ServicerContext, refused: Refused) -> None:
        """Tells of a call that is refused."""
        self.tell(LinkEvent("refused", refused.peer, str(context.peer()), refused.reason))

    @contextmanager
    def lasting(self, admitted: Admitted, cut: Callable[[str], None]) -> Iterator[None]:
        """While inside, ``cut`` is called with the reason once the peer is no longer admitted."""
        key = object()
        self._lasting[key] = (admitted, cut)
        self._check(admitted, cut)  # it may have been revoked since it was admitted
        try:
            yield
        finally:
            del self._lasting[key]

    def recheck(self) -> None:
        """Cuts every lasting call whose peer was revoked or is another one now."""
        for admitted, cut in list(self._lasting.values()):
            self._check(admitted, cut)

    def _check(self, admitted: Admitted, cut: Callable[[str], None]) -> None:
        if self._directory.peer(admitted.pin) != admitted.peer:
            cut("the certificate was revoked")

    def tell(self, event: LinkEvent) -> None:
        """Passes an event on; a listener that fails harms nobody else."""
        try:
            self._on_link(event)
        except Exception:
            _logger.exception("a listener for connections failed")


def guarded(call: Call) -> Call:
    """The same call, but a failure that was not foreseen is logged here and tells nothing there."""

    async def guarded_call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await call(request, context)
        except (grpc.aio.AbortError, grpc.aio.InternalError):  # told; or the caller has left
            raise
        except Exception:
            _logger.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return guarded_call


def _certificate(context: grpc.aio.ServicerContext) -> bytes:
    """The caller's, PEM; empty where there is none, which TLS does not allow."""
    certificates = context.auth_context().get("x509_pem_cert", [])
    return bytes(certificates[0]) if certificates else b""
