from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import draft
from dovetail.agreement import terms as agreed
from dovetail.agreement.draft import Answers, PartnerAnswer
from dovetail.agreement.files import Parties, terms_of_toml
from dovetail.agreement.terms import Budget, parse_terms
from dovetail.errors import SettingError
from tests.agreement.conftest import key_of, parties, read

EXAMPLES = Path(__file__).parents[2] / "examples"
BESIDE = EXAMPLES / "spring.toml"
DAYS = (date(2026, 1, 1), date(2026, 12, 31))
ALL = parties(["retailer", "platform", "brand"], ["analyst"])
ANSWERS = Answers(
    name="Autumn",
    purposes=("churn", "win back"),
    valid_from=DAYS[0],
    valid_until=DAYS[1],
    approval="automatic",
    customers_overlap=True,
    minimum_cohort=50,
    budget=Budget(2.0, 1e-5, "quarter"),
    max_epsilon_per_job=1.0,
    schema="schema.toml",
    partners=(
        PartnerAnswer("shop", "web shop", 1200, *DAYS),
        PartnerAnswer("cards", "loyalty cards", 90, *DAYS),
    ),
)


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def test_the_template_is_filled_in_and_keeps_its_comments() -> None:
    text = draft.fill_in(draft.template(), ALL)
    terms = terms_of_toml(text, BESIDE)
    assert comments(text) == comments(draft.template())
    for party, _ in terms.parties:
        assert party.key == key_of(party.name).public
    assert [p.certificate for p in terms.partners] == [
        request.party.certificate for request in ALL.enrolled if request.duty == "partner"
    ]
    blank = text
    for party, _ in terms.parties:
        blank = blank.replace(party.key, "").replace(party.certificate, "")
    assert blank == draft.template()


def test_the_example_is_the_template() -> None:
    assert (EXAMPLES / "agreement.toml").read_text() == draft.template()


@pytest.mark.parametrize(
    ("given", "complaints"),
    [
        (parties(["retailer", "platform"], ["analyst"]), ["no keys of the partner 'brand' are"]),
        (
            parties(["retailer", "platform", "brand"]),
            ["no keys of the analyst 'analyst' are there"],
        ),
        (
            parties(["retailer", "platform", "brand", "thief"], ["analyst", "spy"]),
            ["the template names no analyst 'spy'", "the template names no partner 'thief'"],
        ),
        (
            parties(["retailer", "platform", "analyst"], ["brand"]),
            ["no keys of the partner 'brand'", "names no analyst 'brand'"],
        ),
        (
            replace(ALL, coordinator=replace(ALL.coordinator, name="boss")),
            ["no keys of the coordinator 'coordinator'", "names no coordinator 'boss'"],
        ),
    ],
)
def test_missing_and_surplus_parties_are_named(given: Parties, complaints: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        draft.fill_in(draft.template(), given)
    assert all(complaint in str(caught.value) for complaint in complaints)


def test_two_requests_of_one_party_are_not_told_apart() -> None:
    twice = replace(ALL, enrolled=(*ALL.enrolled, ALL.enrolled[1]))
    with pytest.raises(SettingError, match="two files hold keys of the partner 'retailer'"):
        draft.fill_in(draft.template(), twice)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[coordinator]", "[[coordinator]]", "coordinator must be tables with a name"),
        ("[coordinator]", "[boss]", "coordinator must be tables with a name"),
        ("[[partners]]", "[[members]]", "partners is missing, or no list of tables"),
        ('name = "brand"', 'title = "brand"', "partners must be tables with a name"),
        ('name = "brand"', "name = 7", "partners must be tables with a name"),
        ('name = "brand"', 'name = "platform"', "names the partner 'platform' twice"),
        ("[budget]", "[budget", "the template is not TOML"),
        ("version = 1", "version = 1\nversion = 2", "the template is not TOML"),
        ("version = 1", "version = " + "[" * 5000, "the template is not TOML"),
    ],
)
def test_a_template_that_cannot_be_filled_in_says_why(old: str, new: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        draft.fill_in(draft.template().replace(old, new), ALL)


@pytest.mark.parametrize("analysts", [[], ["ann"], ["ann", "bob", "eve"]])
def test_answers_take_the_places_of_the_template(analysts: list[str]) -> None:
    given = parties(["cards", "shop"], analysts)
    text = draft.fill_in(draft.answered(ANSWERS, given), given)
    terms = terms_of_toml(text, BESIDE)
    for name in ("name", "purposes", "approval", "budget", "minimum_cohort", "valid_until"):
        assert getattr(terms, name) == getattr(ANSWERS, name)
    assert terms.max_epsilon_per_job == 1.0
    assert terms.customers_overlap
    assert [a.name for a in terms.analysts] == analysts
    for partner, answer in zip(terms.partners, ANSWERS.partners, strict=True):
        assert all(getattr(partner, field) == value for field, value in vars(answer).items())
    assert "# Those who bring customers." in text


def test_an_amendment_names_what_it_amends() -> None:
    text = draft.fill_in(draft.template(), ALL)
    first = terms_of_toml(text, BESIDE)
    second = terms_of_toml(draft.amend(text, first), BESIDE)
    assert (second.version, second.previous) == (2, agreed.digest(first))
    third = terms_of_toml(draft.amend(text, second), BESIDE)
    assert (third.version, third.previous) == (3, agreed.digest(second))
    assert replace(second, version=1, previous="") == first


@pytest.mark.parametrize("record", [vector["record"] for vector in read("terms.json")["good"]])
def test_terms_are_written_whole_into_one_file(record: Any) -> None:
    terms = parse_terms(record)
    assert terms_of_toml(draft.as_toml(terms), Path("spring.toml")) == terms


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=5))
def test_a_proposed_delta_is_below_one_in_the_smallest_partners_customers(
    customers: list[int],
) -> None:
    answers = [PartnerAnswer("x", "x", number, *DAYS) for number in customers]
    delta = draft.safe_delta(answers)
    assert 0.01 <= delta * min(customers) * 10 <= 1 + 1e-9
