from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from dovetail.agreement.terms import Budget, Period, Terms, parse_terms
from dovetail.agreement.wording import column_words, key_facts, listed, page, periods_touched
from dovetail.schema import Category, Column, Date, Number
from tests.agreement.conftest import read

GOOD = [vector["record"] for vector in read("terms.json")["good"]]


def text_of(terms: Terms) -> str:
    return "\n".join(sentence for section in page(terms) for sentence in section.sentences)


def section(terms: Terms, heading: str) -> str:
    return " ".join(next(s for s in page(terms) if s.heading == heading).sentences)


@pytest.mark.parametrize("record", GOOD)
def test_the_page_names_everybody_and_everything(record: Any) -> None:
    terms = parse_terms(record)
    text = text_of(terms)
    for party, _ in terms.parties:
        assert all(word in text for word in (party.name, party.key, party.certificate))
    for words in (
        *terms.purposes,
        *(column.name for column in terms.schema.columns),
        terms.schema.key,
        terms.schema.label.name,
        terms.valid_from.isoformat(),
        terms.valid_until.isoformat(),
        f"version {terms.version}",
        terms.previous,
    ):
        assert words in text


@pytest.mark.parametrize("record", GOOD)
def test_every_sentence_is_one(record: Any) -> None:
    for part in page(parse_terms(record)):
        assert part.sentences
        for sentence in part.sentences:
            assert sentence.endswith(".")
            assert "  " not in sentence


@pytest.mark.parametrize(
    ("period", "first", "last", "times"),
    [
        ("never", date(2020, 1, 1), date(2030, 1, 1), 1),
        ("year", date(2026, 1, 1), date(2026, 12, 31), 1),
        ("year", date(2026, 12, 31), date(2027, 1, 1), 2),
        ("quarter", date(2026, 3, 31), date(2026, 4, 1), 2),
        ("quarter", date(2026, 1, 1), date(2027, 12, 31), 8),
        ("month", date(2026, 11, 30), date(2027, 2, 1), 4),
        ("month", date(2026, 2, 1), date(2026, 2, 28), 1),
    ],
)
def test_every_refill_is_counted(
    period: Period, first: date, last: date, times: int, terms: Terms
) -> None:
    budget = Budget(2.0, 1e-5, period)
    changed = replace(terms, budget=budget, valid_from=first, valid_until=last)
    assert periods_touched(changed) == times
    cost = section(changed, "What it may cost")
    if period == "never":
        assert "The budget never refills" in cost
    else:
        assert f"{times} budgets, which add up to at most ε = {2 * times}" in cost


def test_an_epsilon_is_said_in_words_too(terms: Terms) -> None:
    one = replace(terms, budget=Budget(1.0, 1e-5, "never"))
    assert "changes by at most a factor of e^1 (about 2.72)" in section(one, "What it may cost")
    assert "e^8 (about 2,981)" in section(terms, "What it may cost")
    huge = replace(terms, budget=Budget(1e6, 1e-5, "never"))
    assert "a factor of e^1,000,000, but" in section(huge, "What it may cost")


def test_overlapping_customers_are_told_what_adds_up(terms: Terms) -> None:
    assert "nobody is a customer of two" in section(terms, "What it may cost")
    overlapping = replace(terms, customers_overlap=True)
    words = section(overlapping, "What it may cost")
    assert "for a customer of all 2 of them, to at most ε = 16 at δ = 0.0002" in words


def test_who_approves_is_said(terms: Terms) -> None:
    assert "without asking a person" in section(terms, "Who says yes")
    manual = replace(terms, approval="manual")
    assert "a person says yes to each job" in section(manual, "Who says yes")


def test_nobody_but_the_coordinator_may_ask_where_there_are_no_analysts(terms: Terms) -> None:
    assert "Nobody else may." in section(replace(terms, analysts=()), "Who takes part")
    assert "analyst may ask for jobs as well." in section(terms, "Who takes part")


def test_the_key_facts_are_sentences_of_the_page(terms: Terms) -> None:
    facts, text = key_facts(terms), text_of(terms)
    assert 4 <= len(facts) <= 8
    assert all(fact in text for fact in facts)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (Number("x", 0, 5000, "EUR", "log"), "from 0 to 5,000 EUR, compared by orders"),
        (Number("x", -0.25, 1e300), "a number from -0.25 to 1e+300"),
        (Number("x", 0, 1, nullable=True), "a number from 0 to 1; may be missing"),
        (Category("x", ("a", "b")), "one of a, b; anything else counts as “other”"),
        (Date("x", date(2020, 1, 1), date(2021, 1, 1)), "a day from 2020-01-01 to 2021-01-01"),
    ],
)
def test_a_column_is_told_with_its_bounds(column: Column, words: str) -> None:
    assert words in column_words(column)


def test_names_are_listed_as_a_sentence_does() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(iter(["a", "b", "c"])) == "a, b and c"
