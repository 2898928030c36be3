"""Who is nobody, or somebody else, before a real coordinator: turned away and noted."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dovetail.agreement.enrolment import request_enrolment
from dovetail.crypto.certificates import certificate_of, new_tls_key, private_pem
from dovetail.crypto.keyring import Keyring
from dovetail.crypto.keys import new_signing_key
from dovetail.errors import PolicyError, RemoteProtocolError, SettingError, TransportError
from dovetail.wire.attendance import Attendance
from dovetail.wire.control import METHODS, ControlClient
from dovetail.wire.peers import Access
from dovetail.wire.probe import probe
from tests.intruders.house import ANALYST, COORDINATOR, House, now
from tests.intruders.offices import Office, office, refused_links
from tests.intruders.rogues import PATIENCE, Attending, attending, eventually

TURNED_AWAY = "cannot be reached, or turned this certificate away"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A coordinator to which one honest node has connected."""
    with office(House(tmp_path_factory.mktemp("house")), "platform") as made:
        yield made


@pytest.fixture
def desk(opened: Office) -> Iterator[Office]:
    """The same, for a test after which nobody else is connected and nothing was asked."""
    heads = opened.heads()
    yield opened
    assert opened.connected() == {"platform"}
    assert opened.jobs() == []
    assert heads.items() <= opened.heads().items()


def fresh(name: str, days: int = 730, begins: timedelta = timedelta(0)) -> Keyring:
    """Keys that nobody knows yet."""
    key = new_tls_key()
    pem = certificate_of(key, name, now() + begins, days=days)
    return Keyring(name, new_signing_key(), pem, private_pem(key))


def issued(name: str, issuer: Keyring) -> Keyring:
    """Keys with a certificate that somebody issues as an authority would."""
    key, authority = new_tls_key(), x509.load_pem_x509_certificate(issuer.certificate)
    signing = serialization.load_pem_private_key(issuer.tls_key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    pem = (
        x509.CertificateBuilder(
            issuer_name=authority.subject,
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        )
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .sign(signing, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    return Keyring(name, new_signing_key(), pem + issuer.certificate, private_pem(key))


def authority(name: str, may_issue: bool | None = True) -> Keyring:
    """Keys with a certificate that may issue others, or does not say whether it may."""
    key = new_tls_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=may_issue is True, path_length=None), True)
    )
    if may_issue:
        usage = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
        usage |= {"digital_signature": True, "key_cert_sign": True}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Keyring(name, new_signing_key(), pem, private_pem(key))


def reason_for(access: Access) -> str:
    """Why somebody with this access cannot attend."""
    attendance = Attendance(access, bytes, lambda *_: None)
    node = Attending(attendance.run)
    eventually(lambda: attendance.state.phase == "waiting")
    node.leave()
    return attendance.state.reason


def turned_away(access: Access) -> None:
    """Asserts that somebody can neither attend, nor look, nor ask."""
    assert TURNED_AWAY in reason_for(access)
    with pytest.raises(TransportError, match=TURNED_AWAY):
        probe(access, PATIENCE)
    with ControlClient(access) as client, pytest.raises(TransportError, match=TURNED_AWAY):
        client.call("List", {"states": [], "limit": 1, "before": ""})


Intruder = Callable[[House], Keyring]


@pytest.mark.parametrize(
    "intruder",
    [
        lambda h: fresh("stranger"),
        lambda h: fresh("retailer"),
        lambda h: fresh(COORDINATOR),
        lambda h: issued("retailer", authority("authority")),
        lambda h: issued("retailer", h.keys["brand"]),
        lambda h: issued(COORDINATOR, h.keys["brand"]),
        lambda h: replace(h.keys["retailer"], tls_key=h.keys["brand"].tls_key),
        lambda h: replace(h.keys["brand"], certificate=h.keys["retailer"].certificate),
        lambda h: replace(h.keys[ANALYST], certificate=h.keys[COORDINATOR].certificate),
    ],
    ids=[
        "unknown",
        "a partner's name",
        "the coordinator's name",
        "a foreign authority",
        "issued by a partner",
        "issued by a partner to the coordinator",
        "a partner's certificate with another's key",
        "another partner's certificate",
        "the coordinator's certificate",
    ],
)
def test_somebody_whose_certificate_is_not_enrolled_or_not_theirs(
    intruder: Intruder, desk: Office
) -> None:
    turned_away(desk.house.access(intruder(desk.house)))


@pytest.mark.parametrize("service", ["Federation/Attend", "Federation/Look", "Control/List"])
def test_nobody_without_a_certificate_or_without_tls(service: str, desk: Office) -> None:
    own = desk.house.keys[COORDINATOR].certificate
    address = desk.house.address
    for channel in (
        grpc.secure_channel(address, grpc.ssl_channel_credentials(own)),
        grpc.insecure_channel(address),
    ):
        with channel, pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(f"/dovetail.v1.{service}")(b"", timeout=PATIENCE))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "keyring",
    [fresh("latecomer", days=-1), fresh("early", begins=timedelta(days=9))],
    ids=["expired", "not yet valid"],
)
def test_a_certificate_outside_its_days(keyring: Keyring, desk: Office) -> None:
    desk.house.enrol(keyring.name, "partner", keyring)
    turned_away(desk.house.access(keyring))
    desk.house.parties.revoke(keyring.name)


