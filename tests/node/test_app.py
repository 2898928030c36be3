from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.agreement.request import Request, TrainingTask
from dovetail.agreement.signing import (
    request_record,
    require_permitted,
    sign_request,
    signed_permit_from_record,
)
from dovetail.coordinator.round import initial_arrays
from dovetail.crypto.prg import fresh_key
from dovetail.errors import AgreementError, DataError, LedgerError, PolicyError, RemoteProtocolError
from dovetail.flower.actions import Record
from dovetail.node.app import Node
from dovetail.node.runner import Runner
from dovetail.privacy.sampler import SecureSampler
from dovetail.simulation.identities import COORDINATOR, asked, signing_key
from dovetail.store.admissions import Admissions
from dovetail.store.ledger import LedgerStore
from dovetail.training.batch import Batch
from tests.samples import SCHEMA, TASK, MemoryCustomers, terms

TERMS = terms()
REQUEST = Request("job-1", TASK)


class WatchedCustomers(MemoryCustomers):
    """Customers that note what the ledger said when their rows were read."""

    def __init__(self, ledger: LedgerStore, n: int = 304) -> None:
        super().__init__(n)
        self._ledger = ledger
        self.seen: list[str] = []

    def batch(self, customers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        self.seen.append(self._ledger.entries()[-1].kind)
        return super().batch(customers)


class FailingOnce(WatchedCustomers):
    """Customers that cannot be read the first time."""

    def batch(self, customers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        if not self.seen:
            super().batch(customers)
            raise DataError("the disk failed")
        return super().batch(customers)


@pytest.fixture
def ledger() -> Iterator[LedgerStore]:
    with closing(LedgerStore(None, TERMS.budget, now)) as store:
        yield store


def runner(customers: MemoryCustomers) -> Runner:
    return Runner(customers, SCHEMA, 300, lambda _job, _number: SecureSampler(fresh_key()))


def now() -> datetime:
    return datetime.now(UTC)


def node(
    ledger: LedgerStore,
    policy: NodePolicy = NOTHING_MORE,
    n: int = 304,
    customers: MemoryCustomers | None = None,
    **more: Any,
) -> Node:
    rows = customers or WatchedCustomers(ledger, n)
    key = signing_key("retailer")
    return Node(TERMS, "retailer", key, len(rows), runner(rows), ledger, now, policy, **more)


def propose(node: Node, request: Request = REQUEST) -> Record:
    return node.propose(request_record(asked(request, TERMS)))


def train(node: Node, number: int, request: Request = REQUEST) -> None:
    arrays = initial_arrays(request.task, SCHEMA.select(request.task.features))
    node.train(requests.to_record(request), number, arrays, {})


def kinds(ledger: LedgerStore) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def test_a_round_is_charged_before_rows_are_read_and_committed_before_it_leaves(
    ledger: LedgerStore,
) -> None:
    customers = WatchedCustomers(ledger)
    one = node(ledger, customers=customers)
    propose(one)
    assert kinds(ledger) == ["reserve"]
    train(one, 1)
    assert kinds(ledger) == ["reserve", "begin", "commit"]
    assert set(customers.seen) == {"begin"}


def test_the_whole_job_is_reserved_at_once(ledger: LedgerStore) -> None:
    propose(node(ledger))
    (entry,) = ledger.entries()
    assert (entry.event, entry.count) == (TASK.event, TASK.steps)


def test_a_replayed_round_is_refused_and_not_computed(ledger: LedgerStore) -> None:
    one = node(ledger)
    propose(one)
    train(one, 1)
    before = kinds(ledger)
    with pytest.raises(LedgerError):
        train(one, 1)
    assert kinds(ledger) == before


def test_a_failed_round_stays_charged_and_its_repetition_is_charged_again(
    ledger: LedgerStore,
) -> None:
    one = node(ledger, customers=FailingOnce(ledger))
    propose(one)
    with pytest.raises(DataError):
        train(one, 1)
    assert kinds(ledger) == ["reserve", "begin"]
    train(one, 1)
    spent = ledger.refresh().spending_by_job()["job-1"]
    assert (spent.drawn, spent.rounds_committed) == (2, 1)
    one.close("job-1")
    assert ledger.refresh().spending_by_job()["job-1"].charged == 2


def bad_arrays() -> list[dict[str, npt.NDArray[np.float32]]]:
    good = initial_arrays(TASK, SCHEMA)
    bias = np.array([np.nan], np.float32)
    return [
        {"output.bias": good["output.bias"]},
        good | {"more": bias},
        good | {"output.weight": good["output.weight"].T},
        good | {"output.bias": bias},
        good | {"output.bias": np.array([np.inf], np.float32)},
    ]


@pytest.mark.parametrize("arrays", bad_arrays(), ids=["missing", "more", "shape", "nan", "inf"])
def test_a_model_that_could_not_be_trained_on_costs_nothing(
    arrays: dict[str, npt.NDArray[np.float32]], ledger: LedgerStore
) -> None:
    one = node(ledger)
    propose(one)
    with pytest.raises(RemoteProtocolError):
        one.train(requests.to_record(REQUEST), 1, arrays, {})
    assert kinds(ledger) == ["reserve"]


def test_closing_frees_what_was_never_begun(ledger: LedgerStore) -> None:
    one = node(ledger)
    propose(one)
    train(one, 1)
    one.close("job-1")
    assert dict(ledger.refresh().spending()) == {TASK.event: 1}
    with pytest.raises(PolicyError, match="has ended here"):
        train(one, 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_multiplier": 0.9},
        {"features": ("age",)},
        {"rounds": 4},
        {"sampling_prob": 0.2},
        {"l2_clip_norm": 2.0},
        {"seed": 1},
    ],
)
def test_another_request_under_an_admitted_name_is_refused(
    ledger: LedgerStore, changed: dict[str, object]
) -> None:
    one = node(ledger)
    propose(one)
    other = Request("job-1", replace(TASK, **changed))  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="request"):
        train(one, 1, other)
    assert kinds(ledger) == ["reserve"]


