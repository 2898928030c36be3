from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement.enrolment import (
    ENROLMENT,
    EnrolmentRequest,
    Invitation,
    access_from_record,
    access_of,
    check_request,
    digest_of,
    invitation_from_record,
    request_enrolment,
    request_from_record,
    require_coordinator,
)
from dovetail.agreement.terms import Terms
from dovetail.crypto.certificates import certificate_of, new_certificate, new_tls_key, pin_of
from dovetail.crypto.keyring import Keyring, make_keyring
from dovetail.errors import AgreementError, DovetailError, RemoteProtocolError, SettingError
from tests.agreement.conftest import key_of, read

VECTORS = read("enrolment.json")
NOW = datetime(2026, 11, 24, tzinfo=UTC)
TOKEN = "5f" * 32


@pytest.fixture(scope="module")
def server() -> str:
    certificate, _ = new_certificate("coordinator", NOW, ["localhost"])
    return certificate.decode()


@pytest.fixture
def invitation(server: str) -> Invitation:
    return Invitation("retailer", "partner", "localhost:8420", "coordinator", server, TOKEN)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path / "keys", "retailer", NOW)


def resigned(request: EnrolmentRequest, keyring: Keyring, **changes: Any) -> EnrolmentRequest:
    """The request with other fields, signed again by the same signing key."""
    fields = {**vars(request), **changes}
    del fields["signature"]
    return EnrolmentRequest(**fields, signature=keyring.signing.sign(ENROLMENT, fields))


def test_an_invited_party_enrols(invitation: Invitation, keyring: Keyring) -> None:
    invited = invitation_from_record(json.loads(json.dumps(vars(invitation))))
    request = request_enrolment(invited, keyring)
    received = request_from_record(json.loads(json.dumps(vars(request))))
    check_request(received, digest_of(TOKEN))
    assert received == request
    party = received.party
    assert (party.name, party.key, party.certificate) == (
        "retailer",
        keyring.signing.public,
        keyring.pin,
    )


def test_no_private_key_is_in_a_request(invitation: Invitation, keyring: Keyring) -> None:
    assert "PRIVATE" not in json.dumps(vars(request_enrolment(invitation, keyring)))


def test_what_stays_of_an_invitation_holds_no_token(invitation: Invitation) -> None:
    access = access_of(invitation)
    assert access_from_record(json.loads(json.dumps(vars(access)))) == access
    assert TOKEN not in json.dumps(vars(access))


def test_a_token_is_needed_and_only_its_digest_is_kept(
    invitation: Invitation, keyring: Keyring
) -> None:
    request = request_enrolment(invitation, keyring)
    assert TOKEN not in digest_of(TOKEN)
    for token in ("5e" * 32, "", TOKEN.upper(), digest_of(TOKEN)):
        with pytest.raises(RemoteProtocolError, match="'retailer' was not invited with this"):
            check_request(resigned(request, keyring, token=token), digest_of(TOKEN))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("duty", "analyst"),
        ("name", "platform"),
        ("key", key_of("platform").public),
        ("certificate", new_certificate("retailer", NOW)[0].decode()),
        ("signature", "00" * 64),
        ("signature", "no hex"),
        ("key", "no hex"),
    ],
)
def test_a_tampered_field_is_found(
    field: str, value: Any, invitation: Invitation, keyring: Keyring
) -> None:
    request = replace(request_enrolment(invitation, keyring), **{field: value})
    with pytest.raises(RemoteProtocolError, match="the signature of the enrolment does not fit"):
        check_request(request, digest_of(TOKEN))


def test_a_certificate_of_another_name_is_refused(invitation: Invitation, keyring: Keyring) -> None:
    other, _ = new_certificate("platform", NOW)
    request = resigned(request_enrolment(invitation, keyring), keyring, certificate=other.decode())
    with pytest.raises(RemoteProtocolError, match="the certificate of 'retailer' gives another"):
        check_request(request, digest_of(TOKEN))


def test_a_certificate_signed_by_another_key_is_refused(
    invitation: Invitation, keyring: Keyring
) -> None:
    mine = certificate_of(new_tls_key(), "retailer", NOW).decode()
    half = mine.splitlines()
    flipped = "A" if half[-3][0] != "A" else "B"
    half[-3] = flipped + half[-3][1:]
    request = request_enrolment(invitation, keyring)
    tampered = resigned(request, keyring, certificate="\n".join(half) + "\n")
    with pytest.raises(DovetailError, match=r"not signed by its own key|no certificate"):
        check_request(tampered, digest_of(TOKEN))


READERS: dict[str, Callable[[object], object]] = {
    "invitation": invitation_from_record,
    "request": request_from_record,
    "access": access_from_record,
}


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_a_malformed_file_is_refused(
    vector: dict[str, Any], invitation: Invitation, keyring: Keyring
) -> None:
    good = {
        "invitation": vars(invitation),
        "request": vars(request_enrolment(invitation, keyring)),
        "access": vars(access_of(invitation)),
    }[vector["of"]]
    record = {**good, **vector.get("set", {})}
    for name in vector.get("unset", ()):
        del record[name]
    with pytest.raises(SettingError) as caught:
        READERS[vector["of"]](record)
    assert vector["message"] in str(caught.value)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("record", [None, 1, "x", [], [{}]])
def test_what_is_no_table_is_refused(reader: Callable[[object], object], record: object) -> None:
    with pytest.raises(SettingError, match="expected a table"):
        reader(record)


def test_the_server_is_the_one_that_the_terms_pin(invitation: Invitation, terms: Terms) -> None:
    certificate = invitation.certificate.encode()
    pinned = replace(terms.coordinator, certificate=pin_of(certificate))
    require_coordinator(replace(terms, coordinator=pinned), certificate)
    with pytest.raises(AgreementError, match="pin another certificate for 'coordinator' than"):
        require_coordinator(terms, certificate)
