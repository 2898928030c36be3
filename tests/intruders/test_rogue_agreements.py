"""A coordinator that shows a node another agreement, another clock, or no agreement at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedTerms, sign_terms
from dovetail.agreement.terms import Terms
from dovetail.crypto.keyring import Keyring, make_keyring
from dovetail.errors import PolicyError, SettingError
from dovetail.node.session import Session
from dovetail.node.settings import load_settings
from dovetail.store.agreement import KeptTerms
from dovetail.store.desk import Desk
from dovetail.wire.peers import DOCUMENT_BYTES
from tests.intruders.house import ANALYST, COORDINATOR, HOST, House, amended, now, with_task
from tests.intruders.rogues import (
    RogueCoordinator,
    attending,
    eventually,
    kept_versions,
    rogue_coordinator,
)
from tests.samples import TASK


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RogueCoordinator]:
    """A node that holds the second version of the terms."""
    house = House(tmp_path_factory.mktemp("house"))
    house.amend(max_rounds=10)
    with rogue_coordinator(house) as rogue:
        eventually(lambda: kept_versions(house.home("retailer")) == 2)
        yield rogue


Chain = Callable[[House], tuple[Terms | SignedTerms, ...]]


def third(house: House, **changes: Any) -> Terms:
    """A version that would follow the second."""
    return amended(house.versions[1], **changes)


def without(house: House, known: Terms, name: str) -> SignedTerms:
    """Terms that one party did not sign."""
    signed = house.signed(known)
    return replace(signed, signatures=tuple(s for s in signed.signatures if s.party != name))


def by_the_coordinator_alone(house: House, known: Terms) -> SignedTerms:
    """Terms with a signature for everybody, all made with the coordinator's key."""
    own = house.keys[COORDINATOR].signing
    (good,) = (s for s in house.signed(known).signatures if s.party == COORDINATOR)
    forged = [replace(good, party=party.name, key=party.key) for party, _ in known.parties]
    assert own.public == good.key
    return SignedTerms(known, (*forged, good))


def signed_in_place(house: House, name: str) -> SignedTerms:
    """A version in which a second key of the coordinator stands for a partner, and signs for it."""
    key = make_keyring(house.folder / f"as {name}", name, now())
    partners = tuple(
        replace(p, key=key.signing.public, certificate=key.pin) if p.name == name else p
        for p in house.versions[1].partners
    )
    return signed_with(house, third(house, partners=partners), key)


def signed_with(house: House, changed: Terms, key: Keyring) -> SignedTerms:
    """Terms that everybody signed, one of them with another key than it had."""
    keys = house.keys | {key.name: key}
    names = [party.name for party, _ in changed.parties]
    return SignedTerms(changed, tuple(sign_terms(changed, n, keys[n].signing) for n in names))


