"""A node's side of its collaboration: which terms it trusts, when it answers, what it always hears.

Messages go through the very handler that the wire calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    chain_record,
    request_record,
    sign_request,
    signed_permit_from_record,
)
from dovetail.agreement.terms import Terms
from dovetail.coordinator.round import initial_arrays
from dovetail.crypto.keyring import make_keyring
from dovetail.errors import (
    AgreementError,
    DovetailError,
    LedgerError,
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
)
from dovetail.flower import actions
from dovetail.flower.grid import ask
from dovetail.node.opening import OpenNode, kept_terms
from dovetail.node.session import Session
from dovetail.node.settings import load_settings
from dovetail.simulation.identities import signing_key
from dovetail.store.desk import Desk
from dovetail.store.model import load_model
from dovetail.wire.memory import MemoryChannel
from tests.node.homes import (
    REQUEST,
    agree,
    amended,
    asked,
    keyring,
    pinned,
    released,
    replaced,
    signed,
    terms_of,
    write_homes,
)
from tests.samples import TASK, terms

NODE = 5


@dataclass
class Clock:
    now: datetime = field(default_factory=lambda: datetime(2026, 5, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now


class Partner:
    """The session of one partner that starts with nothing trusted, and how others see it."""

    def __init__(self, home: Path) -> None:
        settings, keys = load_settings(home / "node.toml"), keyring(home)
        self.home, self.clock, self.desk = home, Clock(), Desk(settings.desk)
        self.opened: list[Terms] = []
        self.settings, self.keys = settings, keys

        def open_node(known: Terms) -> OpenNode:
            self.opened.append(known)
            return OpenNode(settings, known, keys, clock=self.clock, child=False)

        self.session = Session(
            kept_terms(settings, keys),
            open_node,
            self.desk,
            self.clock,
        )
        self._channel = MemoryChannel({NODE: self.session.handle})

    def show(self, *versions: Terms, ahead: timedelta = timedelta(0)) -> None:
        """The coordinator's welcome."""
        chain = chain_record(signed(self.home.parent, version) for version in versions)
        self.session.welcome(json.dumps(chain).encode(), self.clock() + ahead)

    def ask(self, message: Message) -> Message:
        ((_, reply),) = ask(self._channel, [message], 60.0)
        if isinstance(reply, DovetailError):
            raise reply
        return reply

    def propose(self, known: Terms, request: Request = REQUEST) -> str:
        record = request_record(asked(known, request))
        reply = self.ask(actions.propose_message(NODE, record))
        return signed_permit_from_record(actions.permit_of(reply)).permit.request_digest

    def preview(self, known: Terms) -> Any:
        record = request_record(asked(known))
        return actions.preview_of(self.ask(actions.preview_message(NODE, record)))

    def train(self, known: Terms, number: int, request: Request = REQUEST) -> None:
        record, arrays = requests.to_record(request), initial_arrays(request.task, known.schema)
        self.ask(actions.train_messages({NODE: 1.0}, number, record, arrays)[0])

    def close(self, job: str = "job-1") -> None:
        self.ask(actions.close_message(NODE, job))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


@pytest.fixture
def first(home: Path) -> Terms:
    return terms_of(home)


@pytest.fixture
def partner(home: Path, first: Terms) -> Iterator[Partner]:
    """A partner that has never met its coordinator."""
    (home / "agreement.json").unlink()
    one = Partner(home)
    yield one
    one.session.shut()


def refused(rule: str) -> pytest.RaisesExc[PolicyError]:
    return pytest.RaisesExc(PolicyError, check=lambda error: error.rule == rule)


def test_nothing_is_answered_before_terms_were_shown(partner: Partner, first: Terms) -> None:
    for call in (partner.preview, partner.propose, lambda known: partner.train(known, 1)):
        with refused("terms"):
            call(first)
    with refused("terms"):
        partner.close()
    partner.show()
    with refused("terms"):
        partner.propose(first)
    assert partner.opened == []


def test_terms_that_all_signed_are_trusted_kept_and_worked_under(
    partner: Partner, first: Terms
) -> None:
    partner.show(first)
    assert partner.opened == [first]
    assert partner.propose(first) == requests.digest(REQUEST)
    partner.train(first, 1)
    kept = kept_terms(partner.settings, partner.keys).trusted
    assert kept.newest == first
    partner.show(first)
    assert partner.opened == [first], "the same again opens nothing"


