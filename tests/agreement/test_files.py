from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.enrolment import Invitation, access_of, request_enrolment
from dovetail.agreement.files import (
    LARGEST_FILE,
    load_terms,
    read_access,
    read_invitation,
    read_parties,
    read_request,
    read_signed,
    signature_path,
    signed_file,
    terms_of_toml,
)
from dovetail.agreement.signing import Signature, sign_terms
from dovetail.agreement.terms import Terms
from dovetail.crypto.certificates import new_certificate
from dovetail.crypto.keyring import make_keyring
from dovetail.errors import RemoteProtocolError, SettingError
from tests.agreement.conftest import VECTORS, key_of, read

GOOD = (VECTORS / "agreement.toml").read_text()
HEAD, _, SCHEMA = GOOD.partition("[schema]\n")
BESIDE = HEAD.replace("version = 1", 'schema = "schema.toml"\nversion = 1')
NOW = datetime(2026, 11, 24, tzinfo=UTC)
NAMES = ("coordinator", "analyst", "retailer", "platform")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "spring.toml"
    path.write_text(GOOD)
    return path


def write_signature(file: Path, name: str, signature: Signature) -> Path:
    path = file.with_name(name)
    path.write_text(json.dumps(vars(signature)))
    return path


def sign(file: Path, *names: str) -> None:
    terms = load_terms(file)
    for name in names:
        signature = sign_terms(terms, name, key_of(name))
        write_signature(file, signature_path(file, signature, terms).name, signature)


def test_the_good_file_is_the_first_vector(file: Path, terms: Terms) -> None:
    assert load_terms(file) == terms


def test_a_schema_may_stand_in_a_file_beside(tmp_path: Path, terms: Terms) -> None:
    (tmp_path / "spring.toml").write_text(BESIDE)
    (tmp_path / "schema.toml").write_text(SCHEMA.replace("[schema.", "["))
    assert load_terms(tmp_path / "spring.toml") == terms


@pytest.mark.parametrize(
    "name", ["../schema.toml", "/etc/passwd", "sub/schema.toml", "", ".", "..", "a\\u0000b"]
)
def test_a_schema_lies_in_the_same_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "spring.toml").write_text(BESIDE.replace("schema.toml", name))
    with pytest.raises(SettingError, match="must be the name of a file in the same folder"):
        load_terms(tmp_path / "spring.toml")


@pytest.mark.parametrize("vector", read("agreement_toml.json")["bad"], ids=lambda v: v["name"])
def test_a_malformed_file_is_refused(vector: dict[str, Any]) -> None:
    text = GOOD.replace(vector["replace"], vector["by"])
    with pytest.raises(SettingError) as caught:
        terms_of_toml(text, Path("spring.toml"))
    assert str(caught.value).startswith("spring.toml: ")
    assert vector["message"] in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "spring.toml: cannot be read"),
        (b"", "spring.toml: terms: field 'name' is missing"),
        (b"\xff\xfe", "spring.toml: is not a UTF-8 text file"),
        (GOOD.encode()[: len(GOOD) // 2], "spring.toml: "),
        (BESIDE.encode(), "schema.toml' cannot be read"),
        (b"#" * (LARGEST_FILE + 1), "spring.toml: is larger than 4,000,000 bytes"),
    ],
    ids=["missing", "empty", "not text", "half written", "without its schema", "too large"],
)
def test_a_file_that_cannot_be_used_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spring.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        load_terms(path)
    assert message in str(caught.value)


def test_signatures_lie_beside_the_terms(file: Path) -> None:
    assert read_signed(file).missing() == NAMES
    sign(file, "retailer", "analyst")
    assert {p.name for p in file.parent.glob("*.signature")} == {
        "spring.retailer.signature",
        "spring.analyst.signature",
    }
    assert read_signed(file).missing() == ("coordinator", "platform")
    sign(file, *NAMES)
    found = signed_file(file)
    assert (found.signed.missing(), found.unusable) == ((), ())


def test_a_signature_counts_under_any_name(file: Path, terms: Terms) -> None:
    write_signature(file, "from-mail.signature", sign_terms(terms, "retailer", key_of("retailer")))
    assert "retailer" not in read_signed(file).missing()