def test_who_was_revoked_or_whose_invitation_was_used(desk: Office) -> None:
    house = desk.house
    keyring = house.enrol("leaver", "analyst")
    with desk.client(keyring) as client:
        assert client.call("Agreement", {})["agreements"]
        for method in ("Nodes", "List"):
            with pytest.raises(PolicyError, match="no agreement that all signed names 'leaver'"):
                client.call(method, {})
        house.parties.revoke("leaver")
        with pytest.raises(TransportError, match="not enrolled, or was revoked"):
            client.call("Nodes", {})
    turned_away(house.access(keyring))
    assert "leaver" in house.parties.revoked()


def test_a_node_that_is_revoked_while_it_attends(
    desk: Office, caplog: pytest.LogCaptureFixture
) -> None:
    node = attending(desk.house, "brand")
    desk.until_there("brand")
    eventually((desk.house.home("brand") / "brand.ledger").exists)
    desk.house.parties.revoke("brand")
    eventually(lambda: "brand" not in desk.connected())
    eventually(lambda: "not connected: the certificate was revoked" in caplog.text)
    node.leave()
    turned_away(desk.house.access(desk.house.keys["brand"]))


def test_a_party_that_enrolled_again_with_other_keys_than_the_terms_pin(
    desk: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who is talked into a second enrolment does not hand a partner over."""
    house = desk.house
    house.parties.revoke("retailer")
    thief = fresh("retailer")
    house.enrol("retailer", "partner", thief)
    assert "not enrolled" in reason_for(house.access(thief))
    assert "the certificate is not enrolled, or was revoked" in refused_links(caplog)
    house.parties.revoke("retailer")


@pytest.mark.parametrize("may_issue", [True, None], ids=["an authority's", "of no stated use"])
def test_a_certificate_that_could_issue_others_is_not_enrolled(
    may_issue: bool | None, desk: Office
) -> None:
    """Trusted as its own, it would be an authority: whom it vouches for would be let in."""
    with pytest.raises(SettingError, match=r"issue other certificates|what its key is for"):
        desk.house.enrol("sly", "partner", authority("sly", may_issue=may_issue))


def test_a_node_that_asks_for_control(desk: Office, caplog: pytest.LogCaptureFixture) -> None:
    with desk.client(desk.house.keys["platform"]) as client:
        for method in METHODS:
            with pytest.raises(TransportError, match="node 'platform' may not use Control"):
                client.call(method, {"job": "job-1"})
        with pytest.raises(TransportError, match="may not use Control"):
            list(client.watch({"job": "", "after": 0}))
        with pytest.raises(TransportError, match="may not use Control"):
            client.fetch({"job": "job-1"}, lambda _: None)
    assert refused_links(caplog) == ["node 'platform' may not use Control"] * (len(METHODS) + 2)


@pytest.mark.parametrize(("name", "role"), [(ANALYST, "analyst"), (COORDINATOR, "operator")])
def test_who_is_no_node_and_attends(
    name: str, role: str, desk: Office, caplog: pytest.LogCaptureFixture
) -> None:
    access = desk.house.access(desk.house.keys[name])
    why = f"{role} {name!r} may not attend"
    assert reason_for(access) == why
    with pytest.raises(TransportError, match=why):
        probe(access, PATIENCE)
    assert refused_links(caplog) == [why, why]


def test_a_node_with_another_partners_keys_does_not_start(desk: Office, tmp_path: Path) -> None:
    house = House(tmp_path)
    node = attending(house, "retailer", keys="brand")
    eventually(lambda: node.failed)
    assert node.failed == "the keys belong to 'brand', not to 'retailer'"
    node.leave()


def test_invitations_and_requests_that_do_not_fit(desk: Office) -> None:
    """Enrolment is by files; whoever brings one may have made it."""
    parties = desk.house.parties
    invitation = parties.invite("newcomer", "analyst", desk.house.address)
    keyring = fresh("newcomer")
    good = request_enrolment(invitation, keyring)
    thief = request_enrolment(replace(invitation, token="0" * 64), keyring)
    for request in (
        thief,
        replace(good, key=new_signing_key().public),
        replace(good, certificate=fresh("newcomer").certificate.decode()),
        replace(good, duty="partner"),
        request_enrolment(replace(invitation, duty="partner"), keyring),
        request_enrolment(invitation, fresh("retailer")),
        replace(good, name="somebody"),
        replace(good, name="../retailer"),
        replace(good, signature="0" * 128),
    ):
        with pytest.raises((RemoteProtocolError, SettingError)):
            parties.enrol(request)
    parties.enrol(good)
    with pytest.raises(RemoteProtocolError, match="not invited, or is enrolled already"):
        parties.enrol(good)
    parties.revoke("newcomer")


def test_two_nodes_of_one_partner_take_each_others_place(desk: Office) -> None:
    """Who has all of a partner's keys is that partner; it still sits on one chair only."""
    access = desk.house.access(desk.house.keys["platform"])
    attendance = Attendance(access, bytes, lambda *_: None)
    stop = threading.Event()
    thread = threading.Thread(target=attendance.run, args=(stop,), daemon=True)
    thread.start()
    eventually(lambda: attendance.state.reason)
    assert [link.name for link in desk.coordinator._server.links()].count("platform") <= 1
    stop.set()
    thread.join(PATIENCE)
    desk.until_there("platform")
