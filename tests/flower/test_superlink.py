"""The product's own apps on a stock SuperLink with SuperNodes: Flower's processes, on loopback."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.superlink import SuperLink
from dovetail.agreement.files import read_signed
from dovetail.agreement.signing import chain_record
from dovetail.coordinator import flower_app as coordinator
from dovetail.node import flower_app as node
from dovetail.simulation.federation import COORDINATOR, Federation, Member
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import load_model
from tests.node.homes import SIZES, write_csv
from tests.samples import terms

JOB = """
job = "job-1"
deadline = 300
[task]
purpose = "propensity"
features = ["age", "spend", "region"]
label = "bought"
rounds = 2
sampling_prob = 0.1
l2_clip_norm = 1.0
noise_multiplier = 1.0
learning_rate = 0.1
[task.model]
family = "logistic"
"""
APPS = ("dovetail.coordinator.flower_app:app", "dovetail.node.flower_app:app")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Keys, terms that all signed, and a table each; nothing runs."""
    members = {}
    for seed, (name, customers) in enumerate(SIZES.items()):
        write_csv(tmp_path / f"{name}.csv", customers, seed)
        members[name] = Member(tmp_path / f"{name}.csv")
    made = Federation(tmp_path / "federation", terms(), members)
    signed = read_signed(made.home(COORDINATOR) / "agreement.toml")
    for name in SIZES:  # a SuperLink brings no terms
        (made.home(name) / "agreement.json").write_text(json.dumps(chain_record([signed])))
    (made.home(COORDINATOR) / "job.toml").write_text(JOB)
    return made


@pytest.mark.superlink
def test_a_job_runs_on_a_superlink_and_charges_every_ledger(
    federation: Federation, tmp_path: Path
) -> None:
    nodes = [{node.VARIABLE: str(federation.home(name) / "node.toml")} for name in SIZES]
    home = federation.home(COORDINATOR)
    (tmp_path / "flower").mkdir()
    with SuperLink(tmp_path / "flower", nodes, {coordinator.VARIABLE: str(home)}) as superlink:
        said = superlink.run(*APPS, {"job": "job.toml"})
        logs = superlink.logs()
    assert (home / "releases").exists(), said + logs
    arrays, card = load_model(home / "releases" / "job-1")
    steps = card.request.task.steps
    for name in SIZES:
        received, _ = load_model(federation.home(name) / "models" / "job-1")
        assert {k: a.tobytes() for k, a in received.items()} == {
            k: a.tobytes() for k, a in arrays.items()
        }
        path = federation.home(name) / f"{name}.ledger"
        with LedgerStore(path, federation.terms.budget, lambda: datetime.now(UTC)) as ledger:
            assert dict(ledger.refresh().spending()) == {card.request.task.event: steps}
