"""A job over nodes of which nobody knows yet whose they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement.files import load_terms
from dovetail.agreement.job_file import JobFile
from dovetail.agreement.request import Request
from dovetail.coordinator import flower_app
from dovetail.crypto.keyring import load_keyring
from dovetail.errors import AgreementError, PolicyError, RemoteProtocolError, SettingError
from dovetail.flower.actions import node_app
from dovetail.flower.client import answer, new_context
from dovetail.node.app import Node
from dovetail.node.runner import Runner
from dovetail.privacy.sampler import SecureSampler
from dovetail.simulation.federation import COORDINATOR, Federation, Member
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import load_model
from dovetail.wire.memory import Handler, MemoryChannel
from tests.coordinator.nodes import now
from tests.samples import SHARED_TASK, TASK, customers, terms

JOB = JobFile(Request("job-1", TASK), quorum=0, deadline=60.0)
NUMBERS = {2**63 + 7: "brand", 5: "retailer", 77: "platform"}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    names = [partner.name for partner in terms().partners]
    return Federation(tmp_path, terms(), {name: Member(tmp_path / "none.csv") for name in names})


@pytest.fixture
def ledgers(federation: Federation) -> dict[str, LedgerStore]:
    budget = federation.terms.budget
    return {p.name: LedgerStore(None, budget, now) for p in federation.terms.partners}


def handler(federation: Federation, name: str, ledger: LedgerStore, cohort: int = 0) -> Handler:
    """A real node of a partner; ``cohort`` is how many customers it says it has, 0 for all."""
    rows, agreed = customers()[name], federation.terms
    runner = Runner(
        rows,
        agreed.schema,
        agreed.partner(name).customers,
        lambda *_: SecureSampler(bytes(32)),
    )
    key = load_keyring(federation.home(name) / "keys").signing
    node = Node(agreed, name, key, cohort or len(rows), runner, ledger, now)
    context = new_context(0, {}, {})
    return partial(answer, node_app(lambda _: node), lambda _: context)


def test_each_node_shows_by_its_permit_whose_it_is(
    federation: Federation, ledgers: dict[str, LedgerStore]
) -> None:
    channel = MemoryChannel({n: handler(federation, p, ledgers[p]) for n, p in NUMBERS.items()})
    released = flower_app.run_job(channel, federation.home(COORDINATOR), lambda _: JOB)
    assert set(released.spending) == set(NUMBERS.values())
    arrays, card = load_model(federation.home(COORDINATOR) / "releases" / "job-1")
    assert card.request == JOB.request
    assert all(np.array_equal(arrays[name], array) for name, array in released.value.items())
    for ledger in ledgers.values():
        assert dict(ledger.refresh().spending()) == {TASK.event: TASK.steps}


def test_two_nodes_of_one_partner_are_not_two_partners(
    federation: Federation, ledgers: dict[str, LedgerStore]
) -> None:
    twice = {1: "retailer", 2: "platform", 3: "retailer"}
    channel = MemoryChannel({n: handler(federation, p, ledgers[p]) for n, p in twice.items()})
    with pytest.raises(RemoteProtocolError, match="one for each partner"):
        flower_app.run_job(channel, federation.home(COORDINATOR), lambda _: JOB)
    assert not any(ledger.refresh().spending() for ledger in ledgers.values())


def test_where_one_refuses_nothing_stays_reserved(
    federation: Federation, ledgers: dict[str, LedgerStore]
) -> None:
    handlers = {n: handler(federation, p, ledgers[p]) for n, p in NUMBERS.items()}
    handlers[77] = handler(federation, "platform", ledgers["platform"], cohort=3)
    with pytest.raises(PolicyError) as refused:
        flower_app.run_job(MemoryChannel(handlers), federation.home(COORDINATOR), lambda _: JOB)
    assert refused.value.rule == "cohort"
    assert not any(ledger.refresh().spending() for ledger in ledgers.values())


def test_noise_is_not_shared_here_and_nobody_is_asked(
    federation: Federation, ledgers: dict[str, LedgerStore]
) -> None:
    """A SuperNode plays each message in a new process, which has no keys of the one before."""
    asked: list[object] = []
    job = JobFile(Request("job-1", SHARED_TASK), quorum=0, deadline=60.0)
    channel = MemoryChannel(dict.fromkeys(NUMBERS, asked.append))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="'distributed' does not work on Flower's engines"):
        flower_app.run_job(channel, federation.home(COORDINATOR), lambda _: job)
    assert not asked


def test_terms_that_not_all_signed_are_not_used(
    federation: Federation, ledgers: dict[str, LedgerStore]
) -> None:
    home = federation.home(COORDINATOR)
    (home / "agreement.brand.signature").unlink()
    assert load_terms(home / "agreement.toml") == federation.terms
    with pytest.raises(AgreementError, match="not signed by brand"):
        flower_app.run_job(MemoryChannel({}), home, lambda _: JOB)
