from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import terms as agreed
from dovetail.agreement.terms import Budget, Period, Terms, parse_terms
from dovetail.errors import SettingError
from tests.agreement.conftest import changed, key_of, read

VECTORS = read("terms.json")


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_good_vectors_survive_a_round_trip_and_keep_their_digest(vector: dict[str, Any]) -> None:
    terms = parse_terms(vector["record"])
    assert parse_terms(json.loads(json.dumps(agreed.to_record(terms)))) == terms
    assert agreed.digest(terms) == vector["digest"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_bad_vectors_are_refused_by_the_field_they_break(
    vector: dict[str, Any], terms_record: dict[str, Any]
) -> None:
    with pytest.raises(SettingError) as caught:
        parse_terms(changed(terms_record, vector))
    assert vector["message"] in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, "terms", [], [{}], True])
def test_what_is_no_table_is_refused(record: object) -> None:
    with pytest.raises(SettingError, match="terms: expected a table"):
        parse_terms(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(data=st.data())
def test_any_field_with_anything_in_it_is_read_or_refused_and_nothing_else(
    data: st.DataObject,
) -> None:
    record = json.loads(json.dumps(VECTORS["good"][0]["record"]))
    schema = record["schema"]
    tables = [record, record["budget"], record["allowed"], record["coordinator"], schema]
    tables += [*record["analysts"], *record["partners"], *schema["columns"], schema["label"]]
    place = data.draw(st.sampled_from(tables))
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=8))] = data.draw(JSON)
    try:
        terms = parse_terms(record)
    except SettingError:
        return
    assert parse_terms(agreed.to_record(terms)) == terms
    assert len(agreed.digest(terms)) == 64


def test_every_field_changes_the_digest(terms: Terms) -> None:
    others = [
        replace(terms, name="Autumn coupons"),
        replace(terms, valid_until=date(2025, 1, 1)),
        replace(terms, purposes=("churn", "coupon propensity")),
        replace(terms, approval="manual"),
        replace(terms, customers_overlap=True),
        replace(terms, budget=replace(terms.budget, period="month")),
        replace(terms, max_epsilon_per_job=4.000000000000001),
        replace(terms, max_concurrent_jobs=3),
        replace(terms, analysts=()),
        replace(terms, coordinator=replace(terms.coordinator, key=key_of("other").public)),
        replace(terms, partners=terms.partners[::-1]),
        replace(terms, schema=replace(terms.schema, max_rows_per_customer=6)),
    ]
    assert len({agreed.digest(other) for other in [terms, *others]}) == len(others) + 1


def test_everybody_signs_and_does_one_thing(terms: Terms) -> None:
    assert [(party.name, duty) for party, duty in terms.parties] == [
        ("coordinator", "coordinator"),
        ("analyst", "analyst"),
        ("retailer", "partner"),
        ("platform", "partner"),
    ]
    assert terms.party("analyst") == (terms.analysts[0], "analyst")
    assert terms.partner("platform") is terms.partners[1]
    with pytest.raises(SettingError, match="no party is named 'brand'"):
        terms.party("brand")
    with pytest.raises(SettingError, match="no partner is named 'coordinator'"):
        terms.partner("coordinator")


def test_terms_hold_on_their_first_and_last_day_and_no_other(terms: Terms) -> None:
    day = timedelta(days=1)
    assert terms.in_force(terms.valid_from)
    assert terms.in_force(terms.valid_until)
    assert not terms.in_force(terms.valid_from - day)
    assert not terms.in_force(terms.valid_until + day)


@pytest.mark.parametrize(
    ("period", "name"),
    [("never", ""), ("year", "2026"), ("quarter", "2026-Q4"), ("month", "2026-11")],
)
def test_a_moment_lies_in_a_period_in_utc(period: Period, name: str) -> None:
    budget = Budget(1.0, 1e-5, period)
    assert budget.period_of(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)) == name
    east = timezone(timedelta(hours=9))
    assert budget.period_of(datetime(2026, 12, 1, 8, 59, tzinfo=east)) == name


@given(
    st.sampled_from(["year", "quarter", "month"]),
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
)
def test_periods_sort_as_moments_do(period: Period, one: datetime, other: datetime) -> None:
    budget, (earlier, later) = Budget(1.0, 1e-5, period), sorted([one, other])
    assert budget.period_of(earlier) <= budget.period_of(later)
