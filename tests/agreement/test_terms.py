from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import terms as agreed
from dovetail.agreement.terms import Terms, load_terms, parse_terms, rounded
from dovetail.errors import SettingError
from tests.agreement.conftest import read

VECTORS = read("terms.json")
EXAMPLE = Path(__file__).parents[2] / "examples" / "terms.toml"
INLINE = """
[schema]
name = "households"
key = "household"
unit = "household"
max_rows_per_customer = 5
[schema.label]
name = "redeemed"
prior = 0.1
[schema.columns.spend]
type = "number"
low = 0
high = 100
"""


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_good_vectors_survive_a_round_trip_and_keep_their_digest(vector: dict[str, Any]) -> None:
    terms = parse_terms(vector["record"])
    assert parse_terms(json.loads(json.dumps(agreed.to_record(terms)))) == terms
    assert agreed.digest(terms) == vector["digest"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_bad_vectors_are_refused_by_the_field_they_break(
    vector: dict[str, Any], terms_record: dict[str, Any], changed: Callable[..., Any]
) -> None:
    with pytest.raises(SettingError) as caught:
        parse_terms(changed(terms_record, vector))
    assert vector["message"] in str(caught.value)


def test_the_example_loads_with_the_schema_beside_it() -> None:
    terms = load_terms(EXAMPLE)
    assert [partner.name for partner in terms.partners] == ["retailer", "platform", "brand"]
    assert terms.partner("brand").data_period == "2017-01-01 to 2017-12-31"
    assert parse_terms(agreed.to_record(terms)) == terms


def test_a_schema_may_stand_in_the_same_file(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace('schema = "schema.toml"', "") + INLINE
    (tmp_path / "terms.toml").write_text(text)
    assert [c.name for c in load_terms(tmp_path / "terms.toml").schema.columns] == ["spend"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "terms.toml: cannot be read"),
        (b"name = ", "terms.toml: is not TOML"),
        (b"\xff\xfe", "terms.toml: is not a UTF-8 text file"),
        (b'name = "x"', "terms.toml: terms: schema must be a table"),
        (b'schema = "missing.toml"', "missing.toml' cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "terms.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        load_terms(path)
    assert message in str(caught.value)


@given(st.integers(min_value=1, max_value=10**9))
def test_rounding_keeps_two_digits_and_stays_near(customers: int) -> None:
    declared = rounded(customers)
    assert rounded(declared) == declared
    assert abs(declared - customers) <= customers / 20
    assert len(str(declared).rstrip("0")) <= 2


def test_nobody_else_is_a_partner(terms: Terms) -> None:
    with pytest.raises(SettingError, match="no partner is named 'brand'"):
        terms.partner("brand")
