"""A node at work over real mutual TLS: what keeps it from serving, and what it notices."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.agreement.request import Request
from dovetail.agreement.signing import chain_record
from dovetail.agreement.terms import Terms
from dovetail.coordinator import app as apps
from dovetail.coordinator import run as runs
from dovetail.crypto.keyring import load_keyring
from dovetail.errors import AgreementError, SettingError
from dovetail.node import attending
from dovetail.node.attending import access_of, attend
from dovetail.node.checking import check_node
from dovetail.node.settings import load_settings
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from dovetail.wire.peers import Limits
from tests.coordinator.nodes import now
from tests.loopback import Loopback, eventually, loopback
from tests.node.homes import amended, signed
from tests.samples import TASK, terms

GENTLE = replace(TASK, noise_multiplier=5.0)


def alone() -> Terms:
    """Terms of one partner, whom every round then waits for."""
    known = terms()
    return replace(known, partners=known.partners[:1])


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "TIDY_SECONDS", 0.05)
    monkeypatch.setattr(attending, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(attending, "AGAIN_SECONDS", 0.05)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path, alone()) as made:
        yield made


def serve(home: Path, keys: Path | None = None) -> None:
    """Serves until what stands in the way is found; in this thread."""
    settings = load_settings(home / "node.toml")
    attend(settings, load_keyring(keys or settings.keys), threading.Event(), child=False)


def run(here: Loopback, job: str) -> str:
    here.federation.submit(Request(job, GENTLE))
    return here.watch(job)[-1]


def test_the_keys_must_be_this_partners(here: Loopback) -> None:
    with pytest.raises(SettingError, match="belong to 'coordinator'"):
        serve(here.home("retailer"), here.home("coordinator") / "keys")


def test_without_an_address_it_does_not_serve(here: Loopback) -> None:
    (here.home("retailer") / "keys" / "access.json").unlink()
    with pytest.raises(SettingError, match=r"access\.json"):
        serve(here.home("retailer"))


def test_with_an_agreement_that_was_tampered_with_it_does_not_serve(here: Loopback) -> None:
    home = here.home("retailer")
    chain = chain_record([signed(home.parent, here.terms)])
    text = json.dumps(chain).replace('"minimum_cohort": 50', '"minimum_cohort": 1')
    (home / "agreement.json").write_text(text)
    with pytest.raises(AgreementError, match="not signed by"):
        serve(home)


def test_a_node_is_served_once_at_a_time(here: Loopback) -> None:
    here.start()
    here.attend("retailer")
    with pytest.raises(SettingError, match="another process serves this node already"):
        serve(here.home("retailer"))
    assert run(here, "job-1") == "released"


def test_rounds_run_in_a_process_of_their_own(here: Loopback) -> None:
    here.start()
    here.attend("retailer", child=True)
    assert run(here, "job-1") == "released"


def test_access_is_what_the_folder_of_keys_says(here: Loopback) -> None:
    settings = load_settings(here.home("retailer") / "node.toml")
    keyring = load_keyring(settings.keys)
    access = access_of(settings, keyring)
    assert access.address == here.federation.address
    assert access.server_certificate == here.federation.keyring.certificate
    assert access.private_key == keyring.tls_key


def test_another_server_than_the_terms_pin_is_answered_nothing(here: Loopback) -> None:
    """The invitation was given another certificate than the one that all signed."""
    pin = "c0" * 32
    coordinator = replace(here.terms.coordinator, certificate=pin)
    here.federation.terms = replace(here.terms, coordinator=coordinator)
    keys = {name: here.keyring(name) for name in ("coordinator", "retailer")}
    here.federation.sign(here.terms, keys)
    here.start()
    here.attend("retailer")
    assert run(here, "job-1") == "refused"
    reason = here.call("Show", job="job-1")["reason"]
    assert "terms: the terms pin another certificate for 'coordinator'" in reason
    assert not (here.home("retailer") / "retailer.ledger").exists()
    steps = check_node(here.home("retailer") / "node.toml", load_keyring)
    (found,) = [step for step in steps if step.name == "agreement"]
    assert (found.good, "pin another certificate" in found.text) == (False, True)


def test_a_table_that_is_mended_is_tried_again_without_a_restart(here: Loopback) -> None:
    table = here.home("retailer").parents[1] / "tables" / "retailer.csv"
    elsewhere = shutil.move(table, table.with_name("elsewhere.csv"))
    here.start()
    here.attend("retailer")
    assert run(here, "job-1") == "refused"
    assert "cannot open" in here.call("Show", job="job-1")["reason"]
    shutil.move(elsewhere, table)
    eventually(lambda: list((here.home("retailer") / "arrays").glob("*/meta.json")))
    assert run(here, "job-2") == "released"


def test_a_paused_node_refuses_and_answers_again_without_a_restart(here: Loopback) -> None:
    here.start()
    here.attend("retailer")
    desk = Desk(here.home("retailer") / "desk")
    desk.pause(now())
    assert run(here, "job-1") == "refused"
    assert here.call("Show", job="job-1")["reason"].startswith("retailer: paused")
    desk.resume()
    assert run(here, "job-2") == "released"


def test_a_node_that_was_away_hears_the_end_when_it_comes_back(
    here: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LONGEST_WAIT", 0.05)
    here.start(Limits(reconnect_grace=0.1))
    (node,) = here.attend("retailer")
    here.federation.submit(Request("job-1", replace(GENTLE, rounds=40)))
    with here.federation.client() as client:
        for event in client.watch({"job": "job-1", "after": 0}):
            if event["kind"] == "round":
                break
    node.leave()
    here.call("Cancel", job="job-1")
    assert here.watch()[-1] == "cancelled"
    path = here.home("retailer") / "retailer.ledger"
    with LedgerStore(path, here.terms.budget, now) as ledger:
        assert ledger.refresh().open_jobs() == ("job-1",)
        here.attend("retailer")
        eventually(lambda: ledger.refresh().open_jobs() == ())


def test_an_agreement_that_cannot_follow_is_logged_and_the_node_stays(
    here: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    home = here.home("retailer")
    later = amended(here.terms, max_rounds=10)
    chain = chain_record([signed(home.parent, version) for version in (here.terms, later)])
    (home / "agreement.json").write_text(json.dumps(chain))
    here.start()
    here.attend("retailer")
    eventually(lambda: "refuses the agreement that was shown" in caplog.text)
    assert run(here, "job-1") == "refused"
    assert "an older or another agreement was shown" in here.call("Show", job="job-1")["reason"]
