"""Agreements signed and verified by the command, with real keys and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.files import load_terms, read_signed
from dovetail.cli.outcome import Code
from dovetail.cli.unlock import PASSPHRASE
from dovetail.crypto.keyring import load_keyring
from tests.cli.conftest import NAMES, call, make_party, sign


def test_whoever_signs_sees_the_key_facts_and_says_yes(made: Path, file: Path) -> None:
    result = call("sign", file, "--keys", made / "retailer" / "keys", typed="y\n")
    assert result.exit_code == Code.DONE
    text = " ".join(result.stdout.split())
    assert "Spring coupons, version 1" in text
    assert agreed.digest(load_terms(file)) in text
    assert "all jobs together that are admitted in one calendar year cost at most ε = 8" in text
    assert "Sign this as retailer?" in result.stderr
    written = json.loads((file.parent / "spring.retailer.signature").read_text())
    keyring = load_keyring(made / "retailer" / "keys")
    assert (written["party"], written["key"]) == ("retailer", keyring.signing.public)
    assert read_signed(file).signed_by(keyring.signing.public)


@pytest.mark.parametrize(("typed", "code"), [("n\n", Code.BAD), ("", Code.USAGE)])
def test_no_yes_no_signature(typed: str, code: Code, made: Path, file: Path) -> None:
    result = call("sign", file, "--keys", made / "retailer" / "keys", typed=typed)
    assert result.exit_code == code
    assert list(file.parent.glob("*.signature")) == []


def test_signing_twice_is_signing_once(made: Path, file: Path) -> None:
    sign(made, file, "brand")
    first = (file.parent / "spring.brand.signature").read_bytes()
    sign(made, file, "brand")
    assert (file.parent / "spring.brand.signature").read_bytes() == first


def test_json_says_where_the_signature_is(made: Path, file: Path) -> None:
    result = call("sign", file, "--keys", made / "brand" / "keys", "--yes", "--json")
    record = json.loads(result.stdout)
    assert record["signature"] == str(file.parent / "spring.brand.signature")
    assert (record["party"], record["digest"]) == ("brand", agreed.digest(load_terms(file)))


def test_a_stranger_cannot_sign(file: Path, tmp_path: Path) -> None:
    make_party(tmp_path, "stranger")
    result = call("sign", file, "--keys", tmp_path / "stranger" / "keys", "--yes")
    assert result.exit_code == Code.USAGE
    assert "the terms name no party 'stranger'" in result.stderr


def test_another_key_of_the_same_name_cannot_sign(file: Path, tmp_path: Path) -> None:
    make_party(tmp_path, "retailer")
    result = call("sign", file, "--keys", tmp_path / "retailer" / "keys", "--yes")
    assert result.exit_code == Code.USAGE
    assert "the terms pin another key for 'retailer' than this one" in result.stderr


def test_terms_with_another_certificate_are_not_signed(made: Path, file: Path) -> None:
    pin = load_keyring(made / "retailer" / "keys").pin
    file.write_text(file.read_text().replace(pin, "ab" * 32))
    result = call("sign", file, "--keys", made / "retailer" / "keys", "--yes")
    assert result.exit_code == Code.USAGE
    assert "the terms pin another certificate for 'retailer' than it has" in result.stderr


def test_encrypted_keys_need_their_passphrase(file: Path, tmp_path: Path) -> None:
    keyring = make_party(tmp_path, "brand", b"correct horse")
    terms = load_terms(file)
    old = terms.partner("brand")
    text = file.read_text().replace(old.key, keyring.signing.public)
    file.write_text(text.replace(old.certificate, keyring.pin))
    how = ("sign", file, "--keys", tmp_path / "brand" / "keys", "--yes")
    for typed, environment, message in (
        ("", {}, f"set {PASSPHRASE}"),
        ("wrong\n", {}, "the passphrase is wrong"),
        (None, {PASSPHRASE: "wrong"}, "the passphrase is wrong"),
    ):
        result = call(*how, typed=typed, **environment)
        assert result.exit_code == Code.USAGE
        assert message in result.stderr
    assert list(file.parent.glob("*.signature")) == []
    assert call(*how, **{PASSPHRASE: "correct horse"}).exit_code == Code.DONE
    assert call(*how, typed="correct horse\n").exit_code == Code.DONE


def test_an_amendment_shows_what_changes(made: Path, file: Path) -> None:
    second = file.with_name("spring-2.toml")
    call("new", second, "--amend", file)
    second.write_text(second.read_text().replace("epsilon = 8.0", "epsilon = 9.0"))
    keys = made / "retailer" / "keys"
    result = call("sign", second, "--keys", keys, "--amend", file, typed="n\n")
    assert result.exit_code == Code.BAD
    assert "ε of all jobs together: 8 → 9" in result.stdout


def test_a_folder_that_cannot_be_written_is_named(made: Path, file: Path) -> None:
    (file.parent / "spring.retailer.signature").mkdir()
    result = call("sign", file, "--keys", made / "retailer" / "keys", "--yes")
    assert result.exit_code == Code.USAGE
    assert "spring.retailer.signature: cannot be written" in result.stderr


def test_all_or_not_all_have_signed(made: Path, file: Path) -> None:
    nobody = call("verify", file)
    assert nobody.exit_code == Code.BAD
    assert "Not signed by coordinator, analyst, retailer, platform and brand." in " ".join(
        nobody.stdout.split()
    )
    sign(made, file, *NAMES[1:])
    some = call("verify", file, "--json")
    assert some.exit_code == Code.BAD
    assert json.loads(some.stdout)["missing"] == ["coordinator"]
    sign(made, file, "coordinator")
    everybody = call("verify", file)
    assert everybody.exit_code == Code.DONE
    assert "All 5 parties have signed" in everybody.stdout
    record = json.loads(call("verify", file, "--json").stdout)
    assert (record["valid"], record["signed_by"]) == (True, list(NAMES))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epsilon = 8.0", "epsilon = 8.5"),
        ("version = 1", "version = 1\n# a comment changes nothing"),
    ],
)
def test_what_is_signed_are_the_words_and_not_the_file(
    old: str, new: str, made: Path, file: Path
) -> None:
    sign(made, file, *NAMES)
    file.write_text(file.read_text().replace(old, new))
    result = call("verify", file)
    assert result.exit_code == (Code.DONE if "#" in new else Code.BAD)


def test_a_change_of_the_schema_is_found(made: Path, file: Path) -> None:
    sign(made, file, *NAMES)
    schema = file.parent / "schema.toml"
    schema.write_text(schema.read_text().replace("high = 5000", "high = 5001"))
    result = call("verify", file)
    assert result.exit_code == Code.BAD
    text = " ".join(result.stdout.split())
    assert "spring.brand.signature: brand signed other terms than these" in text


def test_a_signature_of_another_version_is_found(made: Path, file: Path) -> None:
    second = file.with_name("spring-2.toml")
    call("new", second, "--amend", file)
    sign(made, second, *NAMES)
    sign(made, file, *NAMES[1:])
    newer = file.with_name("spring-2.coordinator.signature")
    file.with_name("spring.coordinator.signature").write_bytes(newer.read_bytes())
    result = call("verify", file, "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == Code.BAD
    assert record["missing"] == ["coordinator"]
    assert "such as another version" in record["unusable"][0]


@pytest.mark.parametrize("content", ["", '{"party": "brand", "key"', "null", "[" * 50_000])
def test_a_damaged_signature_is_found(content: str, made: Path, file: Path) -> None:
    sign(made, file, *NAMES)
    (file.parent / "spring.brand.signature").write_text(content)
    record = json.loads(call("verify", file, "--json").stdout)
    assert record["missing"] == ["brand"]
    assert record["unusable"][0].startswith("spring.brand.signature: ")


def test_a_superfluous_bad_signature_is_no_good_either(made: Path, file: Path) -> None:
    sign(made, file, *NAMES)
    (file.parent / "spring.thief.signature").write_text("{}")
    result = call("verify", file)
    assert result.exit_code == Code.BAD
    assert "spring.thief.signature" in result.stdout


@pytest.fixture
def amended(made: Path, file: Path) -> Path:
    """The version after ``file``, which is signed by all; itself signed by nobody yet."""
    sign(made, file, *NAMES)
    second = file.with_name("spring-2.toml")
    assert call("new", second, "--amend", file).exit_code == Code.DONE
    return second


def test_an_amendment_follows_what_all_have_signed(made: Path, file: Path, amended: Path) -> None:
    sign(made, amended, *NAMES)
    assert call("verify", amended, "--amend", file).exit_code == Code.DONE


def test_it_follows_nothing_that_not_all_have_signed(made: Path, file: Path, amended: Path) -> None:
    sign(made, amended, *NAMES)
    file.with_name("spring.brand.signature").unlink()
    result = call("verify", amended, "--amend", file)
    assert result.exit_code == Code.BAD
    assert "spring.toml: not signed by brand" in result.stdout


def test_it_follows_nothing_else(made: Path, file: Path, amended: Path) -> None:
    third = file.with_name("spring-3.toml")
    call("new", third, "--amend", amended)
    sign(made, third, *NAMES)
    result = call("verify", third, "--amend", file, "--json")
    assert result.exit_code == Code.BAD
    complaint = json.loads(result.stdout)["complaint"]
    assert complaint == "it cannot follow spring.toml: version 2 is missing in between"


def test_a_replaced_key_signs_its_successor(made: Path, file: Path, tmp_path: Path) -> None:
    sign(made, file, *NAMES)
    new, old = make_party(tmp_path / "new", "brand"), load_terms(file).partner("brand")
    second = file.with_name("spring-2.toml")
    call("new", second, "--amend", file)
    text = second.read_text().replace(old.key, new.signing.public)
    second.write_text(text.replace(old.certificate, new.pin))
    sign(made, second, *NAMES[:-1])
    keys = tmp_path / "new" / "brand" / "keys"
    assert call("sign", second, "--keys", keys, "--yes").exit_code == Code.DONE
    assert call("verify", second).exit_code == Code.DONE
    early = call("verify", second, "--amend", file)
    assert early.exit_code == Code.BAD
    assert "not signed with the key held until now by brand" in early.stdout
    former = made / "brand" / "keys"
    assert call("sign", second, "--keys", former, "--yes").exit_code == Code.USAGE
    again = call("sign", second, "--keys", former, "--amend", file, "--yes")
    assert again.exit_code == Code.DONE
    assert second.with_name("spring-2.brand+former.signature").exists()
    assert call("verify", second, "--amend", file).exit_code == Code.DONE


def test_both_keys_sign_at_once(made: Path, file: Path, tmp_path: Path) -> None:
    sign(made, file, *NAMES)
    new, old = make_party(tmp_path / "new", "brand"), load_terms(file).partner("brand")
    second = file.with_name("spring-2.toml")
    call("new", second, "--amend", file)
    text = second.read_text().replace(old.key, new.signing.public)
    second.write_text(text.replace(old.certificate, new.pin))
    sign(made, second, *NAMES[:-1])
    both = ["--keys", tmp_path / "new" / "brand" / "keys"]
    both += ["--former-keys", made / "brand" / "keys", "--yes"]
    early = call("sign", second, *both)
    assert early.exit_code == Code.USAGE
    assert "give --amend FILE" in early.stderr
    record = json.loads(call("sign", second, *both, "--amend", file, "--json").stdout)
    assert record["signature"] == str(second.with_name("spring-2.brand.signature"))
    assert record["former_signature"] == str(second.with_name("spring-2.brand+former.signature"))
    assert call("verify", second, "--amend", file).exit_code == Code.DONE


@pytest.mark.parametrize(
    ("former", "message"),
    [("platform", "belong to 'platform'"), ("brand", "the same as the new ones")],
)
def test_only_a_partys_own_former_keys_sign_too(
    former: str, message: str, made: Path, file: Path, amended: Path
) -> None:
    keys = ["--keys", made / "brand" / "keys", "--former-keys", made / former / "keys"]
    result = call("sign", amended, *keys, "--amend", file, "--yes")
    assert result.exit_code == Code.USAGE
    assert message in result.stderr
    assert list(file.parent.glob("spring-2.*.signature")) == []