def another_coordinator(house: House) -> SignedTerms:
    """A version with another key for the coordinator, which the old one did not sign."""
    key = make_keyring(house.folder / "as coordinator", COORDINATOR, now())
    party = Party(COORDINATOR, key.signing.public, key.pin)
    return signed_with(house, third(house, coordinator=party), key)


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (lambda h: (h.versions[0],), "older or another"),
        (lambda h: (h.versions[1], h.versions[0]), "older or another"),
        (lambda h: (replace(h.versions[0], name="other club"),), "older or another"),
        (lambda h: (amended(h.versions[0], max_rounds=50),), "older or another"),
        (lambda h: (*h.versions, third(h, name="other club")), "another collaboration"),
        (lambda h: (*h.versions, replace(amended(h.versions[0]), version=3)), "follow other ones"),
        (lambda h: (*h.versions, amended(third(h), max_rounds=50)), "version 3 is missing"),
        (lambda h: (*h.versions, without(h, third(h), "retailer")), "not signed by retailer"),
        (lambda h: (*h.versions, without(h, third(h), "brand")), "not signed by brand"),
        (lambda h: (*h.versions, without(h, third(h), ANALYST)), "not signed by analyst"),
        (lambda h: (*h.versions, SignedTerms(third(h), ())), "not signed by"),
        (lambda h: (*h.versions, by_the_coordinator_alone(h, third(h))), "not signed by"),
        (
            lambda h: (*h.versions, replace(h.signed(third(h)), terms=third(h, max_rounds=50))),
            "not signed by",
        ),
        (lambda h: (*h.versions, signed_in_place(h, "brand")), "held until now by brand"),
        (lambda h: (*h.versions, signed_in_place(h, "retailer")), "held until now by retailer"),
        (lambda h: (*h.versions, another_coordinator(h)), "held until now by coordinator"),
    ],
)
def test_another_agreement_than_the_one_that_is_held(
    chain: Chain, why: str, stage: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    house, head = stage.house, stage.house.head("retailer")
    stage.show(house.document(*chain(house)))
    eventually(lambda: "refuses the agreement that was shown" in caplog.text)
    assert why in caplog.text
    with pytest.raises(PolicyError) as caught:
        stage.propose(house.asked(under=house.versions[0]))
    assert caught.value.rule == "terms"
    with pytest.raises(PolicyError) as caught:
        stage.propose(house.asked(with_task(rounds=11)))
    assert caught.value.rule == "rounds"
    assert house.head("retailer") == head
    assert stage.leaked() == []
    assert kept_versions(house.home("retailer")) == 2


def huge(text: str) -> bytes:
    return (text * (DOCUMENT_BYTES // len(text)))[: DOCUMENT_BYTES - 1000].encode()


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"agreements": {}}',
        b'{"agreements": [1]}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"agreements": [' + b"9" * 100_000 + b"]}",
        b'{"agreements": [' + b"{}," * 20_000 + b"{}]}",
        huge("x"),
        b'{"agreements": ["' + huge("x") + b'"]}',
        b'{"' + huge("x") + b'": 1}',
    ],
    ids=lambda document: f"{document[:16]!r} {len(document)}",
)
def test_what_is_no_agreement(
    document: bytes, stage: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    stage.show(document)
    eventually(lambda: "refuses the agreement that was shown" in caplog.text)
    assert "Traceback" not in caplog.text
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert stage.preview(stage.house.asked())["refused_by"] == ""


def test_no_agreement_at_all_changes_nothing(stage: RogueCoordinator) -> None:
    stage.show(b'{"agreements": []}')
    assert stage.preview(stage.house.asked())["refused_by"] == ""
    assert kept_versions(stage.house.home("retailer")) == 2


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[RogueCoordinator]:
    """A node that holds the first version, under which a job is open."""
    with rogue_coordinator(House(tmp_path)) as rogue:
        rogue.propose(rogue.house.asked())
        yield rogue


DAY = timedelta(days=1).total_seconds()


@pytest.mark.parametrize("ahead", [DAY, -DAY, 601.0, 1e11, -1e11, 1e300])
def test_a_clock_that_is_wrong(
    ahead: float, fresh: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    head, fresh.ahead = fresh.house.head("retailer"), ahead
    fresh.show(fresh.document)

    def asking() -> str:
        try:
            fresh.propose(fresh.house.asked())
        except PolicyError as error:
            return error.rule
        return ""

    eventually(lambda: asking() == "clock")
    for call in (lambda: fresh.train(1), lambda: fresh.preview(fresh.house.asked())):
        with pytest.raises(PolicyError) as caught:
            call()
        assert caught.value.rule == "clock"
    assert "clock: the clocks of node and coordinator differ by too much" in caplog.text
    assert fresh.house.head("retailer") == head
    fresh.close("job-1")
    assert fresh.house.spent("retailer") == 0
    assert fresh.leaked() == []


def test_a_round_of_a_job_that_the_newest_terms_no_longer_allow(fresh: RogueCoordinator) -> None:
    first = fresh.house.terms
    fresh.train(1)
    head = fresh.house.head("retailer")
    second = fresh.house.amend(purposes=("audit",))
    fresh.show(fresh.house.document(first, second))
    eventually(lambda: kept_versions(fresh.house.home("retailer")) == 2)

    def refusal() -> str:
        with pytest.raises(PolicyError) as caught:
            fresh.train(2)
        return caught.value.rule

    assert refusal() == "purpose"
    assert fresh.house.head("retailer") == head


def test_of_a_history_whose_last_version_is_refused_nothing_is_accepted(
    fresh: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    house, first = fresh.house, fresh.house.terms
    second = house.amend(max_rounds=2)
    fresh.show(house.document(first, second, SignedTerms(amended(second), ())))
    eventually(lambda: "not signed by" in caplog.text)
    assert kept_versions(house.home("retailer")) == 1
    with pytest.raises(PolicyError) as caught:
        fresh.propose(house.asked(Request("job-2", TASK)))
    assert caught.value.rule == "terms"
    assert fresh.propose(house.asked(Request("job-2", TASK), under=first)) == "job-2"


def test_what_could_not_be_kept_is_kept_the_next_time(tmp_path: Path) -> None:
    house = House(tmp_path)
    settings, keyring = load_settings(house.home("retailer") / "node.toml"), house.keys["retailer"]
    path, opened = tmp_path / "not there yet" / "agreement.json", list[Terms]()

    def open_node(known: Terms) -> Any:
        opened.append(known)
        raise SettingError("opens another time")

    kept = KeptTerms(path, "retailer", keyring.signing.public)
    session = Session(kept, open_node, Desk(settings.desk), now)
    with pytest.raises(SettingError, match="cannot be written"):
        session.welcome(house.document(house.terms), now())
    assert opened == [], "nothing runs under terms that a restart would forget"
    path.parent.mkdir()
    session.welcome(house.document(house.terms), now())
    assert kept_versions(path.parent) == 1
    assert opened == [house.terms]


def test_another_server_than_the_one_of_the_invitation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the coordinator's name and address, and another key."""
    house = House(tmp_path)
    impostor = make_keyring(tmp_path / "impostor", COORDINATOR, now(), [HOST])
    rogue = RogueCoordinator(house, identity=impostor)
    node = attending(house, "retailer")
    eventually(lambda: "is not the coordinator that was named" in caplog.text)
    assert rogue.server.nodes() == []
    assert not (house.home("retailer") / "agreement.json").exists()
    node.leave()
    rogue.stop()


def test_terms_that_begin_or_end_on_another_day(tmp_path: Path) -> None:
    today = now().date()
    for changes in (
        {"valid_from": today + timedelta(days=2)},
        {"valid_from": date(2024, 1, 1), "valid_until": today - timedelta(days=2)},
    ):
        house = House(tmp_path / str(len(changes)), **changes)
        rogue = RogueCoordinator(house)
        node = attending(house, "retailer")
        rogue.until_there()
        with pytest.raises(PolicyError) as caught:
            rogue.propose(house.asked())
        assert caught.value.rule == "terms"
        assert not (house.home("retailer") / "retailer.ledger").exists()
        node.leave()
        rogue.stop()
