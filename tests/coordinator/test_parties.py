"""Who may connect: invited, enrolled, revoked, each by real files and real keys."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dovetail.agreement.enrolment import EnrolmentRequest, Invitation, request_enrolment
from dovetail.agreement.files import read_parties
from dovetail.agreement.party import Party
from dovetail.agreement.terms import Terms
from dovetail.coordinator.parties import Parties, node_number
from dovetail.crypto.certificates import certificate_of, new_tls_key, pin_of, private_pem
from dovetail.crypto.keyring import Keyring, make_keyring
from dovetail.crypto.keys import new_signing_key
from dovetail.errors import DataError, RemoteProtocolError, SettingError
from dovetail.store.whole_file import write_whole
from dovetail.wire.peers import Peer
from tests.samples import terms

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ADDRESS = "coop.example:7433"


def fresh_keyring(name: str) -> Keyring:
    tls = new_tls_key()
    return Keyring(name, new_signing_key(), certificate_of(tls, name, NOW), private_pem(tls))


COOP = fresh_keyring("coop")


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties(tmp_path / "parties", COOP)


def invited(parties: Parties, name: str = "retailer") -> tuple[Invitation, EnrolmentRequest]:
    invitation = parties.invite(name, "partner", ADDRESS)
    return invitation, request_enrolment(invitation, fresh_keyring(name))


def test_who_was_invited_and_enrolled_is_a_node(parties: Parties) -> None:
    invitation, request = invited(parties)
    assert parties.peer(request.party.certificate) is None
    assert parties.enrol(request) == request.party
    expected = Peer("retailer", "node", node_number("retailer"))
    assert parties.peer(request.party.certificate) == expected
    assert request.certificate.encode() in parties.certificates()
    assert parties.enrolled() == (request,)
    assert invitation.certificate.encode() == COOP.certificate


def test_an_analyst_and_the_operator_have_roles_of_their_own(parties: Parties) -> None:
    invitation = parties.invite("ann", "analyst", ADDRESS)
    request = request_enrolment(invitation, fresh_keyring("ann"))
    parties.enrol(request)
    peer = parties.peer(request.party.certificate)
    assert peer is not None
    assert peer.role == "analyst"
    operator = parties.peer(COOP.pin)
    assert operator is not None
    assert (operator.name, operator.role) == ("coop", "operator")


def test_nobody_else_may_connect(parties: Parties) -> None:
    for pin in ("", "0" * 64, fresh_keyring("retailer").pin):
        assert parties.peer(pin) is None


def test_the_folder_and_its_files_are_the_operators_own_and_hold_no_token(
    parties: Parties, tmp_path: Path
) -> None:
    invitation, request = invited(parties)
    folder = tmp_path / "parties"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert invitation.token not in (folder / "retailer.invited").read_text()
    parties.enrol(request)
    assert not (folder / "retailer.invited").exists()
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"PRIVATE" not in everything
    assert read_parties(folder).coordinator == Party("coop", COOP.signing.public, COOP.pin)


def test_an_invitation_is_used_once(parties: Parties) -> None:
    invitation, request = invited(parties)
    parties.enrol(request)
    thief = request_enrolment(invitation, fresh_keyring("retailer"))
    for again in (request, thief):
        with pytest.raises(RemoteProtocolError, match="was not invited, or is enrolled already"):
            parties.enrol(again)
    assert parties.enrolled() == (request,)


def test_a_later_invitation_makes_an_earlier_one_void(parties: Parties) -> None:
    _, stale = invited(parties)
    _, request = invited(parties)
    with pytest.raises(RemoteProtocolError, match="not invited with this token"):
        parties.enrol(stale)
    parties.enrol(request)


Change = Callable[[EnrolmentRequest], EnrolmentRequest]


def resigned(request: EnrolmentRequest, **changes: str) -> EnrolmentRequest:
    """The request that somebody with keys of their own makes of another's."""
    own = fresh_keyring(changes.get("name", request.name))
    invitation = Invitation(request.name, request.duty, ADDRESS, "coop", "", request.token)
    return request_enrolment(replace(invitation, **changes), own)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, name="platform"),
        lambda r: replace(r, token="0" * 64),
        lambda r: replace(r, key=new_signing_key().public),
        lambda r: replace(r, certificate=fresh_keyring(r.name).certificate.decode()),
        lambda r: replace(r, signature="0" * 128),
        lambda r: replace(r, duty="analyst"),
        lambda r: resigned(r, name="platform"),
        lambda r: resigned(r, token="0" * 64),
        lambda r: resigned(r, duty="analyst"),
    ],
)
def test_a_request_that_does_not_answer_its_invitation_is_refused(
    change: Change, parties: Parties
) -> None:
    _, request = invited(parties)
    with pytest.raises(RemoteProtocolError):
        parties.enrol(change(request))
    assert parties.enrolled() == ()
    parties.enrol(request)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a" * 65, "coop", "COOP"])
