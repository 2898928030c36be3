from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.signing import chain_record
from dovetail.agreement.terms import Budget, Terms
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.privacy.accountant import epsilon
from dovetail.store.ledger import LedgerStore
from tests.coordinator.office import signed_by_all
from tests.samples import TASK, terms


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["node", "ledger", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "retailer.ledger"
    with LedgerStore(path, Budget(8.0, 1e-3), lambda: datetime.now(UTC)) as store:
        store.reserve("job-1", "a" * 64, TASK.event, 3)
        store.begin("job-1", 1, 1)
        store.commit("job-1", 1)
        store.cancel("job-1")
        store.reserve("job-2", "b" * 64, TASK.event, 2)
    return path


def agree(file: Path, known: Terms) -> None:
    record = chain_record([signed_by_all(known)])
    (file.parent / "agreement.json").write_text(json.dumps(record))


def test_spending_is_shown_by_job_and_together(file: Path) -> None:
    result = call("show", file, "--delta", "1e-3", "--json")
    record = json.loads(result.stdout)
    assert record["entries"] == 5
    assert record["epsilon"] == pytest.approx(epsilon({TASK.event: 3}, 1e-3))
    assert [(job["job"], job["state"], job["steps_charged"]) for job in record["jobs"]] == [
        ("job-1", "closed", 1),
        ("job-2", "open", 2),
    ]
    assert "budget" not in record
    shown = call("show", file, "--delta", "1e-3")
    assert shown.exit_code == Code.DONE
    assert "5 entries" in shown.stdout


def test_beside_an_agreement_it_says_what_is_left(file: Path) -> None:
    agree(file, terms())
    record = json.loads(call("show", file, "--json").stdout)
    assert record["budget"] == 8.0
    assert record["epsilon_left"] == pytest.approx(8.0 - record["epsilon"])
    assert "of 8" in call("show", file).stdout


def test_a_budget_that_refills_is_stated_for_its_period(file: Path) -> None:
    agree(file, terms(budget=Budget(8.0, 1e-3, "month")))
    record = json.loads(call("show", file, "--json").stdout)
    assert record["period"] == "month"
    assert record["epsilon_now"] == pytest.approx(record["epsilon"])
    assert "In this month" in call("show", file).stdout


def test_an_agreement_that_cannot_be_read_is_named(file: Path) -> None:
    (file.parent / "agreement.json").write_text("{")
    result = call("show", file)
    assert result.exit_code == Code.USAGE
    assert "agreement.json" in result.stderr
    assert call("show", file, "--delta", "1e-3").exit_code == Code.DONE


def test_the_chain_is_verified_against_a_digest_noted_earlier(file: Path) -> None:
    entries = json.loads(call("export", file).stdout)
    for entry in entries:
        assert call("verify", file, "--head", entry["digest"]).exit_code == Code.DONE
    assert "the chain is unbroken" in call("verify", file).stdout
    cut = call("verify", file, "--head", "0" * 63 + "1")
    assert cut.exit_code == Code.BAD
    assert "cut off" in cut.stderr


def test_everything_is_exported_oldest_first(file: Path) -> None:
    entries = json.loads(call("export", file).stdout)
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["reserve", "begin", "commit", "cancel", "reserve"]
    for before, after in pairwise(entries):
        assert after["previous"] == before["digest"]


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_damaged_ledger_is_found(command: str, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"job-2", b"job-3"))
    assert call(command, file).exit_code == Code.BAD


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_missing_ledger_is_not_made(command: str, tmp_path: Path) -> None:
    assert call(command, tmp_path / "none").exit_code == Code.BAD
    assert list(tmp_path.iterdir()) == []
