"""Keys made and shown by the command, in real folders."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.enrolment import Invitation, check_request, digest_of
from dovetail.agreement.files import read_access, read_request
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.cli.unlock import PASSPHRASE
from dovetail.crypto.certificates import new_certificate
from dovetail.crypto.keyring import load_keyring, needs_passphrase

TOKEN = "5f" * 32


def call(*arguments: object, typed: str | None = None, **environment: str) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["keys", *words], input=typed, env=environment)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    pem, _ = new_certificate("coordinator", datetime.now(UTC), ["localhost"])
    read = Invitation("anna", "analyst", "coop.example:7433", "coordinator", pem.decode(), TOKEN)
    path = tmp_path / "anna.invitation"
    path.write_text(json.dumps(vars(read)))
    return path


@pytest.mark.parametrize("command", ["new", "show"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == Code.DONE
    assert f"Example: dovetail keys {command}" in " ".join(result.stdout.split())


def test_new_keys_are_shown_as_they_were_made(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    made = call("new", folder, "--name", "anna", "--json")
    assert made.exit_code == Code.DONE
    keyring = load_keyring(folder)
    shown = call("show", folder, "--json")
    assert json.loads(shown.stdout) == {
        "name": "anna",
        "key": keyring.signing.public,
        "certificate": keyring.pin,
        "expires": json.loads(made.stdout)["expires"],
    }
    assert json.loads(made.stdout) == {"folder": str(folder), **json.loads(shown.stdout)}
    in_words = call("show", folder).stdout
    assert all(value in in_words for value in ("anna", keyring.signing.public, keyring.pin))


def test_no_private_key_is_printed(tmp_path: Path) -> None:
    made = call("new", tmp_path / "keys", "--name", "anna")
    for result in (made, call("show", tmp_path / "keys")):
        assert "PRIVATE" not in result.output
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_an_invitation_is_answered(invitation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "keys"
    result = call("new", folder, "--invitation", invitation, "--json")
    assert result.exit_code == Code.DONE
    request = read_request(tmp_path / "home" / "anna.request")
    assert json.loads(result.stdout)["request"] == str(tmp_path / "home" / "anna.request")
    check_request(request, digest_of(TOKEN))
    keyring, access = load_keyring(folder), read_access(folder)
    assert request.party.key == keyring.signing.public
    assert (access.address, access.coordinator) == ("coop.example:7433", "coordinator")
    assert TOKEN not in (folder / "access.json").read_text()
    assert "PRIVATE" not in (tmp_path / "home" / "anna.request").read_text()


def test_who_to_send_the_request_to_is_said(invitation: Path, tmp_path: Path) -> None:
    result = call("new", tmp_path / "keys", "--invitation", invitation)
    assert f"Send {tmp_path / 'anna.request'} to coordinator" in result.stdout


def test_keys_are_never_replaced(invitation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    call("new", folder, "--name", "anna")
    before = files(folder)
    for how in (["--name", "anna"], ["--invitation", invitation]):
        result = call("new", folder, *how)
        assert result.exit_code == Code.USAGE
        assert "keys are never replaced" in result.stderr
    assert files(folder) == before
    assert not (tmp_path / "anna.request").exists()


def test_a_request_that_lies_there_is_not_overwritten(invitation: Path, tmp_path: Path) -> None:
    (tmp_path / "anna.request").write_text("sent yesterday")
    result = call("new", tmp_path / "keys", "--invitation", invitation)
    assert result.exit_code == Code.USAGE
    assert "exists already" in result.stderr
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ([], "give either --name NAME or --invitation FILE"),
        (["--name", "a", "--invitation", "x"], "give either --name NAME or --invitation FILE"),
        (["--name", "two words"], "a party's name is 1 to 64 letters"),
        (["--name", ""], "a party's name is 1 to 64 letters"),
        (["--name", "../up"], "a party's name is 1 to 64 letters"),
        (["--name", "x" * 65], "a party's name is 1 to 64 letters"),
        (["--invitation", "nowhere"], "nowhere: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_made(
    how: list[str], message: str, tmp_path: Path
) -> None:
    result = call("new", tmp_path / "keys", *how)
    assert result.exit_code == Code.USAGE
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"name": "an', "[]", "{}"])
def test_an_invitation_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "anna.invitation").write_text(content)
    result = call("new", tmp_path / "keys", "--invitation", tmp_path / "anna.invitation")
    assert result.exit_code == Code.USAGE
    assert result.stderr.startswith("error: anna.invitation: ")
    assert not (tmp_path / "keys").exists()


def test_a_passphrase_is_typed_twice(tmp_path: Path) -> None:
    made = call("new", tmp_path / "keys", "--name", "anna", "--passphrase", typed="pass\npass\n")
    assert made.exit_code == Code.DONE
    assert needs_passphrase(tmp_path / "keys")
    load_keyring(tmp_path / "keys", b"pass")
    assert call("show", tmp_path / "keys", typed="pass\n").exit_code == Code.DONE
    assert "pass\n" not in made.output


def test_a_passphrase_comes_from_the_environment(tmp_path: Path) -> None:
    folder, secret = tmp_path / "keys", {PASSPHRASE: "correct horse"}
    assert call("new", folder, "--name", "anna", **secret).exit_code == Code.DONE
    load_keyring(folder, b"correct horse")
    assert call("show", folder, **secret).exit_code == Code.DONE
    wrong = call("show", folder, **{PASSPHRASE: "wrong"})
    assert wrong.exit_code == Code.USAGE
    assert "the passphrase is wrong" in wrong.stderr


def test_a_missing_passphrase_is_asked_for_or_said(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    nobody = call("new", folder, "--name", "anna", "--passphrase", typed="")
    assert nobody.exit_code == Code.USAGE
    assert f"set {PASSPHRASE}" in nobody.stderr
    assert not folder.exists()
    empty = call("new", folder, "--name", "anna", "--passphrase", **{PASSPHRASE: ""})
    assert "the passphrase is empty" in empty.stderr
    call("new", folder, "--name", "anna", **{PASSPHRASE: "pass"})
    shown = call("show", folder, typed="")
    assert shown.exit_code == Code.USAGE
    assert f"nobody is there to answer “Passphrase of the keys in {folder}”" in shown.stderr


def test_two_passphrases_that_differ_are_asked_again(tmp_path: Path) -> None:
    typed = "one\ntwo\nthree\nthree\n"
    made = call("new", tmp_path / "keys", "--name", "anna", "--passphrase", typed=typed)
    assert made.exit_code == Code.DONE
    load_keyring(tmp_path / "keys", b"three")


def damage(folder: Path, how: str) -> None:
    signing = folder / "signing.pem"
    if how == "half written":
        signing.write_bytes(signing.read_bytes()[:60])
    elif how == "readable by others":
        signing.chmod(0o644)
    else:
        signing.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("half written", "signing.pem: is no private key"),
        ("readable by others", "others may read the private key"),
        ("gone", "signing.pem: cannot be read"),
    ],
)
def test_damaged_keys_are_refused(how: str, message: str, tmp_path: Path) -> None:
    call("new", tmp_path / "keys", "--name", "anna")
    damage(tmp_path / "keys", how)
    result = call("show", tmp_path / "keys")
    assert result.exit_code == Code.USAGE
    assert message in result.stderr


def test_keys_are_made_without_heavy_libraries(tmp_path: Path) -> None:
    heavy: Any = ["torch", "opacus", "duckdb", "flwr", "grpc", "sqlalchemy", "dp_accounting"]
    program = (
        "import sys; from dovetail.cli.main import app\n"
        f"try: app(['keys', 'new', {str(tmp_path / 'keys')!r}, '--name', 'anna'])\n"
        f"except SystemExit: print([n for n in {heavy} if n in sys.modules])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert child.stdout.splitlines()[-1] == "[]"