def test_a_name_that_cannot_be_used_is_not_invited(name: str, parties: Parties) -> None:
    with pytest.raises(SettingError):
        parties.invite(name, "partner", ADDRESS)


def test_who_is_enrolled_is_not_invited_again_before_it_is_revoked(parties: Parties) -> None:
    _, request = invited(parties)
    parties.enrol(request)
    with pytest.raises(SettingError, match="revoke it first"):
        invited(parties)
    parties.revoke("retailer")
    assert parties.peer(request.party.certificate) is None
    assert request.certificate.encode() not in parties.certificates()
    assert parties.revoked() == ("retailer",)
    _, anew = invited(parties)
    with pytest.raises(RemoteProtocolError):
        parties.enrol(request)
    parties.enrol(anew)
    assert parties.revoked() == ()
    assert parties.peer(request.party.certificate) is None, "the old keys stay out"
    assert parties.peer(anew.party.certificate) is not None


@pytest.mark.parametrize("name", ["retailer", "../parties/retailer"])
def test_nobody_is_revoked_who_is_not_enrolled(name: str, parties: Parties) -> None:
    with pytest.raises(SettingError):
        parties.revoke(name)


def test_what_another_process_changes_is_noticed(parties: Parties, tmp_path: Path) -> None:
    command = Parties(tmp_path / "parties", COOP)
    _, request = invited(command)
    assert parties.enrolled() == ()
    command.enrol(request)
    assert parties.peer(request.party.certificate) is not None
    command.revoke("retailer")
    assert parties.peer(request.party.certificate) is None


def test_nothing_is_read_anew_while_nothing_changes(parties: Parties, tmp_path: Path) -> None:
    _, request = invited(parties)
    parties.enrol(request)
    folder, long_ago = tmp_path / "parties", 10**18
    os.utime(folder, ns=(long_ago, long_ago))
    assert parties.enrolled() == (request,)
    (folder / "retailer.request").write_text("not looked at")
    assert parties.enrolled() == (request,)
    os.utime(folder)
    with pytest.raises(SettingError):
        parties.enrolled()


def test_a_file_replaced_within_its_name_is_noticed(parties: Parties, tmp_path: Path) -> None:
    _, request = invited(parties)
    parties.enrol(request)
    assert parties.enrolled() == (request,)
    other = replace(request, key=new_signing_key().public)
    write_whole(tmp_path / "parties" / "retailer.request", json.dumps(vars(other)).encode())
    assert parties.enrolled() == (other,)


def pinning(request: EnrolmentRequest, **changes: str) -> Terms:
    """Terms that name the enrolled party, with some of its keys or others."""
    known = replace(request.party, **changes)
    partners = tuple(
        replace(p, key=known.key, certificate=known.certificate) if p.name == known.name else p
        for p in terms().partners
    )
    return replace(terms(), partners=partners)


def test_who_is_named_in_the_terms_connects_with_the_keys_that_they_pin(tmp_path: Path) -> None:
    agreed: list[Terms | None] = [None]
    parties = Parties(tmp_path / "parties", COOP, lambda: agreed[0])
    _, request = invited(parties)
    parties.enrol(request)
    pin = request.party.certificate
    for good in (None, pinning(request), replace(terms(), partners=terms().partners[1:])):
        agreed[0] = good
        assert parties.peer(pin) is not None
    others = ({"certificate": "a" * 64}, {"key": "a" * 64})
    for changes in others:
        agreed[0] = pinning(request, **changes)
        assert parties.peer(pin) is None


def test_a_second_start_keeps_what_is_there(parties: Parties, tmp_path: Path) -> None:
    _, request = invited(parties)
    own = (tmp_path / "parties" / "coordinator.party").read_text()
    again = Parties(tmp_path / "parties", COOP)
    again.enrol(request)
    assert (tmp_path / "parties" / "coordinator.party").read_text() == own


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "parties").write_text("a file")
    with pytest.raises(DataError, match="parties"):
        Parties(tmp_path / "parties", COOP)


def test_a_damaged_file_is_named(parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "parties" / "brand.request").write_text("{")
    with pytest.raises(SettingError, match=r"brand\.request"):
        parties.enrolled()


def test_numbers_are_the_same_everywhere_and_differ() -> None:
    names = [f"party-{i}" for i in range(1000)]
    assert len({node_number(name) for name in names}) == 1000
    assert all(0 < node_number(name) < 2**53 for name in names)
    assert node_number("retailer") == 60140833228031


def test_real_folders_of_keys_enrol(tmp_path: Path, parties: Parties) -> None:
    invitation = parties.invite("retailer", "partner", ADDRESS)
    keyring = make_keyring(tmp_path / "keys", "retailer", NOW)
    party = parties.enrol(request_enrolment(invitation, keyring))
    assert party.certificate == pin_of(keyring.certificate)
