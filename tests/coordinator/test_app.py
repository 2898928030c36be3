"""The whole coordinator with nodes over real mutual TLS, all in this process."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.files import signature_path
from dovetail.agreement.party import Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    chain_from_record,
    require_permitted,
    sign_terms,
    signed_permit_from_record,
)
from dovetail.agreement.terms import Terms
from dovetail.coordinator import app as apps
from dovetail.coordinator.app import Coordinator
from dovetail.coordinator.settings import load_settings
from dovetail.crypto.keyring import make_keyring
from dovetail.errors import PolicyError, SettingError, TransportError
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import load_model
from tests.coordinator.nodes import NAMES, now
from tests.coordinator.test_metrics import free_port, read
from tests.coordinator.test_parties import fresh_keyring
from tests.loopback import Loopback, eventually, loopback
from tests.node.homes import amended
from tests.samples import TASK, terms

REQUEST = Request("job-1", TASK)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "TIDY_SECONDS", 0.05)
    monkeypatch.setattr("dovetail.node.attending.LOOK_SECONDS", 0.05)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path) as made:
        yield made


def spent(here: Loopback, name: str) -> int:
    path = here.home(name) / f"{name}.ledger"
    with LedgerStore(path, here.terms.budget, now) as store:
        return store.refresh().spending().get(TASK.event, 0)


def test_a_job_between_three_nodes_over_mutual_tls(here: Loopback, tmp_path: Path) -> None:
    here.start()
    here.attend(*NAMES)
    found = here.federation.client().call("Nodes", {})["parties"]
    assert [(party["name"], party["connected"]) for party in found] == [
        (name, True) for name in sorted(NAMES)
    ]
    here.federation.submit(REQUEST)
    assert here.watch() == ["submitted", *["permitted"] * 3, *["round"] * 3, "released"]
    card = here.federation.fetch("job-1", tmp_path / "model")
    assert card.request == REQUEST
    arrays, _ = load_model(tmp_path / "model")
    for name in NAMES:
        model = here.home(name) / "models" / "job-1"
        eventually((model / "card.json").exists)
        kept, _ = load_model(model)
        assert all(np.array_equal(kept[key], arrays[key]) for key in arrays)
        assert spent(here, name) == TASK.steps
    for record in here.call("Permits", job="job-1")["permits"]:
        signed = signed_permit_from_record({k: record[k] for k in ("permit", "signature")})
        require_permitted(signed, here.terms.partner(signed.permit.partner))


def test_an_agreement_that_comes_later_is_noticed_and_shown_to_who_is_connected(
    here: Loopback,
) -> None:
    folder = here.home(COORDINATOR)
    signatures = {path: path.read_bytes() for path in folder.glob("agreement.*.signature")}
    for path in signatures:
        path.unlink()
    here.start()
    here.attend(*NAMES)
    assert here.call("Agreement") == {"agreements": []}
    for path, content in signatures.items():
        path.write_bytes(content)
    eventually(lambda: here.call("Agreement")["agreements"])
    for name in NAMES:
        eventually(partial(has_versions, here.home(name), 1))
    (shown,) = chain_from_record(here.call("Agreement"))
    assert shown.terms == here.terms


def has_versions(home: Path, count: int) -> bool:
    """Whether a node keeps so many versions of the agreement."""
    path = home / "agreement.json"
    return path.exists() and len(json.loads(path.read_text())["agreements"]) == count


def amend(here: Loopback, known: Terms) -> None:
    """All parties sign another version, in the coordinator's folder."""
    keys = {name: here.keyring(name) for name in (COORDINATOR, *NAMES)}
    here.federation.sign(known, keys)


