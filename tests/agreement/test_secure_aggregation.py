from __future__ import annotations

import pytest

from dovetail.agreement.secure_aggregation import (
    SecureAggregation,
    secure_aggregation_from_record,
)
from dovetail.agreement.terms import parse_terms, to_record
from dovetail.errors import SettingError
from dovetail.secagg.group import MOST_MEMBERS
from tests.samples import ONE_COLLUDER, sharing_terms, terms


@pytest.mark.parametrize(
    ("partners", "dropouts", "colluders"),
    [(3, 0, 1), (4, 1, 1), (4, 0, 2), (6, 2, 1), (10, 3, 3), (MOST_MEMBERS, 20, 20)],
)
def test_groups_that_can_share(partners: int, dropouts: int, colluders: int) -> None:
    assumed = SecureAggregation(dropouts, colluders)
    assumed.check(partners)
    assert assumed.tolerated == dropouts + colluders


@pytest.mark.parametrize(
    ("partners", "dropouts", "colluders", "limit"),
    [
        (1, 0, 1, "at most 0 may drop out or collude"),
        (2, 0, 1, "with 2 partners the sum shows each of them the other's update"),
        (3, 1, 1, "of 3 partners at most 1 may"),
        (3, 3, 1, "of 3 partners at most 1 may"),
        (5, 2, 1, "more than twice the dropouts plus the colluders"),
        (MOST_MEMBERS + 1, 0, 1, f"at most {MOST_MEMBERS} partners"),
    ],
)
def test_groups_that_cannot(partners: int, dropouts: int, colluders: int, limit: str) -> None:
    with pytest.raises(SettingError, match=limit):
        SecureAggregation(dropouts, colluders).check(partners)


@pytest.mark.parametrize("fields", [{"dropouts": -1, "colluders": 1}, {"dropouts": 0}, {}, 3])
def test_a_table_that_says_something_else_is_refused(fields: object) -> None:
    with pytest.raises(SettingError, match="secure_aggregation"):
        secure_aggregation_from_record(fields)


@pytest.mark.parametrize("colluders", [0, -1])
def test_a_partner_is_always_taken_for_curious(colluders: int) -> None:
    with pytest.raises(SettingError, match="can take its own share of the noise away"):
        SecureAggregation(0, colluders)
    with pytest.raises(SettingError, match="colluders must be at least 1"):
        secure_aggregation_from_record({"dropouts": 0, "colluders": colluders})


def test_terms_say_it_exactly_where_noise_may_be_shared() -> None:
    for changes in ({"secure_aggregation": None}, {"protections": ("local",)}):
        with pytest.raises(SettingError, match="belongs to protection 'distributed'"):
            sharing_terms(**changes)
    with pytest.raises(SettingError, match="of 3 partners at most 1"):
        sharing_terms(secure_aggregation=SecureAggregation(1, 1))


def test_terms_with_and_without_it_are_read_as_they_were_written() -> None:
    for agreed in (terms(), sharing_terms()):
        assert parse_terms(to_record(agreed)) == agreed
    assert to_record(sharing_terms())["secure_aggregation"] == vars(ONE_COLLUDER)
    assert "secure_aggregation" not in to_record(terms())