def test_a_node_that_trusts_terms_already_opens_without_its_coordinator(
    home: Path, first: Terms
) -> None:
    one = Partner(home)
    one.session.prepare()
    assert one.propose(first)
    one.session.shut()


def test_an_amendment_is_followed_and_opened_under(partner: Partner, first: Terms) -> None:
    partner.show(first)
    partner.propose(first)
    second = amended(first, max_rounds=2)
    partner.show(first, second)
    assert partner.opened == [first, second]
    with refused("terms"):
        partner.propose(first, Request("job-2", TASK))
    with refused("rounds"):
        partner.train(second, 1)
    with refused("rounds"):
        partner.propose(second, Request("job-2", TASK))
    assert partner.propose(second, Request("job-3", replace(TASK, rounds=2)))
    partner.close()


def handed(partner: Partner, *versions: Terms) -> None:
    """People at the partner hand its node these versions, in a process of their own."""
    chain = [signed(partner.home.parent, version) for version in versions]
    assert kept_terms(partner.settings, partner.keys).follow(chain)


def test_what_people_hand_over_holds_before_the_next_round(partner: Partner, first: Terms) -> None:
    partner.show(first)
    partner.propose(first)
    partner.train(first, 1)
    second = amended(first, max_rounds=2)
    handed(partner, first, second)
    with refused("rounds"):
        partner.train(second, 2)
    assert partner.opened == [first, second]
    for call in (partner.propose, partner.preview):
        with pytest.raises(PolicyError, match="an older or another agreement was shown than the"):
            call(first)
    with pytest.raises(AgreementError, match="an older or another agreement was shown"):
        partner.show(first)
    assert partner.propose(second, Request("job-3", replace(TASK, rounds=2)))
    partner.show(first, second)
    assert partner.opened == [first, second]


def test_what_people_hand_over_is_opened_without_being_asked(
    partner: Partner, first: Terms
) -> None:
    handed(partner, first)
    assert partner.session.look()
    assert not partner.session.look()
    assert partner.opened == [first]
    assert partner.propose(first)


def test_an_amendment_that_has_not_begun_stops_what_held_before(
    partner: Partner, first: Terms
) -> None:
    partner.show(first)
    partner.propose(first)
    second = amended(first, valid_from=date(2026, 6, 1))
    handed(partner, first, second)
    for call in (lambda: partner.train(first, 1), lambda: partner.propose(second)):
        with refused("terms"):
            call()
    partner.close()


def test_terms_that_replaced_the_key_that_a_running_node_has_stop_it(
    partner: Partner, first: Terms, tmp_path: Path
) -> None:
    partner.show(first)
    partner.propose(first)
    new = make_keyring(tmp_path / "new", "retailer", partner.clock())
    chain = replaced(tmp_path, first, new)
    with pytest.raises(AgreementError, match="another key for 'retailer' than it has"):
        partner.session.welcome(json.dumps(chain_record(chain)).encode(), partner.clock())
    partner.train(first, 1)
    assert kept_terms(partner.settings, new).follow(chain)
    with pytest.raises(PolicyError, match="another key for 'retailer' than it has"):
        partner.train(first, 2)


def test_an_amendment_without_who_asked_for_it_stops_a_running_job(
    partner: Partner, first: Terms, tmp_path: Path
) -> None:
    party = Party("analyst", signing_key("analyst").public, "a" * 64)
    known = replace(first, analysts=(party,))
    request = sign_request(REQUEST, agreed.digest(known), "analyst", signing_key("analyst"))
    partner.show(known)
    partner.ask(actions.propose_message(NODE, request_record(request)))
    partner.train(known, 1)
    partner.session.shut()
    again = Partner(partner.home)
    again.show(known, amended(known, max_rounds=40))
    again.train(known, 2)
    without = amended(amended(known, max_rounds=40), analysts=())
    again.show(known, amended(known, max_rounds=40), without)
    with refused("party"):
        again.train(known, 3)
    again.close()
    again.session.shut()


