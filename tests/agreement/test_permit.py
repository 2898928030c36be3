from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.permit import (
    PERMIT_DAYS,
    Permit,
    permit_end,
    permit_from_record,
    permit_of,
    permit_to_record,
)
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.errors import SettingError

NOW = datetime(2024, 5, 31, 12, 30, 15, 999, tzinfo=UTC)


@pytest.fixture
def permit(asked: Request, terms: Terms) -> Permit:
    return permit_of(asked, terms, "retailer", NOW, "c" * 64)


def test_a_permit_is_bound_to_what_was_asked_and_agreed(
    permit: Permit, asked: Request, terms: Terms
) -> None:
    assert (permit.job, permit.partner) == ("spring-2017", "retailer")
    assert permit.request_digest == requests.digest(asked)
    assert permit.terms_digest == agreed.digest(terms)
    assert (permit.event, permit.steps) == (asked.task.event, 40)
    assert (permit.expires, permit.ledger_head) == ("2024-06-30T12:30:15+00:00", "c" * 64)


def test_a_permit_ends_with_the_terms_at_the_latest(terms: Terms) -> None:
    assert permit_end(terms, NOW) == NOW + timedelta(days=PERMIT_DAYS)
    end = permit_end(terms, datetime(2024, 12, 20, tzinfo=UTC))
    assert end == datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC)
    short = replace(terms, valid_until=date(2024, 5, 31))
    assert permit_end(short, NOW) == datetime(2024, 5, 31, 23, 59, 59, tzinfo=UTC)


def test_the_end_is_written_in_utc_wherever_the_partner_is(asked: Request, terms: Terms) -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-5)))
    here, abroad = (permit_of(asked, terms, "retailer", t, "c" * 64) for t in (NOW, there))
    assert here == abroad


def test_a_permit_survives_a_round_trip(permit: Permit) -> None:
    assert permit_from_record(json.loads(json.dumps(permit_to_record(permit)))) == permit


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "40", "permit: steps must be a whole number"),
        ("steps", 2**53, "permit: steps is too large"),
        ("event", None, "permit: event must be a table of fields"),
        ("event", {}, "permit: event"),
        ("event", {"kind": "none"}, "permit: event"),
        ("expires", None, "permit: expires must be text"),
        ("partner", "", "permit: partner must be text"),
        ("extra", 1, "permit: unknown field 'extra'"),
    ],
)
def test_a_malformed_permit_is_refused(
    field: str, value: Any, message: str, permit: Permit
) -> None:
    with pytest.raises(SettingError) as caught:
        permit_from_record({**permit_to_record(permit), field: value})
    assert message in str(caught.value)


@pytest.mark.parametrize("field", Permit.__dataclass_fields__)
def test_a_permit_needs_every_field(field: str, permit: Permit) -> None:
    record = permit_to_record(permit)
    del record[field]
    with pytest.raises(SettingError, match=f"field '{field}' is missing"):
        permit_from_record(record)