def test_an_amendment_is_taken_over_while_everybody_is_connected(here: Loopback) -> None:
    here.start()
    here.attend(*NAMES)
    first = here.terms
    second = amended(first, max_rounds=2)
    amend(here, second)
    eventually(lambda: len(here.call("Agreement")["agreements"]) == 2)

    for name in NAMES:
        eventually(partial(has_versions, here.home(name), 2))
    with pytest.raises(PolicyError, match="other terms"):
        here.federation.submit(REQUEST)
    here.federation.terms = second
    here.federation.submit(Request("job-2", replace(TASK, rounds=2)))
    assert here.watch("job-2")[-1] == "released"


def test_a_coordinator_goes_on_with_the_key_that_replaced_its_own(here: Loopback) -> None:
    here.start().close()
    old, new = here.federation.keyring, make_keyring(here.home("anew"), COORDINATOR, now())
    party = Party(COORDINATOR, new.signing.public, new.pin)
    first, second = here.terms, amended(here.terms, coordinator=party)
    keys = {COORDINATOR: new, **{name: here.keyring(name) for name in NAMES}}
    here.federation.sign(second, keys)
    former = sign_terms(second, COORDINATOR, old.signing, first)
    path = here.home(COORDINATOR) / "agreement.toml"
    signature_path(path, former, second).write_text(json.dumps(vars(former)))
    assert here.start()._trusted.newest == first, "the old key does not go on to it"
    here.coordinator.close()
    here.federation.keyring = new
    assert here.start()._trusted.newest == second
    here.coordinator.close()
    here.start()
    assert here.coordinator._trusted.in_force(now().date()) == second


def test_terms_that_somebody_has_not_signed_change_nothing(here: Loopback) -> None:
    here.start()
    second = amended(here.terms, minimum_cohort=1)
    path = here.home(COORDINATOR) / "agreement.toml"
    keys = here.keyring("retailer").signing
    signature = sign_terms(second, "retailer", keys)
    path.write_text(path.read_text().replace("minimum_cohort = 50", "minimum_cohort = 1"))
    path.with_name("agreement.retailer.signature").write_text(json.dumps(vars(signature)))
    assert not here.coordinator._adopt()
    (shown,) = chain_from_record(here.call("Agreement"))
    assert agreed.digest(shown.terms) == agreed.digest(here.terms)


def test_who_is_revoked_is_cut_off_at_once_and_stays_out(here: Loopback) -> None:
    here.start()
    (node,) = here.attend("brand")
    here.parties.revoke("brand")
    here.until_gone("brand")
    with pytest.raises(TransportError):
        here.client(here.keyring("brand")).call("Nodes", {})
    assert here.call("Nodes")["revoked"] == ["brand"]
    node.leave()
    assert node.failed is None, "it goes on trying"


def test_control_is_for_analysts_and_operators_only(here: Loopback) -> None:
    here.start()
    for keyring in (here.keyring("retailer"), fresh_keyring("stranger"), fresh_keyring("retailer")):
        with pytest.raises(TransportError):
            here.client(keyring).call("List", {"states": [], "limit": 1, "before": ""})
    assert here.call("List", states=[], limit=1, before="") == {"jobs": []}


def test_people_at_a_node_decide_while_the_coordinator_waits(tmp_path: Path) -> None:
    with loopback(tmp_path, terms(approval="manual")) as here:
        here.start()
        here.attend(*NAMES)
        here.federation.submit(REQUEST)
        client = here.client()
        awaited = set()
        for event in client.watch({"job": "job-1", "after": 0}):
            if event["kind"] == "awaiting":
                awaited.add(event["partner"])
            if awaited == set(NAMES):
                break
        assert here.call("Show", job="job-1")["awaited"] == list(NAMES)
        for name in NAMES:
            desk = Desk(here.home(name) / "desk")
            assert [signed.request for signed in desk.waiting()] == [REQUEST]
            desk.decide("job-1", "approved", now())
        assert here.watch()[-1] == "released"


