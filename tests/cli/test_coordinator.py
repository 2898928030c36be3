"""Setting up a coordinator and its parties, as three people would, command by command."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.files import read_invitation, read_parties
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.coordinator.settings import load_settings
from dovetail.crypto.keyring import load_keyring, needs_passphrase
from dovetail.node.settings import load_settings as node_settings


def call(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env=environment)


def done(*arguments: object, **environment: str) -> str:
    result = call(*arguments, **environment)
    assert result.exit_code == Code.DONE, result.output
    return result.stdout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a coordinator that was just set up."""
    monkeypatch.chdir(tmp_path)
    done("coordinator", "init", "--name", "coop", "--address", "coop.example:7433")
    return tmp_path


def test_a_coordinator_has_settings_and_keys_of_its_own(home: Path) -> None:
    settings = load_settings(home / "coordinator")
    assert (settings.name, settings.address) == ("coop", "coop.example:7433")
    assert settings.listen == "127.0.0.1:7433"
    assert load_keyring(settings.keys).name == "coop"
    assert stat.S_IMODE((home / "coordinator").stat().st_mode) == 0o700
    assert read_parties(settings.parties).coordinator.name == "coop"


def test_a_coordinator_is_never_replaced(home: Path) -> None:
    again = call("coordinator", "init", "--name", "other")
    assert again.exit_code == Code.USAGE
    assert "there is a coordinator already" in again.stderr
    assert load_settings(home / "coordinator").name == "coop"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--name", "a b"], "a party's name"),
        (["--name", "coop", "--address", "coop.example"], "--address must be host:port"),
        (["--name", "coop", "--listen", "7433"], "listen must be host:port"),
    ],
)
def test_what_cannot_be_used_leaves_nothing_behind(
    options: list[str], named: str, tmp_path: Path
) -> None:
    folder = tmp_path / "coop"
    result = call("coordinator", "init", *options, "--folder", folder)
    assert result.exit_code == Code.USAGE
    assert named in result.stderr
    assert not folder.exists()


def test_keys_can_be_encrypted_and_are_then_asked_for(tmp_path: Path) -> None:
    folder, secret = tmp_path / "coop", {"DOVETAIL_PASSPHRASE": "correct horse"}
    done("coordinator", "init", "--name", "coop", "--passphrase", "-f", folder, **secret)
    assert needs_passphrase(folder / "keys")
    done("coordinator", "invite", "retailer", "-f", folder, "-o", tmp_path, **secret)
    wrong = call("coordinator", "parties", "-f", folder, DOVETAIL_PASSPHRASE="wrong")
    assert wrong.exit_code == Code.USAGE
    assert "passphrase is wrong" in wrong.stderr
    empty = call("coordinator", "init", "--name", "b", "--passphrase", "-f", tmp_path / "b",
                 DOVETAIL_PASSPHRASE="")  # fmt: skip
    assert empty.exit_code == Code.USAGE
    assert not (tmp_path / "b").exists()


def test_enrolment_takes_three_commands_and_no_private_key_travels(home: Path) -> None:
    done("coordinator", "invite", "retailer", "brand")
    done("node", "init", "retailer.invitation")
    done("coordinator", "enrol", "retailer/retailer.request")
    listed = json.loads(done("coordinator", "parties", "--json"))
    assert [party["name"] for party in listed["enrolled"]] == ["retailer"]
    assert listed["enrolled"][0]["certificate"] == load_keyring(home / "retailer" / "keys").pin
    for travelling in ("retailer.invitation", "retailer/retailer.request"):
        assert "PRIVATE" not in (home / travelling).read_text()
    assert stat.S_IMODE((home / "retailer.invitation").stat().st_mode) == 0o600
    settings = node_settings(home / "retailer" / "node.toml")
    assert settings.name == "retailer"
    access = json.loads((settings.keys / "access.json").read_text())
    assert access["address"] == "coop.example:7433"


def test_an_analyst_makes_keys_only(home: Path) -> None:
    said = done("coordinator", "invite", "ann", "--analyst")
    assert "keys new keys --invitation ann.invitation" in said
    wrong = call("node", "init", "ann.invitation")
    assert wrong.exit_code == Code.USAGE
    assert "invites an analyst" in wrong.stderr
    done("keys", "new", "ann/keys", "--invitation", "ann.invitation")
    done("coordinator", "enrol", "ann/ann.request")
    assert "analyst" in done("coordinator", "parties")


def test_a_request_is_taken_in_once(home: Path) -> None:
    done("coordinator", "invite", "retailer")
    done("node", "init", "retailer.invitation")
    done("coordinator", "enrol", "retailer/retailer.request")
    again = call("coordinator", "enrol", "retailer/retailer.request")
    assert again.exit_code == Code.BAD
    assert "was not invited, or is enrolled already" in again.stderr
    taken = call("coordinator", "invite", "retailer")
    assert taken.exit_code == Code.USAGE
    assert "revoke it first" in taken.stderr


def test_who_is_revoked_can_be_invited_anew(home: Path) -> None:
    done("coordinator", "invite", "retailer")
    done("node", "init", "retailer.invitation")
    done("coordinator", "enrol", "retailer/retailer.request")
    done("coordinator", "revoke", "retailer")
    assert json.loads(done("coordinator", "parties", "--json"))["revoked"] == ["retailer"]
    assert "revoked" in done("coordinator", "parties")
    nobody = call("coordinator", "revoke", "stranger")
    assert nobody.exit_code == Code.USAGE
    done("coordinator", "invite", "retailer")
    assert read_invitation(home / "retailer.invitation").name == "retailer"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "retailer"}'])
def test_a_file_that_is_no_request_is_named(content: str, home: Path) -> None:
    (home / "x.request").write_text(content)
    result = call("coordinator", "enrol", "x.request")
    assert result.exit_code == Code.USAGE
    assert result.stderr.startswith("error: x.request: ")


def test_an_invitation_that_cannot_be_written_is_named(home: Path) -> None:
    result = call("coordinator", "invite", "retailer", "--output", home / "none")
    assert result.exit_code == Code.USAGE
    assert "retailer.invitation: cannot be written" in result.stderr


@pytest.mark.parametrize("command", ["invite x", "enrol x", "revoke x", "parties", "serve"])
def test_without_a_coordinator_there_is_nothing_to_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("coordinator", *command.split())
    assert result.exit_code == Code.USAGE
    assert "coordinator.toml: cannot be read" in result.stderr
    assert list(tmp_path.iterdir()) == []
