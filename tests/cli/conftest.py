"""Parties with real keys, and an agreement between them, for the commands to work on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.draft import template
from dovetail.agreement.enrolment import Invitation, InvitedDuty, request_enrolment
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.crypto.keyring import Keyring, make_keyring

NOW = datetime.now(UTC)
SCHEMA = Path(__file__).parents[2] / "examples" / "schema.toml"
NAMES = ("coordinator", "analyst", "retailer", "platform", "brand")


def call(*arguments: object, typed: str | IO[bytes] | None = None, **environment: str) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["agreement", *words], input=typed, env=environment)


def make_party(home: Path, name: str, passphrase: bytes | None = None) -> Keyring:
    return make_keyring(home / name / "keys", name, NOW, passphrase=passphrase)


def collect(home: Path, duties: dict[str, InvitedDuty]) -> Path:
    """Makes everybody's keys, and a folder with what the coordinator knows of them."""
    coordinator, folder = make_party(home, "coordinator"), home / "parties"
    folder.mkdir()
    own = {"name": "coordinator", "key": coordinator.signing.public, "certificate": coordinator.pin}
    (folder / "coordinator.party").write_text(json.dumps(own))
    pem = coordinator.certificate.decode()
    for name, duty in duties.items():
        invitation = Invitation(name, duty, "localhost:1", "coordinator", pem, "5f" * 32)
        request = request_enrolment(invitation, make_party(home, name))
        (folder / f"{name}.request").write_text(json.dumps(vars(request)))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with everybody's keys, made once; tests copy what they change."""
    home = tmp_path_factory.mktemp("home")
    partners: dict[str, InvitedDuty] = dict.fromkeys(("retailer", "platform", "brand"), "partner")
    collect(home, {"analyst": "analyst", **partners})
    (home / "template.toml").write_text(template())
    (home / "schema.toml").write_bytes(SCHEMA.read_bytes())
    result = call("new", home / "spring.toml", *drawn_from(home))
    assert result.exit_code == Code.DONE, result.output
    return home


def drawn_from(home: Path) -> tuple[object, ...]:
    """The options that draw up an agreement from what is in a home."""
    return "--from", home / "template.toml", "--parties", home / "parties"


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """The agreement of the home, alone in a folder of its own."""
    for name in ("spring.toml", "schema.toml"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    return tmp_path / "spring.toml"


def sign(made: Path, file: Path, *names: str) -> None:
    for name in names:
        assert call("sign", file, "--keys", made / name / "keys", "--yes").exit_code == Code.DONE