def test_an_amendment_that_drops_a_column_stops_a_running_job_by_that_rule(
    partner: Partner, first: Terms
) -> None:
    partner.show(first)
    partner.propose(first)
    columns = tuple(column for column in first.schema.columns if column.name != "spend")
    second = amended(first, schema=replace(first.schema, columns=columns))
    partner.show(first, second)
    with refused("column"):
        partner.train(first, 1)


@pytest.mark.parametrize("what", ["older", "another", "forged", "unsigned", "stranger"])
def test_an_agreement_that_cannot_follow_is_refused_and_the_old_one_stays(
    what: str, partner: Partner, first: Terms, tmp_path: Path
) -> None:
    second = amended(first, max_rounds=10)
    partner.show(first, second)
    shown: dict[str, list[Any]] = {
        "older": [signed(tmp_path, first)],
        "another": [signed(tmp_path, replace(first, name="other club"))],
        "forged": [replace(signed(tmp_path, second), terms=amended(second, max_rounds=50))],
        "unsigned": [replace(signed(tmp_path, amended(second)), signatures=())],
        "stranger": [signed(tmp_path, replace(first, minimum_cohort=60))],
    }
    document = json.dumps(chain_record(shown[what])).encode()
    with pytest.raises(AgreementError):
        partner.session.welcome(document, partner.clock())
    assert partner.propose(second)
    assert kept_terms(partner.settings, partner.keys).trusted.newest == second


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"\xff", b"[]", b'{"agreements": 1}', b'{"agreements": [{}]}', b"[" * 100_000],
)
def test_a_welcome_that_cannot_be_read_changes_nothing(
    document: bytes, partner: Partner, first: Terms
) -> None:
    partner.show(first)
    with pytest.raises(AgreementError):
        partner.session.welcome(document, partner.clock())
    assert partner.propose(first)


def test_terms_that_pin_another_key_for_this_partner_are_refused(
    partner: Partner, first: Terms, tmp_path: Path
) -> None:
    keys = keyring(tmp_path / "brand").signing.public, keyring(tmp_path / "brand").pin
    others = [replace(p, key=k[0], certificate=k[1]) for p, k in _swapped(first, keys)]
    with pytest.raises(AgreementError):
        partner.show(replace(first, partners=tuple(others)))
    assert partner.opened == []


def _swapped(first: Terms, keys: tuple[str, str]) -> Iterator[tuple[Any, tuple[str, str]]]:
    mine = first.partner("retailer")
    for known in first.partners:
        own = (known.key, known.certificate)
        swap = {"retailer": keys, "brand": (mine.key, mine.certificate)}
        yield known, swap.get(known.name, own)


@pytest.mark.parametrize(
    ("changes", "when"),
    [
        ({"valid_from": date(2026, 6, 1)}, datetime(2026, 6, 1, tzinfo=UTC)),
        ({"valid_until": date(2026, 4, 30)}, datetime(2026, 4, 30, 23, tzinfo=UTC)),
    ],
    ids=["not yet", "over"],
)
def test_terms_hold_between_their_days(
    changes: dict[str, Any], when: datetime, partner: Partner, tmp_path: Path
) -> None:
    agree(tmp_path, pinned(tmp_path, terms(**changes)))
    known = terms_of(tmp_path / "brand")
    partner.show(known)
    with refused("terms"):
        partner.propose(known)
    assert isinstance(partner.session.problem, AgreementError)
    partner.clock.now = when
    partner.session.prepare()
    assert partner.session.problem is None
    assert partner.propose(known)


def test_when_the_terms_end_nothing_runs_but_the_end_of_a_job_is_heard(
    partner: Partner, tmp_path: Path
) -> None:
    agree(tmp_path, pinned(tmp_path, terms(valid_until=date(2026, 5, 2))))
    known = terms_of(tmp_path / "brand")
    partner.show(known)
    partner.propose(known)
    partner.train(known, 1)
    partner.clock.now += timedelta(days=3)
    with refused("terms"):
        partner.train(known, 2)
    partner.close()
    with refused("terms"):
        partner.preview(known)