def test_a_coordinator_that_is_started_again_goes_on_with_its_jobs(here: Loopback) -> None:
    here.start()
    here.attend("retailer", "platform")
    here.federation.submit(REQUEST)
    client = here.client()
    for event in client.watch({"job": "job-1", "after": 0}):
        if event["kind"] == "permitted":
            break
    here.coordinator.close()
    here.start()
    here.attend("brand")
    kinds = here.watch()
    assert kinds.count("submitted") == 1
    assert "resumed" in kinds
    assert kinds[-1] == "released"
    assert all(spent(here, name) == TASK.steps for name in NAMES)


def test_one_coordinator_at_a_time_has_the_database(here: Loopback) -> None:
    here.start()
    settings = load_settings(here.home(COORDINATOR))
    with pytest.raises(SettingError, match=COORDINATOR):
        Coordinator(settings, here.federation.keyring)


def test_a_claim_that_was_lost_is_taken_again(here: Loopback) -> None:
    here.start()
    lock = here.home(COORDINATOR) / "jobs.sqlite.lock"
    lock.unlink()
    eventually(lock.exists)
    settings = load_settings(here.home(COORDINATOR))
    with pytest.raises(SettingError, match=COORDINATOR):
        Coordinator(settings, here.federation.keyring)


def test_a_coordinator_that_lost_its_database_to_another_runs_nothing_more(
    here: Loopback,
) -> None:
    first = here.start()
    (here.home(COORDINATOR) / "jobs.sqlite.lock").unlink()
    settings = replace(load_settings(here.home(COORDINATOR)), listen="127.0.0.1:0")
    with Coordinator(settings, here.federation.keyring):
        eventually(first._docket._suspended.is_set)


def test_the_keys_must_be_the_coordinators_own(here: Loopback) -> None:
    settings = load_settings(here.home(COORDINATOR))
    with pytest.raises(SettingError, match="belong to 'retailer'"):
        Coordinator(settings, here.keyring("retailer"))


@pytest.mark.parametrize("what", ["listen", "metrics"])
def test_an_address_that_is_taken_is_said_to_be(what: str, here: Loopback) -> None:
    here.start()
    settings = load_settings(here.home(COORDINATOR))
    other = replace(
        settings,
        database=str(here.home(COORDINATOR) / "other.sqlite"),
        listen=settings.listen if what == "listen" else "127.0.0.1:0",
        metrics=settings.listen if what == "metrics" else "",
    )
    with (
        Coordinator(other, here.federation.keyring) as second,
        pytest.raises((SettingError, TransportError), match="listen"),
    ):
        second.start()


def test_metrics_tell_of_jobs_and_nodes(here: Loopback) -> None:
    port = free_port()
    with (here.home(COORDINATOR) / "coordinator.toml").open("a") as file:
        file.write(f'metrics = "127.0.0.1:{port}"\n')
    here.start()
    here.attend(*NAMES)
    here.federation.submit(REQUEST)
    assert here.watch()[-1] == "released"
    found = read(port)
    assert found["dovetail_nodes_connected", ()] == 3
    assert found["dovetail_jobs", ("released",)] == 1
    assert found["dovetail_rounds_total", ("finished",)] == 3
    assert found["dovetail_links_total", ("connected",)] == 3


def test_a_watch_ends_when_the_coordinator_stops(here: Loopback) -> None:
    here.start()
    client = here.client()
    heard: list[BaseException] = []

    def watch() -> None:
        try:
            list(client.watch({"job": "", "after": 0}))
        except TransportError as error:
            heard.append(error)

    watching = threading.Thread(target=watch)
    watching.start()
    here.coordinator.close()
    watching.join(60)
    assert not watching.is_alive()


def test_what_is_kept_is_a_plain_database(here: Loopback) -> None:
    here.start()
    here.coordinator.close()
    with sqlite3.connect(here.home(COORDINATOR) / "jobs.sqlite") as database:
        (count,) = database.execute("SELECT count(*) FROM agreements").fetchone()
    database.close()
    assert count == 1
