"""How a party's public keys reach the coordinator: an invitation out, a request back, both files.

::

    coordinator                                 partner or analyst
    invite: name, address, own certificate ──▶  makes keys at home
            and a token that is used once
                                           ◀──  request: its public keys, the token,
    enrol:  token known and unused,             signed with its signing key
            signature and certificate fit

No private key is in either. The coordinator keeps a hash of the token only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from dovetail.agreement.party import Party, require_name
from dovetail.agreement.record import Fields, require
from dovetail.agreement.terms import Terms
from dovetail.crypto.certificates import (
    common_name,
    pin_of,
    require_no_authority,
    require_self_signed,
)
from dovetail.crypto.keyring import Keyring
from dovetail.crypto.keys import verify
from dovetail.errors import AgreementError, RemoteProtocolError

InvitedDuty = Literal["partner", "analyst"]
ENROLMENT = "enrolment"
"""What a request's signature is for."""
LONGEST_CERTIFICATE = 10_000
TOKEN_BYTES = 32


@dataclass(frozen=True)
class Invitation:
    """What one invited party needs to find and recognise the coordinator.

    Attributes:
        name: the invited party's.
        duty: what it is invited to do.
        address: of the coordinator, ``host:port``.
        coordinator: its name.
        certificate: its certificate, PEM.
        token: 64 hexadecimal digits that only the invited party knows; used once.
    """

    name: str
    duty: InvitedDuty
    address: str
    coordinator: str
    certificate: str
    token: str


@dataclass(frozen=True)
class Access:
    """Where an enrolled party finds the coordinator, and how it recognises it.

    Attributes:
        address: ``host:port``.
        coordinator: its name.
        certificate: its certificate, PEM.
    """

    address: str
    coordinator: str
    certificate: str


@dataclass(frozen=True)
class EnrolmentRequest:
    """An invited party's public keys.

    Attributes:
        name: the party's.
        duty: as it was invited.
        key: its Ed25519 public key.
        certificate: its certificate, PEM, self-signed.
        token: of its invitation.
        signature: with its signing key over all other fields.
    """

    name: str
    duty: InvitedDuty
    key: str
    certificate: str
    token: str
    signature: str

    @property
    def party(self) -> Party:
        """The party as terms name it."""
        return Party(self.name, self.key, pin_of(self.certificate.encode()))


def request_enrolment(invitation: Invitation, keyring: Keyring) -> EnrolmentRequest:
    """The answer to an invitation, from the keys that were made for it."""
    fields = {
        "name": invitation.name,
        "duty": invitation.duty,
        "key": keyring.signing.public,
        "certificate": keyring.certificate.decode(),
        "token": invitation.token,
    }
    signature = keyring.signing.sign(ENROLMENT, fields)
    return EnrolmentRequest(**fields, signature=signature)  # type: ignore[arg-type]


def check_request(request: EnrolmentRequest, token_digest: str) -> None:
    """Do nothing if a request answers the invitation whose token has this digest.

    Raises:
        RemoteProtocolError: another token, a signature that does not fit its key, or a
            certificate of another name or key.
        SettingError: the certificate cannot be read, or could issue others.
    """
    if digest_of(request.token) != token_digest:
        raise RemoteProtocolError(f"{request.name!r} was not invited with this token")
    signed = {k: v for k, v in vars(request).items() if k != "signature"}
    verify(request.key, request.signature, ENROLMENT, signed)
    certificate = request.certificate.encode()
    require_self_signed(certificate)
    require_no_authority(certificate)
    if common_name(certificate) != request.name:
        raise RemoteProtocolError(f"the certificate of {request.name!r} gives another name")


def digest_of(token: str) -> str:
    """What the coordinator keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def invitation_from_record(record: object) -> Invitation:
    """The invitation in ``vars(invitation)``.

    Raises:
        SettingError: a field is missing, unknown or of another type.
    """
    read = Fields(record, "invitation", tuple(Invitation.__dataclass_fields__))
    return Invitation(
        name=_name(read),
        duty=read.choice("duty", get_args(InvitedDuty)),
        address=read.text("address"),
        coordinator=read.text("coordinator"),
        certificate=_certificate(read),
        token=read.text("token"),
    )


def access_of(invitation: Invitation) -> Access:
    """What stays useful of an invitation once it was answered."""
    return Access(invitation.address, invitation.coordinator, invitation.certificate)


def require_coordinator(terms: Terms, certificate: bytes) -> None:
    """Do nothing if the terms pin this certificate for the coordinator.

    Args:
        terms: that all parties signed.
        certificate: the only one that is accepted of the server, PEM; from the invitation.

    Raises:
        AgreementError: they pin another one.
        SettingError: the certificate cannot be read.
    """
    if pin_of(certificate) != terms.coordinator.certificate:
        raise AgreementError(
            f"the terms pin another certificate for {terms.coordinator.name!r} than the "
            "invitation gave (access.json)"
        )


def access_from_record(record: object) -> Access:
    """The access in ``vars(access)``.

    Raises:
        SettingError: a field is missing, unknown or of another type.
    """
    read = Fields(record, "access", tuple(Access.__dataclass_fields__))
    return Access(read.text("address"), read.text("coordinator"), _certificate(read))


def request_from_record(record: object) -> EnrolmentRequest:
    """The request in ``vars(request)``; nothing is checked but its form.

    Raises:
        SettingError: a field is missing, unknown or of another type.
    """
    read = Fields(record, "enrolment request", tuple(EnrolmentRequest.__dataclass_fields__))
    return EnrolmentRequest(
        name=_name(read),
        duty=read.choice("duty", get_args(InvitedDuty)),
        key=read.text("key"),
        certificate=_certificate(read),
        token=read.text("token"),
        signature=read.text("signature"),
    )


def _name(read: Fields) -> str:
    name = read.text("name")
    require_name(name)
    return name


def _certificate(read: Fields) -> str:
    value = read.raw("certificate")
    text = value if isinstance(value, str) else ""
    one = text.startswith("-----BEGIN CERTIFICATE-----") and text.count("-----BEGIN") == 1
    good = one and len(text) <= LONGEST_CERTIFICATE
    require(good, f"{read.where}: certificate must be in PEM form, and one")
    return text