@pytest.mark.parametrize("number", [0, -1, 4])
def test_rounds_outside_the_job_are_refused(ledger: LedgerStore, number: int) -> None:
    one = node(ledger)
    propose(one)
    with pytest.raises(PolicyError, match="rounds"):
        train(one, number)
    assert kinds(ledger) == ["reserve"]


def test_a_round_of_a_job_never_proposed_is_refused(ledger: LedgerStore) -> None:
    with pytest.raises(PolicyError, match="request"):
        train(node(ledger), 1)
    assert kinds(ledger) == []


def refused(rule: str, task: TrainingTask) -> object:
    return pytest.param(rule, task, id=rule)


@pytest.mark.parametrize(
    ("rule", "task"),
    [
        refused("purpose", replace(TASK, purpose="resale")),
        refused("column", replace(TASK, features=("age", "income"))),
        refused("label", replace(TASK, label="churned")),
        refused("protection", replace(TASK, protection="none")),
        refused("rounds", replace(TASK, rounds=51, noise_multiplier=10.0)),
        refused("steps", replace(TASK, rounds=50, local_steps=5, noise_multiplier=20.0)),
        refused("epsilon", replace(TASK, noise_multiplier=0.2)),
    ],
)
def test_the_gate_names_the_rule(ledger: LedgerStore, rule: str, task: TrainingTask) -> None:
    with pytest.raises(PolicyError) as caught:
        propose(node(ledger), Request("job-1", task))
    assert caught.value.rule == rule
    assert kinds(ledger) == []


def test_a_budget_that_is_spent_refuses_the_next_job(ledger: LedgerStore) -> None:
    one = node(ledger)
    dear = replace(TASK, noise_multiplier=0.6, rounds=20)
    propose(one, Request("job-1", dear))
    with pytest.raises(PolicyError) as caught:
        propose(one, Request("job-2", dear))
    assert caught.value.rule == "budget"
    assert kinds(ledger) == ["reserve"]


def test_too_few_customers_are_refused_without_saying_how_few(ledger: LedgerStore) -> None:
    with pytest.raises(PolicyError) as caught:
        propose(node(ledger, n=37))
    assert caught.value.rule == "cohort"
    assert "37" not in str(caught.value)