def test_signatures_of_another_version_are_reported_by_their_names_only(
    file: Path, terms: Terms
) -> None:
    sign(file, *NAMES)
    file.write_text(GOOD.replace("max_rounds = 50", "max_rounds = 60"))
    found = signed_file(file)
    assert found.signed.signatures == ()
    assert found.unusable == tuple(
        f"spring.{name}.signature: {name} signed other terms than these, such as another version"
        for name in sorted(NAMES)
    )
    moved = file.rename(file.with_name("spring-2.toml"))
    assert signed_file(moved).unusable == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "spring.retailer.signature: is not JSON"),
        ('{"party": "retailer", "key": "ab', "spring.retailer.signature: is not JSON"),
        ("[" * 100_000, "spring.retailer.signature: is not JSON"),
        ("[]", "spring.retailer.signature: agreement.signatures: expected a table"),
        ('{"party": "retailer"}', "field 'key' is missing"),
        (
            '{"party": "brand", "key": "ab", "signature": "cd"}',
            "is from nobody whom these terms name",
        ),
        (
            '{"party": "retailer", "key": "ab", "signature": "cd"}',
            "is made with another key than the terms pin for retailer",
        ),
        (
            json.dumps(
                {"party": "retailer", "key": key_of("retailer").public, "signature": "ab" * 64}
            ),
            "retailer signed other terms than these",
        ),
    ],
)
def test_a_bad_signature_is_reported_and_not_trusted(
    content: str, message: str, file: Path
) -> None:
    sign(file, "coordinator", "analyst", "platform")
    file.with_name("spring.retailer.signature").write_text(content)
    found = signed_file(file)
    assert found.signed.missing() == ("retailer",)
    (complaint,) = found.unusable
    assert complaint.startswith("spring.retailer.signature: ")
    assert message in complaint


def test_a_former_key_signs_only_where_the_version_before_is_known(
    file: Path, terms: Terms
) -> None:
    new = key_of("new retailer").public
    text = GOOD.replace(key_of("retailer").public, new).replace("version = 1", "version = 2")
    second = file.with_name("spring-2.toml")
    second.write_text(text.replace('previous = ""', f'previous = "{agreed.digest(terms)}"'))
    amended = load_terms(second)
    former = sign_terms(amended, "retailer", key_of("retailer"), previous=terms)
    path = signature_path(second, former, amended)
    assert path.name == "spring-2.retailer+former.signature"
    write_signature(second, path.name, former)
    assert signed_file(second).signed.signatures == ()
    assert "another key than the terms pin for retailer" in signed_file(second).unusable[0]
    known = signed_file(second, previous=terms)
    assert (known.signed.signatures, known.unusable) == ((former,), ())
    assert "retailer" in known.signed.missing()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The public keys of a coordinator and two others, as they are collected."""
    coordinator = make_keyring(tmp_path / "c", "coordinator", NOW)
    collected = tmp_path / "parties"
    collected.mkdir()
    own = {"name": "coordinator", "key": coordinator.signing.public, "certificate": coordinator.pin}
    (collected / "coordinator.party").write_text(json.dumps(own))
    for name in ("brand", "analyst"):
        keyring = make_keyring(tmp_path / name, name, NOW)
        duty = "analyst" if name == "analyst" else "partner"
        pem = coordinator.certificate.decode()
        invitation = Invitation(name, duty, "localhost:1", "coordinator", pem, "5f" * 32)  # type: ignore[arg-type]
        request = request_enrolment(invitation, keyring)
        (collected / f"{name}.request").write_text(json.dumps(vars(request)))
    return collected


def test_parties_are_collected_in_a_folder(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing of ours")
    parties = read_parties(folder)
    assert parties.coordinator.name == "coordinator"
    assert [(request.name, request.duty) for request in parties.enrolled] == [
        ("analyst", "analyst"),
        ("brand", "partner"),
    ]


def test_a_request_that_was_tampered_with_is_refused(folder: Path) -> None:
    path = folder / "brand.request"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "key": key_of("thief").public}))
    with pytest.raises(RemoteProtocolError, match=r"brand\.request: the signature"):
        read_parties(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "coordinator.party").unlink(), "coordinator.party: cannot be"),
        (lambda folder: (folder / "coordinator.party").write_text("{}"), "coordinator.party: par"),
        (lambda folder: (folder / "brand.request").write_text('{"na'), "brand.request: is not JSO"),
        (lambda folder: (folder / "brand.request").write_text("{}"), "field 'name' is missing"),
    ],
)
def test_a_folder_of_parties_is_read_whole_or_not_at_all(
    change: Callable[[Path], None], message: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(SettingError) as caught:
        read_parties(folder)
    assert message in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read_it in (read_parties, read_access, read_request, read_invitation):
        with pytest.raises(SettingError, match="cannot be read"):
            read_it(tmp_path / "nowhere")


def test_an_invitation_and_what_stays_of_it_are_read(tmp_path: Path) -> None:
    pem = new_certificate("coordinator", NOW)[0].decode()
    invitation = Invitation("analyst", "analyst", "localhost:1", "coordinator", pem, "5f" * 32)
    (tmp_path / "analyst.invitation").write_text(json.dumps(vars(invitation)))
    assert read_invitation(tmp_path / "analyst.invitation") == invitation
    (tmp_path / "access.json").write_text(json.dumps(vars(access_of(invitation))))
    assert read_access(tmp_path) == access_of(invitation)
    with pytest.raises(SettingError, match="access: field 'address' is missing"):
        read_access(empty(tmp_path / "access.json"))


def empty(access: Path) -> Path:
    """A folder whose access.json says nothing."""
    access.write_text("{}")
    return access.parent
