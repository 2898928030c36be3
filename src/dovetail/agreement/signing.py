"""Who signed what: terms by all parties, requests by who asks, permits by the partner that gives.

Everything that one company acts on because another said so carries that company's signature, so
that a coordinator that carries messages can neither make them up nor change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.party import Party
from dovetail.agreement.permit import Permit, permit_from_record, permit_to_record
from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.crypto.keyring import Keyring
from dovetail.crypto.keys import SigningKey, verify
from dovetail.errors import AgreementError, PolicyError, RemoteProtocolError, SettingError

TERMS: Final = "agreement"
REQUEST: Final = "request"
PREVIEW: Final = "preview"
PERMIT: Final = "permit"
"""What a signature is for; part of what is signed."""
Asking = Literal["preview", "request"]
"""Asking what a request would cost, or for it to run."""


@dataclass(frozen=True)
class Signature:
    """One party's yes to terms.

    Attributes:
        party: its name in the terms.
        key: its public key, 64 hexadecimal digits.
        signature: over the terms, 128 hexadecimal digits.
    """

    party: str
    key: str
    signature: str


@dataclass(frozen=True)
class SignedTerms:
    """Terms and the signatures that came with them, checked by nobody yet."""

    terms: Terms
    signatures: tuple[Signature, ...]

    def signed_by(self, key: str) -> bool:
        """Whether the owner of a public key signed these terms."""
        for signature in self.signatures:
            if signature.key == key:
                try:
                    verify(key, signature.signature, TERMS, agreed.to_record(self.terms))
                except RemoteProtocolError:
                    continue
                return True
        return False

    def missing(self) -> tuple[str, ...]:
        """The parties that did not sign, by name."""
        return tuple(p.name for p, _ in self.terms.parties if not self.signed_by(p.key))


@dataclass(frozen=True)
class SignedRequest:
    """A request, and who asks it under which terms.

    Attributes:
        request: what is asked.
        terms_digest: under which terms, exactly.
        asked_by: the name in the terms of the party that asks.
        signature: of that party over the digests of both, to price the request or to run it.
    """

    request: Request
    terms_digest: str
    asked_by: str
    signature: str


@dataclass(frozen=True)
class SignedPermit:
    """A permit and its partner's signature."""

    permit: Permit
    signature: str


def sign_terms(
    terms: Terms, party: str, key: SigningKey, previous: Terms | None = None
) -> Signature:
    """One party's yes to these terms.

    Args:
        terms: what is signed.
        party: who signs.
        key: its key.
        previous: the version before, if the key is the one that these terms replace.

    Raises:
        AgreementError: the terms know no such party, or pin another key for it.
    """
    if party not in [p.name for p, _ in terms.parties]:
        raise AgreementError(f"the terms name no party {party!r}")
    pinned = [p.key for t in (terms, previous) if t for p, _ in t.parties if p.name == party]
    if key.public not in pinned:
        raise AgreementError(f"the terms pin another key for {party!r} than this one")
    return Signature(party, key.public, key.sign(TERMS, agreed.to_record(terms)))


def sign_as(terms: Terms, keyring: Keyring, previous: Terms | None = None) -> Signature:
    """The yes of a party to terms that pin both of its keys, as :func:`sign_terms`.

    Raises:
        AgreementError: the terms know no such party, or pin other keys for it.
    """
    signature = sign_terms(terms, keyring.name, keyring.signing, previous)
    party, _ = terms.party(keyring.name)
    if party.key == signature.key and party.certificate != keyring.pin:
        raise AgreementError(f"the terms pin another certificate for {party.name!r} than it has")
    return signature


def sign_request(
    request: Request,
    terms_digest: str,
    asked_by: str,
    key: SigningKey,
    purpose: Asking = REQUEST,
) -> SignedRequest:
    """A request as its asker signs it, to have it run or only priced."""
    signature = key.sign(purpose, _asked(request, terms_digest, asked_by))
    return SignedRequest(request, terms_digest, asked_by, signature)


def require_asked(signed: SignedRequest, terms: Terms, purpose: Asking = REQUEST) -> None:
    """Do nothing if a party that may ask did ask this, under these terms.

    Args:
        signed: what is asked.
        terms: under which terms.
        purpose: what is to be done with it. What was signed to be priced is never run; what was
            signed to run may be priced too, since running it tells more.

    Raises:
        PolicyError: rule ``terms`` (it was asked under other terms), ``party`` (the terms do not
            know who asks, or the signature is not theirs, or not for this) or ``role`` (they may
            not ask).
    """
    if signed.terms_digest != agreed.digest(terms):
        raise PolicyError("terms", "the request was made under other terms than are in force here")
    require_asker(signed, terms, purpose)


