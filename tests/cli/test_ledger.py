from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dovetail.agreement.terms import Budget
from dovetail.cli.main import app
from dovetail.privacy.accountant import epsilon
from dovetail.store.ledger import LedgerStore
from tests.samples import TASK

RUNNER = CliRunner()


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


def test_spending_is_shown_by_job_and_together(file: Path) -> None:
    result = RUNNER.invoke(app, ["ledger", str(file), "--delta", "1e-3", "--json"])
    record = json.loads(result.stdout)
    assert record["entries"] == 5
    assert record["epsilon"] == pytest.approx(epsilon({TASK.event: 3}, 1e-3))
    assert [(job["job"], job["state"], job["steps_charged"]) for job in record["jobs"]] == [
        ("job-1", "closed", 1),
        ("job-2", "open", 2),
    ]
    shown = RUNNER.invoke(app, ["ledger", str(file), "--delta", "1e-3"])
    assert shown.exit_code == 0
    assert "5 entries" in shown.stdout


def test_a_damaged_ledger_is_found(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"job-2", b"job-3"))
    assert RUNNER.invoke(app, ["ledger", str(file)]).exit_code == 1


def test_a_missing_ledger_is_not_made(tmp_path: Path) -> None:
    assert RUNNER.invoke(app, ["ledger", str(tmp_path / "none")]).exit_code == 1
    assert list(tmp_path.iterdir()) == []
