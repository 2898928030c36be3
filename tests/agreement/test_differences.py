from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import terms as agreed
from dovetail.agreement.differences import Tendency, differences
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.errors import SettingError
from dovetail.schema import Label, Number
from tests.agreement.conftest import key_of, read

FIRST = read("terms.json")["good"][0]["record"]
OPPOSITE = {"looser": "stricter", "stricter": "looser", "": ""}


def changed(terms: Terms, **changes: Any) -> Terms:
    """Terms with fields, or ``table__field`` of a table in them, set."""
    for name, value in changes.items():
        table, _, field = name.partition("__")
        if field:
            value = replace(getattr(terms, table), **{field: value})
        terms = replace(terms, **{table: value})
    return terms


@pytest.mark.parametrize(
    ("changes", "words", "tendency"),
    [
        ({"budget__epsilon": 9.0}, "ε of all jobs together: 8 → 9", "looser"),
        ({"budget__epsilon": 7.5}, "ε of all jobs together: 8 → 7.5", "stricter"),
        ({"budget__delta": 1e-5}, "δ: 0.0001 → 1e-05", "stricter"),
        ({"budget__period": "month"}, "when the budget refills: year → month", "looser"),
        ({"budget__period": "never"}, "when the budget refills: year → never", "stricter"),
        ({"max_epsilon_per_job": 5.0}, "ε of one job: 4 → 5", "looser"),
        ({"max_concurrent_jobs": 1}, "jobs open at once: 2 → 1", "stricter"),
        ({"max_parameters": 2000}, "parameters of a model: 1,000 → 2,000", "looser"),
        ({"max_rounds": 49}, "rounds of a job: 50 → 49", "stricter"),
        ({"max_steps": 201}, "steps of a job: 200 → 201", "looser"),
        ({"minimum_cohort": 200}, "fewest customers with which a partner answers", "stricter"),
        ({"minimum_cohort": 50}, "fewest customers with which a partner answers", "looser"),
        ({"valid_from": date(2024, 2, 1)}, "begins on: 2024-01-01 → 2024-02-01", "stricter"),
        ({"valid_until": date(2025, 1, 1)}, "ends on: 2024-12-31 → 2025-01-01", "looser"),
        ({"approval": "manual"}, "approval: automatic → manual", "stricter"),
        ({"customers_overlap": True}, "one person may be a customer of several partners", ""),
        ({"purposes": ("churn",)}, "no longer: purpose “coupon propensity”", "stricter"),
        ({"purposes": ("churn", "coupon propensity")}, "each purpose stands in another place", ""),
        ({"model_families": ("logistic", "mlp", "embedding_mlp")}, "new: kind of model", "looser"),
        ({"analysts": ()}, "analyst (analyst) leaves", "stricter"),
        ({"schema__max_rows_per_customer": 6}, "rows that count for one customer: 5 → 6", ""),
        ({"schema__label": Label("redeemed", 0.2)}, "expected share of ones: 0.1 → 0.2", ""),
        ({"schema__unit": "person"}, "what a customer is: household → person", ""),
    ],
)
def test_a_change_is_told_and_judged(
    changes: dict[str, Any], words: str, tendency: Tendency, terms: Terms
) -> None:
    other = changed(terms, **changes)
    (found,) = differences(terms, other)
    assert words in found.words
    assert found.tendency == tendency
    (back,) = differences(other, terms)
    assert back.tendency == OPPOSITE[tendency]


def test_equal_terms_do_not_differ(terms: Terms) -> None:
    assert differences(terms, parse_terms(agreed.to_record(terms))) == []


def test_columns_are_compared_one_by_one(terms: Terms) -> None:
    spend, visits, region, joined = terms.schema.columns
    income = Number("income", 0, 9000, "EUR")
    assert isinstance(spend, Number)
    wider = replace(spend, high=3000.0)
    other = replace(terms, schema=replace(terms.schema, columns=(wider, region, visits, income)))
    assert [(d.words, d.tendency) for d in differences(terms, other)] == [
        ("no longer: column “joined”", "stricter"),
        ("new: column “income”, a number from 0 to 9,000 EUR", "looser"),
        (
            "column “spend”: a number from 0 to 2,000 USD, compared by orders of magnitude → "
            "a number from 0 to 3,000 USD, compared by orders of magnitude",
            "",
        ),
    ]
    swapped = replace(terms.schema, columns=(visits, spend, region, joined))
    (found,) = differences(terms, replace(terms, schema=swapped))
    assert found.words == "the columns stand in another order"


def test_a_key_that_changes_is_told_in_full(terms: Terms) -> None:
    retailer, platform = terms.partners
    new = key_of("new retailer").public
    other = replace(terms, partners=(replace(retailer, key=new, customers=1400), platform))
    key, customers = differences(terms, other)
    assert key.words == f"retailer signs with another key: {retailer.key} → {new}"
    assert customers.words == "customers of retailer: 1,300 → 1,400"
    pin = replace(terms, partners=(replace(retailer, certificate="ab" * 32), platform))
    (found,) = differences(terms, pin)
    assert "retailer connects with another certificate" in found.words


def test_parties_come_go_and_change_what_they_do(terms: Terms) -> None:
    other = replace(
        terms,
        partners=terms.partners[:1],
        analysts=(terms.coordinator,),
        coordinator=terms.analysts[0],
    )
    assert [d.words for d in differences(terms, other)] == [
        "platform (partner) leaves",
        "what analyst does: analyst → coordinator",
        "what coordinator does: coordinator → analyst",
    ]
    reordered = replace(terms, partners=terms.partners[::-1])
    assert [d.words for d in differences(terms, reordered)] == [
        "the parties stand in another order"
    ]


def test_an_amendment_says_what_it_amends(terms: Terms) -> None:
    second = replace(terms, version=2, previous=agreed.digest(terms))
    assert [d.words for d in differences(terms, second)] == ["version: 1 → 2"]
    stray = replace(second, previous="a" * 64)
    assert "does not amend the first" in differences(terms, stray)[-1].words


VALUES = (1, 2, 3, 0.5, 1400, True, "manual", "never", "month", "churn", "brand", "log", "linear")
LISTS = (["churn"], ["mlp"], "2024-03-01", "ab" * 32)


@given(data=st.data())
def test_terms_that_are_not_equal_differ_in_words(data: st.DataObject) -> None:
    """Every field of the record, set to whatever it accepts."""
    record = json.loads(json.dumps(FIRST))
    schema = record["schema"]
    tables = [record, record["budget"], record["allowed"], record["coordinator"], schema]
    tables += [*record["analysts"], *record["partners"], *schema["columns"], schema["label"]]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(tables))
        field = data.draw(st.sampled_from(sorted(place)))
        place[field] = data.draw(st.sampled_from([*VALUES, *LISTS]))
    try:
        old, new = parse_terms(FIRST), parse_terms(record)
    except SettingError:
        return
    found = differences(old, new)
    assert (found == []) == (agreed.digest(old) == agreed.digest(new))
    assert all(difference.words for difference in found)
