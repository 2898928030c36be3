from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.policy import (
    NOTHING_MORE,
    RULES,
    NodePolicy,
    judge,
    needs_approval,
    require_allowed,
)
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, require_asked, sign_request
from dovetail.agreement.terms import Budget, Terms, parse_terms
from dovetail.errors import PolicyError, SettingError
from dovetail.privacy import accountant
from dovetail.privacy.event import SampledGaussian
from tests.agreement.conftest import changed, key_of, read

VECTORS = read("request_policy.json")
NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
COHORT = 1290
SMALL = SampledGaussian(sampling_prob=0.01, l2_sensitivity=1.0, noise_std=10.0)


def test_what_was_agreed_on_is_permitted(asked: Request, terms: Terms) -> None:
    ledger = Ledger(terms.budget)
    judge(asked, terms, "retailer", COHORT, ledger, NOTHING_MORE, NOW)
    require_allowed(asked, terms, "retailer", COHORT, NOTHING_MORE, NOW)
    assert ledger.length == 0


@pytest.mark.parametrize(
    "moment",
    ["2024-01-01T00:00:00+00:00", "2024-12-31T23:59:59+00:00", "2025-01-01T08:59:59+09:00"],
)
def test_the_first_and_the_last_day_are_days_in_utc(
    moment: str, asked: Request, terms: Terms
) -> None:
    now = datetime.fromisoformat(moment)
    judge(asked, terms, "retailer", COHORT, Ledger(terms.budget), NOTHING_MORE, now)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_each_vector_is_refused_by_its_rule(
    vector: dict[str, Any], request_record: dict[str, Any], terms: Terms
) -> None:
    request = requests.from_record(changed(request_record, vector))
    signed = _asked(vector, request, request_record, terms)
    own = NodePolicy(**{k: _policy_value(v) for k, v in vector.get("own", {}).items()})
    now = datetime.fromisoformat(vector.get("now", NOW.isoformat()))
    cohort, partner = vector.get("cohort", COHORT), vector.get("partner", "retailer")
    ledger = _ledger(vector, request, terms, now)
    with pytest.raises(PolicyError) as caught:
        _decide(signed, terms, partner, cohort, ledger, own, now)
    assert caught.value.rule == vector["rule"]


def test_the_vectors_hit_every_rule_that_a_request_alone_can_break() -> None:
    elsewhere = {
        "paused",
        "clock",
        "kind",
        "approval",
        "refusal",
        "request",
        "permit",
        "limits",
        "sample",
    }
    assert {vector["rule"] for vector in VECTORS["refused"]} == set(RULES) - elsewhere


def test_a_kind_that_the_terms_do_not_list_is_refused(asked: Request, terms: Terms) -> None:
    queries = replace(terms, requests=("query",))  # type: ignore[arg-type]
    with pytest.raises(PolicyError) as caught:
        require_allowed(asked, queries, "retailer", COHORT, NOTHING_MORE, NOW)
    assert caught.value.rule == "kind"


def test_without_terms_nothing_is_permitted(asked: Request, terms: Terms) -> None:
    with pytest.raises(PolicyError) as caught:
        judge(asked, None, "retailer", COHORT, Ledger(terms.budget), NOTHING_MORE, NOW)
    assert caught.value.rule == "terms"


def test_a_budget_that_is_spent_refuses_and_names_no_number(asked: Request, terms: Terms) -> None:
    event, steps = asked.task.event, asked.task.steps
    just_enough = Budget(accountant.epsilon({event: steps}, terms.budget.delta), 1e-4, "year")
    ledger, terms = Ledger(just_enough), replace(terms, budget=just_enough)
    judge(asked, terms, "retailer", COHORT, ledger, NOTHING_MORE, NOW)
    ledger.apply(ledger.decide_reserve("winter", "a" * 64, event, steps, NOW))
    with pytest.raises(PolicyError) as caught:
        judge(asked, terms, "retailer", COHORT, ledger, NOTHING_MORE, NOW)
    assert caught.value.rule == "budget"
    assert not any(character.isdigit() for character in str(caught.value))
    next_year = replace(terms, valid_until=NOW.date() + timedelta(days=366))
    later = NOW + timedelta(days=365)
    judge(asked, next_year, "retailer", COHORT, ledger, NOTHING_MORE, later)


@pytest.mark.parametrize("budget", [Budget(80.0, 1e-4, "year"), Budget(8.0, 1e-4, "month")])
def test_a_ledger_under_another_budget_refuses(
    budget: Budget, asked: Request, terms: Terms
) -> None:
    with pytest.raises(PolicyError) as caught:
        judge(asked, terms, "retailer", COHORT, Ledger(budget), NOTHING_MORE, NOW)
    assert caught.value.rule == "budget"


