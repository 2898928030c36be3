"""A partner's commands: set up, check, decide, score."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.signing import request_record
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.node.opening import OpenNode
from dovetail.node.settings import load_settings
from dovetail.store.desk import Desk
from tests.node.homes import asked, keyring, released, terms_of, write_homes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["node", *map(str, arguments)])


def of(home: Path) -> list[object]:
    return ["--node", home / "node.toml"]


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == Code.DONE, result.output
    return result.stdout


def test_check_says_what_is_wrong_and_how_to_mend_it(home: Path) -> None:
    result = call("check", *of(home))
    assert result.exit_code == Code.BAD
    assert "no  coordinator" in result.stdout
    assert "put access.json back into keys" in result.stdout
    assert "ok  table" in result.stdout
    record = json.loads(call("check", *of(home), "--json").stdout)
    assert record["usable"] is False
    assert [step["name"] for step in record["steps"] if not step["good"]] == ["coordinator"]


def test_pausing_and_resuming(home: Path) -> None:
    desk = Desk(home / "desk")
    done("pause", *of(home))
    assert desk.paused
    assert "no  desk" in call("check", *of(home)).stdout
    done("resume", *of(home))
    assert not desk.paused


def test_people_see_what_waits_and_decide(home: Path) -> None:
    assert "nothing waits" in done("waiting", *of(home))
    desk, signed = Desk(home / "desk"), asked(terms_of(home))
    desk.wait_for_decision(signed, datetime.now(UTC))
    shown = done("waiting", *of(home))
    for word in ("job-1", "propensity", "logistic", "spend"):
        assert word in shown
    (record,) = json.loads(done("waiting", *of(home), "--json"))["waiting"]
    assert record == json.loads(json.dumps(request_record(signed)))
    done("approve", "job-1", *of(home))
    assert desk.decision(signed, datetime.now(UTC)) == "approved"
    done("refuse", "job-1", *of(home))
    assert desk.decision(signed, datetime.now(UTC)) == "refused"


@pytest.mark.parametrize("command", ["approve", "refuse"])
def test_nobody_decides_on_what_does_not_wait(command: str, home: Path) -> None:
    for job in ("job-9", "../job-1"):
        result = call(command, job, *of(home))
        assert result.exit_code == Code.USAGE
        assert result.stderr.startswith("error: ")


def test_a_released_model_is_applied_to_the_partners_own_rows(home: Path) -> None:
    settings = load_settings(home / "node.toml")
    with OpenNode(settings, terms_of(home), keyring(home), child=False) as node:
        node.node.propose(request_record(asked(node.terms)))
        record, made = released(node.terms)
        node.node.keep(record, made.value)
    scores = home / "scores.csv"
    shown = done("score", home / "models" / "job-1", "--output", scores, *of(home))
    assert "decile" in shown
    assert len(scores.read_text().splitlines()) == 301
    bad = call("score", home / "models" / "job-1", "--output", home / "scores.txt", *of(home))
    assert bad.exit_code == Code.USAGE


def test_settings_that_cannot_be_used_stop_every_command(home: Path) -> None:
    (home / "node.toml").write_text("nothing")
    for command in ("check", "serve", "pause", "resume", "waiting", "approve x", "refuse x"):
        result = call(*command.split(), *of(home))
        assert result.exit_code == (Code.BAD if command == "check" else Code.USAGE)
        assert "is not TOML" in result.output


def test_serving_needs_the_keys_and_the_coordinators_address(home: Path) -> None:
    result = call("serve", *of(home))
    assert result.exit_code == Code.USAGE
    assert "access.json" in result.stderr


def test_init_never_replaces_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    runner.invoke(app, ["coordinator", "init", "--name", "coop"])
    runner.invoke(app, ["coordinator", "invite", "retailer"])
    done("init", "retailer.invitation")
    before = (tmp_path / "retailer" / "keys" / "signing.pem").read_bytes()
    again = call("init", "retailer.invitation")
    assert again.exit_code == Code.USAGE
    assert (tmp_path / "retailer" / "keys" / "signing.pem").read_bytes() == before
