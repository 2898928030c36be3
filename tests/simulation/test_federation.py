"""Real processes over mutual TLS: started, killed with ``kill -9``, started again, stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement.files import read_signed
from dovetail.agreement.request import Request
from dovetail.crypto.keyring import load_keyring
from dovetail.errors import SettingError, TransportError
from dovetail.simulation.federation import COORDINATOR, Federation, Member
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import load_model
from tests.coordinator.nodes import now
from tests.loopback import eventually
from tests.node.homes import SIZES, write_csv
from tests.samples import TASK, terms

LONG = Request("job-1", replace(TASK, rounds=40, noise_multiplier=3.0))
NAMES = ("retailer", "brand")
TWO = replace(terms(), partners=tuple(p for p in terms().partners if p.name in NAMES))
"""Processes cost their start; the third partner of the other tests changes nothing here."""


def members(folder: Path) -> dict[str, Member]:
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_csv(folder / f"{name}.csv", SIZES[name], seed)
    return {name: Member(folder / f"{name}.csv") for name in NAMES}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path / "federation", TWO, members(tmp_path / "tables")) as made:
        yield made


def logs(federation: Federation) -> str:
    paths = [federation.log(name) for name in (COORDINATOR, *NAMES)]
    return "\n".join(path.read_text() for path in paths if path.exists())


def killed(federation: Federation, party: str) -> None:
    federation.processes[party].kill()
    federation.processes[party].wait()


def events(federation: Federation) -> Iterator[dict[str, Any]]:
    """What happens to the job, for as long as the coordinator lives."""
    with federation.client() as client, suppress(TransportError):
        yield from client.watch({"job": "job-1", "after": 0})


def test_a_job_outlives_kill_9_of_a_node_and_of_the_coordinator(federation: Federation) -> None:
    federation.start()
    federation.submit(LONG, quorum=1)
    hurt = False
    for event in events(federation):
        if event["kind"] == "round" and not hurt:
            killed(federation, "brand")
            federation.start_node("brand")
            hurt = True
        if event["kind"] == "round" and event["round"] >= 10:
            killed(federation, COORDINATOR)
    federation.start_coordinator()
    federation.wait_until_connected(NAMES)
    kinds = [event["kind"] for event in events(federation)]
    assert kinds[-1] == "released", logs(federation)
    assert kinds.count("resumed") == 1
    assert kinds.count("submitted") == 1
    for name in NAMES:
        model = federation.home(name) / "models" / "job-1"
        eventually((model / "card.json").exists)
        load_model(model)
        path = federation.home(name) / f"{name}.ledger"
        with LedgerStore(path, federation.terms.budget, now) as ledger:
            eventually(lambda ledger=ledger: not ledger.refresh().open_jobs())  # type: ignore[misc]
            rounds = [entry.round for entry in ledger.entries() if entry.kind == "commit"]
            spent = ledger.refresh().spending_by_job()["job-1"]
        assert len(rounds) == len(set(rounds)) == spent.rounds_committed
        assert spent.charged >= spent.rounds_begun >= len(rounds) >= 1
    running = list(federation.processes.values())
    federation.stop()
    assert {process.returncode for process in running} == {130}
    assert "Traceback" not in logs(federation)


def test_everybody_has_keys_of_their_own_and_signed(federation: Federation) -> None:
    signed = read_signed(federation.home(COORDINATOR) / "agreement.toml")
    assert signed.terms == federation.terms
    assert signed.missing() == ()
    for name in NAMES:
        keyring = load_keyring(federation.home(name) / "keys")
        assert keyring.pin == federation.terms.partner(name).certificate
        access = json.loads((federation.home(name) / "keys" / "access.json").read_text())
        assert access["address"] == federation.address
    everything = [path for path in federation.home(COORDINATOR).rglob("*") if path.is_file()]
    private = [path for path in everything if b"PRIVATE KEY" in path.read_bytes()]
    assert {path.parent for path in private} == {federation.home(COORDINATOR) / "keys"}


def test_a_folder_is_used_once(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        Federation(federation.folder, TWO, members(tmp_path / "again"))


def test_a_process_that_ends_at_once_is_said_to_have_ended(
    federation: Federation, tmp_path: Path
) -> None:
    (federation.home("brand") / "node.toml").write_text("nothing")
    federation.start_node("brand")
    with pytest.raises(TransportError, match=r"process of 'brand' ended; see .*log\.txt"):
        federation.wait_until_connected(["brand"])
    assert "node.toml: is not TOML" in federation.log("brand").read_text()