def test_the_partners_own_policy_can_only_tighten(ledger: LedgerStore) -> None:
    with pytest.raises(PolicyError) as caught:
        propose(node(ledger, NodePolicy(max_epsilon_per_job=0.1)))
    assert caught.value.rule == "epsilon"
    with pytest.raises(PolicyError):
        propose(
            node(ledger, NodePolicy(max_epsilon_per_job=1000.0)),
            Request("job-2", replace(TASK, noise_multiplier=0.2)),
        )


def test_a_policy_that_became_stricter_stops_an_admitted_job(ledger: LedgerStore) -> None:
    admissions = Admissions(None)
    propose(node(ledger, admissions=admissions))
    policy = NodePolicy(refused_purposes=("propensity",))
    stricter = node(ledger, policy, admissions=admissions)
    with pytest.raises(PolicyError) as caught:
        train(stricter, 1)
    assert caught.value.rule == "purpose"
    assert kinds(ledger) == ["reserve"]


Ask = Callable[[], Record]


@pytest.mark.parametrize(
    ("rule", "ask"),
    [
        ("terms", lambda: request_record(asked(REQUEST, terms(minimum_cohort=40)))),
        ("party", lambda: request_record(asked(REQUEST, TERMS)) | {"signature": "0" * 128}),
        ("party", lambda: request_record(asked(REQUEST, TERMS)) | {"asked_by": "stranger"}),
        ("role", lambda: by("platform", "platform")),
        ("party", lambda: by(COORDINATOR, "platform")),
    ],
)
def test_who_may_not_ask_or_did_not_is_refused(rule: str, ask: Ask, ledger: LedgerStore) -> None:
    one = node(ledger)
    with pytest.raises(PolicyError) as caught:
        one.propose(ask())
    assert caught.value.rule == rule
    with pytest.raises(PolicyError, match=f"{rule}: "):
        one.preview(ask())
    assert kinds(ledger) == []


def by(name: str, key: str) -> Record:
    return request_record(sign_request(REQUEST, agreed.digest(TERMS), name, signing_key(key)))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"request": {}},
        request_record(asked(REQUEST, TERMS)) | {"more": 1},
        request_record(asked(REQUEST, TERMS)) | {"request": requests.to_record(REQUEST) | {"x": 1}},
    ],
)
def test_what_is_no_signed_request_is_the_other_sides_fault(
    record: Record, ledger: LedgerStore
) -> None:
    one = node(ledger)
    for call in (one.propose, one.preview):
        with pytest.raises(RemoteProtocolError):
            call(record)


def test_a_permit_is_signed_by_this_partner_for_this_request(ledger: LedgerStore) -> None:
    signed = signed_permit_from_record(propose(node(ledger)))
    require_permitted(signed, TERMS.partner("retailer"))
    with pytest.raises(RemoteProtocolError):
        require_permitted(signed, TERMS.partner("brand"))
    assert signed.permit.request_digest == requests.digest(REQUEST)
    assert signed.permit.terms_digest == agreed.digest(TERMS)
    assert signed.permit.ledger_head == ledger.entries()[-1].digest


def test_a_released_model_is_kept_as_it_came(ledger: LedgerStore) -> None:
    kept: list[Record] = []
    node(ledger, keep=lambda card, _: kept.append(card)).keep({"job": "job-1"}, {})
    assert kept == [{"job": "job-1"}]


def test_a_partner_outside_the_terms_has_no_node(ledger: LedgerStore) -> None:
    rows = MemoryCustomers(99)
    with pytest.raises(AgreementError):
        Node(TERMS, "stranger", signing_key("stranger"), 99, runner(rows), ledger, now)


def test_spending_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "retailer.ledger"
    for number in (1, 2):
        with closing(LedgerStore(path, TERMS.budget, now)) as ledger:
            one = node(ledger, admissions=Admissions(tmp_path / "admitted"))
            if number == 1:
                propose(one)
            train(one, number)
    with closing(LedgerStore(path, TERMS.budget, now)) as ledger:
        assert ledger.refresh().spending_by_job()["job-1"].rounds_committed == 2
        with pytest.raises(LedgerError):
            train(node(ledger, admissions=Admissions(tmp_path / "admitted")), 2)
