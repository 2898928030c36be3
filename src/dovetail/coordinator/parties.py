"""Who may connect: invited, enrolled, revoked; one small file each, in the folder ``parties``.

::

    NAME.invited     digest of a token; gone once it was used
    NAME.request     the enrolled party's public keys, as it signed them
    NAME.revoked     there while the party may not connect

``coordinator.party`` holds the coordinator's own public keys, for whoever draws up an agreement.
The running server looks here at every handshake, so that a change holds at once.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from dovetail.agreement.enrolment import (
    TOKEN_BYTES,
    EnrolmentRequest,
    Invitation,
    InvitedDuty,
    check_request,
    digest_of,
    request_from_record,
)
from dovetail.agreement.party import Party, require_name, to_record
from dovetail.agreement.record import Fields
from dovetail.agreement.terms import Terms
from dovetail.crypto.keyring import Keyring
from dovetail.errors import DataError, RemoteProtocolError, SettingError
from dovetail.store.whole_file import write_whole
from dovetail.wire.peers import Peer, Role

COORDINATOR_FILE = "coordinator.party"
_TOO_FRESH = 2_000_000_000
"""Nanoseconds after a change within which another one may bear the same time."""
_ROLES: dict[InvitedDuty, Role] = {"partner": "node", "analyst": "analyst"}


class Parties:
    """The parties of one coordinator; several processes may use the folder."""

    def __init__(
        self, folder: Path, keyring: Keyring, terms: Callable[[], Terms | None] = lambda: None
    ) -> None:
        """Opens the folder.

        Args:
            folder: made with mode 0700 where it is missing.
            keyring: the coordinator's own keys, whose owner is the operator.
            terms: the newest signed ones: who is named there must connect with the certificate
                that they pin.

        Raises:
            DataError: the folder cannot be written.
        """
        self._folder, self._keyring, self._terms = folder, keyring, terms
        self._known: tuple[object, Mapping[str, EnrolmentRequest]] = (None, {})
        self._looked_at = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        own = Party(keyring.name, keyring.signing.public, keyring.pin)
        if not (folder / COORDINATOR_FILE).exists():
            self._write(COORDINATOR_FILE, to_record(own))

    def invite(self, name: str, duty: InvitedDuty, address: str) -> Invitation:
        """An invitation for a party that is not enrolled; an earlier one is void.

        Raises:
            SettingError: the name cannot be used, or is taken.
        """
        require_name(name)
        taken = name.lower() == self._keyring.name.lower() or self._file(name, "request").exists()
        if taken:
            raise SettingError(f"{name!r} is enrolled already; revoke it first to invite anew")
        token = secrets.token_hex(TOKEN_BYTES)
        self._write(f"{name}.invited", {"duty": duty, "token_digest": digest_of(token)})
        certificate = self._keyring.certificate.decode()
        return Invitation(name, duty, address, self._keyring.name, certificate, token)

    def enrol(self, request: EnrolmentRequest) -> Party:
        """Lets a party that answers its invitation connect from now on.

        Raises:
            RemoteProtocolError: it was not invited, or the request does not fit its keys.
        """
        invited = self._file(request.name, "invited")
        if not invited.exists():
            raise RemoteProtocolError(f"{request.name!r} was not invited, or is enrolled already")
        read = Fields(_json(invited), invited.name, ("duty", "token_digest"))
        check_request(request, read.text("token_digest"))
        if request.duty != read.text("duty"):
            raise RemoteProtocolError(f"{request.name!r} was invited to do something else")
        self._write(f"{request.name}.request", vars(request))
        invited.unlink(missing_ok=True)
        self._file(request.name, "revoked").unlink(missing_ok=True)
        return request.party

    def revoke(self, name: str) -> None:
        """Lets a party connect no more; it must be invited and enrolled anew, with new keys.

        Raises:
            SettingError: nobody of this name is enrolled.
        """
        enrolled = self._file(name, "request")
        if not enrolled.exists():
            raise SettingError(f"nobody named {name!r} is enrolled")
        self._write(f"{name}.revoked", _json(enrolled))
        enrolled.unlink(missing_ok=True)

    def enrolled(self) -> tuple[EnrolmentRequest, ...]:
        """Everybody who may connect, by name."""
        return tuple(self._by_pin().values())

    def revoked(self) -> tuple[str, ...]:
        """Who was revoked, by name."""
        return tuple(path.stem for path in sorted(self._folder.glob("*.revoked")))

    def certificates(self) -> bytes:
        """The certificates of all who may connect, as PEM."""
        others = [request.certificate.encode() for request in self.enrolled()]
        return b"\n".join([self._keyring.certificate, *others])

    def peer(self, pin: str) -> Peer | None:
        """Whose certificate this is; ``None`` for nobody who may connect."""
        if pin == self._keyring.pin:
            return Peer(self._keyring.name, "operator", node_number(self._keyring.name))
        request = self._by_pin().get(pin)
        if request is None or not self._agreed(request.party):
            return None
        return Peer(request.name, _ROLES[request.duty], node_number(request.name))

    def _by_pin(self) -> Mapping[str, EnrolmentRequest]:
        """All enrolled by the pin of their certificate; read anew when the folder changed."""
        changed = self._folder.stat().st_mtime_ns
        if changed != self._looked_at or time.time_ns() - changed < _TOO_FRESH:
            self._look()
            self._looked_at = changed
        return self._known[1]

    def _look(self) -> None:
        paths = sorted(self._folder.glob("*.request"))
        state = tuple((path.name, path.stat().st_mtime_ns) for path in paths)
        if self._known[0] != state:
            requests = [request_from_record(_json(path)) for path in paths]
            self._known = state, {r.party.certificate: r for r in requests}

    def _agreed(self, party: Party) -> bool:
        """Whether the signed terms, where they name this party, name these very keys."""
        terms = self._terms()
        named = {p.name: p for p, _ in terms.parties}.get(party.name) if terms else None
        return named is None or (named.key, named.certificate) == (party.key, party.certificate)

    def _file(self, name: str, kind: str) -> Path:
        require_name(name)
        return self._folder / f"{name}.{kind}"

    def _write(self, name: str, record: object) -> None:
        try:
            write_whole(self._folder / name, json.dumps(record, indent=2).encode())
        except OSError as error:
            raise _unwritable(self._folder / name, error) from None


def node_number(name: str) -> int:
    """The number of a party on the wire: the same everywhere and always, below 2⁵³."""
    return int.from_bytes(sha256(name.encode()).digest()[:6], "big")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SettingError(f"{path.name}: cannot be read as JSON") from None


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path.name!r} cannot be written ({error.strerror})")