@pytest.mark.parametrize("ahead", [timedelta(minutes=11), timedelta(days=-1)])
def test_with_clocks_far_apart_nothing_is_answered_but_ends_are_heard(
    ahead: timedelta, partner: Partner, first: Terms
) -> None:
    partner.show(first)
    partner.propose(first)
    partner.show(first, ahead=ahead)
    for call in (partner.preview, partner.propose, lambda known: partner.train(known, 1)):
        with refused("clock"):
            call(first)
    partner.close()
    partner.show(first, ahead=timedelta(minutes=9))
    assert partner.propose(first, Request("job-2", TASK))


def test_a_paused_node_refuses_everything_but_hears_ends_and_keeps_models(
    partner: Partner, first: Terms
) -> None:
    partner.show(first)
    partner.propose(first)
    partner.desk.pause(partner.clock())
    for call in (partner.preview, partner.propose, lambda known: partner.train(known, 1)):
        with refused("paused"):
            call(first)
    card, made = released(first)
    partner.ask(actions.keep_messages([NODE], card, made.value)[0])
    partner.close()
    assert load_model(partner.home / "models" / "job-1")[1].request == REQUEST
    partner.desk.resume()
    assert partner.propose(first, Request("job-2", TASK))


def test_a_model_of_a_job_that_nobody_here_knows_is_refused(partner: Partner, first: Terms) -> None:
    partner.show(first)
    card, made = released(first)
    with refused("request"):
        partner.ask(actions.keep_messages([NODE], card, made.value)[0])
    with pytest.raises(LedgerError):
        partner.close()


def test_what_needs_a_person_goes_to_the_desk_and_waits_there(
    partner: Partner, tmp_path: Path
) -> None:
    agree(tmp_path, pinned(tmp_path, terms(approval="manual")))
    known = terms_of(tmp_path / "brand")
    partner.show(known)
    assert partner.preview(known)["needs_approval"] is True
    assert partner.desk.waiting() == ()
    for _ in range(2):
        with refused("approval"):
            partner.propose(known)
    assert partner.desk.waiting() == (asked(known),)
    partner.desk.decide("job-1", "approved", partner.clock())
    assert partner.propose(known)
    with refused("approval"):
        partner.propose(known, Request("job-2", TASK))
    partner.desk.decide("job-2", "refused", partner.clock())
    with refused("refusal"):
        partner.propose(known, Request("job-2", TASK))


def test_what_the_rules_refuse_is_not_put_before_people(partner: Partner, tmp_path: Path) -> None:
    agree(tmp_path, pinned(tmp_path, terms(approval="manual")))
    known = terms_of(tmp_path / "brand")
    partner.show(known)
    with refused("purpose"):
        partner.propose(known, Request("job-1", replace(TASK, purpose="resale")))
    assert partner.desk.waiting() == ()


def test_a_node_that_cannot_open_says_nothing_of_why_and_tries_again(
    partner: Partner, first: Terms
) -> None:
    table = partner.home / "customers.csv"
    good = table.read_text()
    table.write_text(good.replace("id,age,spend", "id,age,salary_of_anna", 1))
    partner.show(first)
    with pytest.raises(PolicyError) as caught:
        partner.propose(first)
    assert caught.value.rule == "paused"
    assert "anna" not in str(caught.value)
    assert "spend" in str(partner.session.problem)
    table.write_text(good)
    partner.session.prepare()
    assert partner.propose(first)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("query.preview", "the message has no settings"),
        ("query.propose", "the message has no settings"),
        ("train", "the message has no settings"),
        ("query.keep", "the message has no settings"),
        ("query.close", "the message has no settings"),
        ("query.reset", "this node knows no message of that kind"),
        ("evaluate", "this node knows no message of that kind"),
    ],
)
def test_what_cannot_be_read_is_noted_here_and_named_there(
    kind: str, why: str, partner: Partner, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LocalProtocolError, match=why):
        partner.ask(Message(RecordDict(), NODE, kind))
    assert f"refused a message of kind '{kind}': {why}" in caplog.text


@pytest.mark.parametrize("record", [{}, {"signed": 1}, {"request": []}])
def test_what_is_no_signed_request_is_the_coordinators_fault(
    record: dict[str, object], partner: Partner, first: Terms
) -> None:
    partner.show(first)
    for message in (actions.propose_message(NODE, record), actions.preview_message(NODE, record)):
        with pytest.raises((RemoteProtocolError, DovetailError)) as caught:
            partner.ask(message)
        assert "internal error" not in str(caught.value)