def require_asker(signed: SignedRequest, terms: Terms, purpose: Asking = REQUEST) -> None:
    """Do nothing if a party that may ask under these terms did ask this, under whichever terms.

    For a job that runs while terms are amended: :func:`require_asked` admits it.

    Raises:
        PolicyError: rule ``party`` or ``role``, as :func:`require_asked`, whose arguments these
            are; a party whose key was replaced since has to ask anew.
    """
    asker = {p.name: (p, duty) for p, duty in terms.parties}.get(signed.asked_by)
    if asker is None:
        raise PolicyError("party", "the terms do not know who asks")
    party, duty = asker
    if duty == "partner":
        raise PolicyError("role", "a partner brings customers; it cannot ask for jobs")
    if _signed_for(signed, party, REQUEST):
        return
    if not _signed_for(signed, party, PREVIEW):
        raise PolicyError("party", f"{party.name!r} did not sign this request")
    if purpose != PREVIEW:
        raise PolicyError("party", f"{party.name!r} signed this request to be priced, not to run")


def sign_permit(permit: Permit, key: SigningKey) -> SignedPermit:
    """A permit as its partner signs it."""
    return SignedPermit(permit, key.sign(PERMIT, permit_to_record(permit)))


def require_permitted(signed: SignedPermit, partner: Party) -> None:
    """Raise :class:`RemoteProtocolError` unless the partner signed this permit."""
    verify(partner.key, signed.signature, PERMIT, permit_to_record(signed.permit))


def signed_terms_record(signed: SignedTerms) -> dict[str, object]:
    """The signed terms as JSON-able data."""
    return {
        "terms": agreed.to_record(signed.terms),
        "signatures": [vars(signature) for signature in signed.signatures],
    }


def signed_terms_from_record(record: object) -> SignedTerms:
    """What :func:`signed_terms_record` wrote; no signature is checked.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range.
    """
    read = Fields(record, "agreement", ("terms", "signatures"))
    signatures = tuple(signature_from_record(item) for item in read.items("signatures"))
    return SignedTerms(parse_terms(read.raw("terms")), signatures)


def signature_from_record(record: object) -> Signature:
    """One signature of terms, from plain data.

    Raises:
        SettingError: a field is missing, unknown or of another type.
    """
    read = Fields(record, "agreement.signatures", ("party", "key", "signature"))
    return Signature(read.text("party"), read.text("key"), read.text("signature"))


def chain_record(chain: Iterable[SignedTerms]) -> dict[str, object]:
    """All versions of an agreement, oldest first, as JSON-able data."""
    return {"agreements": [signed_terms_record(signed) for signed in chain]}


def chain_from_record(record: object) -> tuple[SignedTerms, ...]:
    """What :func:`chain_record` wrote; nothing is checked but its form.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range.
    """
    read = Fields(record, "agreements", ("agreements",))
    return tuple(signed_terms_from_record(item) for item in read.items("agreements"))


def request_record(signed: SignedRequest) -> dict[str, object]:
    """The signed request as JSON-able data."""
    return {
        "request": requests.to_record(signed.request),
        "terms_digest": signed.terms_digest,
        "asked_by": signed.asked_by,
        "signature": signed.signature,
    }


def request_from_record(record: object) -> SignedRequest:
    """What :func:`request_record` wrote; the signature is not checked.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range.
    """
    names = ("request", "terms_digest", "asked_by", "signature")
    read = Fields(record, "signed request", names)
    return SignedRequest(
        requests.from_record(read.raw("request")),
        read.text("terms_digest"),
        read.text("asked_by"),
        read.text("signature"),
    )


def permit_record(signed: SignedPermit) -> dict[str, object]:
    """The signed permit as JSON-able data."""
    return {"permit": permit_to_record(signed.permit), "signature": signed.signature}


def signed_permit_from_record(record: object) -> SignedPermit:
    """What :func:`permit_record` wrote; the signature is not checked.

    Raises:
        RemoteProtocolError: it is no permit.
    """
    try:
        read = Fields(record, "signed permit", ("permit", "signature"))
        return SignedPermit(permit_from_record(read.raw("permit")), read.text("signature"))
    except SettingError as error:
        raise RemoteProtocolError(str(error)) from None


def _signed_for(signed: SignedRequest, party: Party, purpose: Asking) -> bool:
    asked = _asked(signed.request, signed.terms_digest, signed.asked_by)
    try:
        verify(party.key, signed.signature, purpose, asked)
    except RemoteProtocolError:
        return False
    return True


def _asked(request: Request, terms_digest: str, asked_by: str) -> Mapping[str, Any]:
    return {
        "request_digest": requests.digest(request),
        "terms_digest": terms_digest,
        "asked_by": asked_by,
    }
