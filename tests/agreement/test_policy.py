from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.policy import RULES, NodePolicy, judge
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Budget, Terms, parse_terms
from dovetail.errors import PolicyError, SettingError
from dovetail.privacy import accountant
from tests.agreement.conftest import read

VECTORS = read("request_policy.json")
NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
COHORT = 1290


def test_what_was_agreed_on_is_permitted(asked: Request, terms: Terms) -> None:
    permit = judge(asked, terms, "retailer", COHORT, Ledger(terms.budget))
    assert (permit.job, permit.partner) == ("spring-2017", "retailer")
    assert permit.request_digest == requests.digest(asked)
    assert permit.terms_digest == agreed.digest(terms)
    assert (permit.event, permit.steps) == (asked.task.event, 40)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_each_vector_is_refused_by_its_rule(
    vector: dict[str, Any],
    request_record: dict[str, Any],
    terms: Terms,
    changed: Callable[..., Any],
) -> None:
    request = requests.from_record(changed(request_record, vector))
    own = vector.get("own", {})
    policy = NodePolicy(
        max_epsilon_per_job=own.get("max_epsilon_per_job", float("inf")),
        refused_purposes=tuple(own.get("refused_purposes", ())),
    )
    cohort, partner = vector.get("cohort", COHORT), vector.get("partner", "retailer")
    with pytest.raises(PolicyError) as caught:
        judge(request, terms, partner, cohort, Ledger(terms.budget), policy)
    assert caught.value.rule == vector["rule"]


def test_the_vectors_hit_every_rule_that_a_request_alone_can_break() -> None:
    assert {vector["rule"] for vector in VECTORS["refused"]} == set(RULES) - {
        "terms",
        "budget",
        "request",
    }


def test_without_terms_nothing_is_permitted(asked: Request, terms: Terms) -> None:
    with pytest.raises(PolicyError) as caught:
        judge(asked, None, "retailer", COHORT, Ledger(terms.budget))
    assert caught.value.rule == "terms"


def test_a_budget_that_is_spent_refuses_and_names_no_number(asked: Request, terms: Terms) -> None:
    event, steps = asked.task.event, asked.task.steps
    just_enough = Budget(accountant.epsilon({event: steps}, terms.budget.delta), 1e-4)
    ledger = Ledger(just_enough)
    terms = replace(terms, budget=just_enough)
    judge(asked, terms, "retailer", COHORT, ledger)
    ledger.apply(ledger.decide_reserve("winter", "a" * 64, event, steps, NOW))
    with pytest.raises(PolicyError) as caught:
        judge(asked, terms, "retailer", COHORT, ledger)
    assert caught.value.rule == "budget"
    assert not any(character.isdigit() for character in str(caught.value))


def test_a_ledger_under_another_budget_refuses(asked: Request, terms: Terms) -> None:
    with pytest.raises(PolicyError) as caught:
        judge(asked, terms, "retailer", COHORT, Ledger(Budget(80.0, 1e-4)))
    assert caught.value.rule == "budget"


@settings(max_examples=30, deadline=None)
@given(cohort=st.integers(min_value=0, max_value=99))
def test_a_refusal_does_not_tell_one_small_cohort_from_another(cohort: int) -> None:
    request = requests.from_record(read("request.json")["good"][0]["record"])
    terms = parse_terms(read("terms.json")["good"][0]["record"])
    with pytest.raises(PolicyError) as caught:
        judge(request, terms, "retailer", cohort, Ledger(terms.budget))
    assert str(caught.value) == "cohort: fewer customers than the terms' minimum cohort"


@pytest.mark.parametrize("most", [0.5, 1.0, 100.0, float("inf")])
def test_a_nodes_own_limit_never_permits_what_the_terms_refuse(
    most: float, request_record: dict[str, Any], terms: Terms
) -> None:
    request_record["task"]["noise_multiplier"] = 0.4
    request = requests.from_record(request_record)
    with pytest.raises(PolicyError, match="epsilon"):
        judge(request, terms, "retailer", COHORT, Ledger(terms.budget), NodePolicy(most))


@pytest.mark.parametrize("most", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(most: float) -> None:
    with pytest.raises(SettingError, match="max_epsilon_per_job"):
        NodePolicy(most)
