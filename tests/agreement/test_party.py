from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement.party import (
    Partner,
    Party,
    partner_from_record,
    party_from_record,
    require_name,
    rounded,
    to_record,
)
from dovetail.errors import SettingError

PARTY = Party("analyst", "a" * 64, "b" * 64)
PARTNER = Partner(
    "brand", "c" * 64, "d" * 64, "brand's own shop", 400, date(2017, 1, 1), date(2017, 12, 31)
)


def test_parties_survive_a_round_trip() -> None:
    assert party_from_record(to_record(PARTY), "party") == PARTY
    assert partner_from_record(to_record(PARTNER), "partner") == PARTNER
    assert PARTNER.data_period == "2017-01-01 to 2017-12-31"


def test_a_partner_is_no_coordinator_and_the_other_way_round() -> None:
    with pytest.raises(SettingError, match="unknown field 'role'"):
        party_from_record(to_record(PARTNER), "party")
    with pytest.raises(SettingError, match="field 'role' is missing"):
        partner_from_record(to_record(PARTY), "partner")


@pytest.mark.parametrize("name", ["a", "A1", "acme-gmbh", "0", "a.b_c-d", "x" * 64])
def test_names_that_fit_a_file_and_a_certificate_are_allowed(name: str) -> None:
    require_name(name)


@given(st.text(max_size=70))
def test_a_name_is_plain_letters_or_refused(name: str) -> None:
    plain = name.isascii() and all(c.isalnum() or c in "._-" for c in name)
    if plain and 1 <= len(name) <= 64 and name[0].isalnum():
        require_name(name)
    else:
        with pytest.raises(SettingError, match="a party's name is"):
            require_name(name)


def test_one_day_of_data_is_enough_and_none_is_not() -> None:
    assert replace(PARTNER, last_day=PARTNER.first_day).data_period == "2017-01-01 to 2017-01-01"
    with pytest.raises(SettingError, match="last_day lies before first_day"):
        replace(PARTNER, last_day=date(2016, 12, 31))


@given(st.integers(min_value=1, max_value=10**9))
def test_rounding_keeps_two_digits_and_stays_near(customers: int) -> None:
    declared = rounded(customers)
    assert rounded(declared) == declared
    assert abs(declared - customers) <= customers / 20
    assert len(str(declared).rstrip("0")) <= 2