@settings(max_examples=30, deadline=None)
@given(cohort=st.integers(min_value=0, max_value=99))
def test_a_refusal_does_not_tell_one_small_cohort_from_another(cohort: int) -> None:
    request = requests.from_record(read("request.json")["good"][0]["record"])
    terms = parse_terms(read("terms.json")["good"][0]["record"])
    with pytest.raises(PolicyError) as caught:
        judge(request, terms, "retailer", cohort, Ledger(terms.budget), NOTHING_MORE, NOW)
    assert str(caught.value) == "cohort: fewer customers than the terms' minimum cohort"


@pytest.mark.parametrize("most", [0.5, 1.0, 100.0, float("inf")])
def test_a_nodes_own_limit_never_permits_what_the_terms_refuse(
    most: float, request_record: dict[str, Any], terms: Terms
) -> None:
    request_record["task"]["noise_multiplier"] = 0.4
    request, ledger = requests.from_record(request_record), Ledger(terms.budget)
    with pytest.raises(PolicyError, match="epsilon"):
        judge(request, terms, "retailer", COHORT, ledger, NodePolicy(most), NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_epsilon_per_job", 0.0),
        ("max_epsilon_per_job", -1.0),
        ("max_epsilon_per_job", float("nan")),
        ("max_concurrent_jobs", 0),
    ],
)
def test_a_limit_that_is_none_is_refused(field: str, value: Any) -> None:
    with pytest.raises(SettingError, match=field):
        NodePolicy(**{field: value})


def test_a_person_is_asked_where_the_terms_or_the_partner_say_so(terms: Terms) -> None:
    manual = replace(terms, approval="manual")
    assert not needs_approval(terms, NOTHING_MORE)
    assert needs_approval(terms, NodePolicy(approval="manual"))
    assert needs_approval(manual, NOTHING_MORE)
    assert needs_approval(manual, NodePolicy(approval="automatic"))


def _decide(signed: SignedRequest, terms: Terms, *where: Any) -> None:
    """As a node does: who asks comes before what is asked."""
    require_asked(signed, terms)
    judge(signed.request, terms, *where)


def _policy_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _asked(
    vector: dict[str, Any], request: Request, record: dict[str, Any], terms: Terms
) -> SignedRequest:
    """The request as somebody signed it, by default the analyst and all of it."""
    asker = vector.get("asked_by", "analyst")
    digest = vector.get("terms_digest", agreed.digest(terms))
    signed = request
    if "signed_set" in vector:
        signed = requests.from_record(changed(record, {"set": vector["signed_set"]}))
    key = key_of(vector.get("signed_by", asker))
    made = sign_request(signed, vector.get("signed_terms", digest), asker, key)
    signature = vector.get("signature", made.signature)
    return SignedRequest(request, digest, asker, signature)


def _ledger(vector: dict[str, Any], request: Request, terms: Terms, now: datetime) -> Ledger:
    ledger = Ledger(terms.budget)
    for number in range(vector.get("open", 0)):
        ledger.apply(ledger.decide_reserve(f"open-{number}", "a" * 64, SMALL, 1, now))
    if times := vector.get("spent"):
        event, steps = request.task.event, times * request.task.steps
        ledger.apply(ledger.decide_reserve("spent", "b" * 64, event, steps, now))
        ledger.apply(ledger.decide_begin("spent", 1, steps, now))
        ledger.apply(ledger.decide_cancel("spent", now))
    return ledger


@pytest.mark.parametrize("cohort", [600_000, 1_200_000, 2_400_000])
@pytest.mark.parametrize(("sampling_prob", "allowed"), [(0.04, True), (0.05, False)])
def test_how_many_a_step_samples_is_judged_by_the_declared_number_alone(
    cohort: int, sampling_prob: float, allowed: bool, asked: Request, terms: Terms
) -> None:
    """The asker chooses the probability: held against the private number, it would find it."""
    million = replace(terms.partner("retailer"), customers=1_200_000)
    terms = replace(
        terms,
        partners=(million, *terms.partners[1:]),
        budget=replace(terms.budget, epsilon=100.0, delta=1e-7),
        max_epsilon_per_job=100.0,
    )
    request = replace(asked, task=replace(asked.task, sampling_prob=sampling_prob))
    arguments = (request, terms, "retailer", cohort, Ledger(terms.budget), NOTHING_MORE, NOW)
    if allowed:
        judge(*arguments)
        return
    with pytest.raises(PolicyError) as caught:
        judge(*arguments)
    assert caught.value.rule == "sample"
