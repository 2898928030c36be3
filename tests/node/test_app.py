from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.policy import NodePolicy
from dovetail.agreement.request import Request, TrainingTask
from dovetail.coordinator.round import initial_arrays
from dovetail.crypto.prg import fresh_key
from dovetail.errors import AgreementError, LedgerError, PolicyError, RemoteProtocolError
from dovetail.node.app import Node
from dovetail.privacy.sampler import SecureSampler
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


@pytest.fixture
def ledger() -> Iterator[LedgerStore]:
    with closing(LedgerStore(None, TERMS.budget, lambda: datetime.now(UTC))) as store:
        yield store


def node(ledger: LedgerStore, policy: NodePolicy | None = None, n: int = 304) -> Node:
    return Node(
        TERMS,
        "retailer",
        WatchedCustomers(ledger, n),
        ledger,
        lambda _job, _number: SecureSampler(fresh_key()),
        policy or NodePolicy(),
    )


def propose(node: Node, request: Request = REQUEST) -> None:
    node.propose(requests.to_record(request), agreed.digest(TERMS))


def train(node: Node, number: int, request: Request = REQUEST) -> None:
    node.train(requests.to_record(request), number, initial_arrays(request.task, SCHEMA), {})


def kinds(ledger: LedgerStore) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def test_a_round_is_charged_before_rows_are_read_and_committed_before_it_leaves(
    ledger: LedgerStore,
) -> None:
    customers = WatchedCustomers(ledger)
    one = Node(TERMS, "retailer", customers, ledger, lambda *_: SecureSampler(fresh_key()))
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
    one = node(ledger)
    propose(one)
    with pytest.raises(RemoteProtocolError):
        one.train(requests.to_record(REQUEST), 1, {"output.bias": np.zeros(1, np.float32)}, {})
    train(one, 1)
    spent = ledger.refresh().spending_by_job()["job-1"]
    assert (spent.drawn, spent.rounds_committed) == (2, 1)
    one.close("job-1")
    assert ledger.refresh().spending_by_job()["job-1"].charged == 2


def test_closing_frees_what_was_never_begun(ledger: LedgerStore) -> None:
    one = node(ledger)
    propose(one)
    train(one, 1)
    one.close("job-1")
    assert dict(ledger.refresh().spending()) == {TASK.event: 1}
    with pytest.raises(LedgerError):
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
    propose(node(ledger))
    stricter = node(ledger, NodePolicy(refused_purposes=("propensity",)))
    with pytest.raises(PolicyError) as caught:
        train(stricter, 1)
    assert caught.value.rule == "purpose"
    assert kinds(ledger) == ["reserve"]


def test_other_terms_are_refused(ledger: LedgerStore) -> None:
    with pytest.raises(AgreementError):
        node(ledger).propose(requests.to_record(REQUEST), agreed.digest(terms(version=2)))


def test_a_partner_outside_the_terms_has_no_node(ledger: LedgerStore) -> None:
    with pytest.raises(AgreementError):
        Node(TERMS, "stranger", MemoryCustomers(99), ledger, lambda *_: SecureSampler(fresh_key()))


def test_spending_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "retailer.ledger"
    for number in (1, 2):
        with closing(LedgerStore(path, TERMS.budget, lambda: datetime.now(UTC))) as ledger:
            one = node(ledger)
            if number == 1:
                propose(one)
            train(one, number)
    with closing(LedgerStore(path, TERMS.budget, lambda: datetime.now(UTC))) as ledger:
        assert ledger.refresh().spending_by_job()["job-1"].rounds_committed == 2
        with pytest.raises(LedgerError):
            train(node(ledger), 2)
