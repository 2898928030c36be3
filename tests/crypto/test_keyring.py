from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from dovetail.crypto.certificates import common_name, new_tls_key, pin_of, require_self_signed
from dovetail.crypto.keyring import (
    CERTIFICATE,
    SIGNING,
    TLS,
    load_keyring,
    make_keyring,
    needs_passphrase,
)
from dovetail.crypto.keys import save_private_key, verify
from dovetail.errors import SettingError

NOW = datetime(2026, 11, 24, tzinfo=UTC)
FILES = {SIGNING: 0o600, TLS: 0o600}


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_keys_come_back_from_their_folder(tmp_path: Path, passphrase: bytes | None) -> None:
    folder = tmp_path / "keys"
    made = make_keyring(folder, "retailer", NOW, passphrase=passphrase)
    read = load_keyring(folder, passphrase)
    assert (read.name, read.certificate, read.pin) == ("retailer", made.certificate, made.pin)
    assert read.pin == pin_of((folder / CERTIFICATE).read_bytes())
    verify(read.signing.public, made.signing.sign("permit", 1), "permit", 1)
    assert needs_passphrase(folder) == bool(passphrase)
    require_self_signed(read.certificate)


def test_only_their_owner_may_read_private_keys(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "keys"
    make_keyring(folder, "retailer", NOW)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, mode in FILES.items():
        assert (folder / name).stat().st_mode & 0o777 == mode
        (folder / name).chmod(0o644)
        with pytest.raises(SettingError, match="others may read"):
            load_keyring(folder)
        (folder / name).chmod(mode)


def test_a_passphrase_encrypts_both_private_keys(tmp_path: Path) -> None:
    make_keyring(tmp_path / "keys", "retailer", NOW, passphrase=b"secret")
    for name in FILES:
        assert b"ENCRYPTED" in (tmp_path / "keys" / name).read_bytes()
    for passphrase, message in ((None, "needs a passphrase"), (b"wrong", "passphrase is wrong")):
        with pytest.raises(SettingError, match=message):
            load_keyring(tmp_path / "keys", passphrase)


def test_keys_are_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keyring(folder, "retailer", NOW)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(SettingError, match="never replaced"):
        make_keyring(folder, "retailer", NOW)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / SIGNING).rename(folder / "old.pem")
    with pytest.raises(SettingError, match="never replaced"):
        make_keyring(folder, "retailer", NOW)
    assert (folder / TLS).read_bytes() == before[TLS]
    assert (folder / CERTIFICATE).read_bytes() == before[CERTIFICATE]
    assert not (folder / SIGNING).exists()


@pytest.mark.parametrize("gone", [SIGNING, TLS, CERTIFICATE])
def test_a_missing_file_is_named(gone: str, tmp_path: Path) -> None:
    make_keyring(tmp_path / "keys", "retailer", NOW)
    (tmp_path / "keys" / gone).unlink()
    with pytest.raises(SettingError, match=f"{gone}: cannot be read"):
        load_keyring(tmp_path / "keys")
    assert not needs_passphrase(tmp_path / "nowhere")


def test_a_certificate_of_other_keys_is_refused(tmp_path: Path) -> None:
    make_keyring(tmp_path / "mine", "retailer", NOW)
    other = make_keyring(tmp_path / "other", "retailer", NOW)
    (tmp_path / "mine" / CERTIFICATE).write_bytes(other.certificate)
    with pytest.raises(SettingError, match="belongs to another key"):
        load_keyring(tmp_path / "mine")
    (tmp_path / "mine" / CERTIFICATE).write_bytes(b"half a certif")
    with pytest.raises(SettingError, match="no certificate"):
        load_keyring(tmp_path / "mine")


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keyring(folder, "retailer", NOW)
    signing, tls = (folder / SIGNING).read_bytes(), (folder / TLS).read_bytes()
    (folder / SIGNING).write_bytes(tls)
    with pytest.raises(SettingError, match=r"signing\.pem: is not a signing key"):
        load_keyring(folder)
    (folder / SIGNING).write_bytes(signing)
    (folder / TLS).write_bytes(signing)
    with pytest.raises(SettingError, match=r"tls\.pem: is not a TLS key"):
        load_keyring(folder)
    (folder / TLS).unlink()
    save_private_key(folder / TLS, new_tls_key(), None)
    with pytest.raises(SettingError, match="belongs to another key"):
        load_keyring(folder)


def test_a_name_that_no_certificate_holds_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="1 to 64 characters"):
        make_keyring(tmp_path / "keys", "x" * 65, NOW)
    assert not (tmp_path / "keys").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(SettingError, match="keys: cannot be written"):
        make_keyring(tmp_path / "keys", "retailer", NOW)


def test_a_servers_certificate_names_its_hosts(tmp_path: Path) -> None:
    hosts = ["localhost", "127.0.0.1", "::1", "coordinator.example"]
    keyring = make_keyring(tmp_path / "keys", "coordinator", NOW, hosts)
    read = x509.load_pem_x509_certificate(keyring.certificate)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "coordinator.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert common_name(keyring.certificate) == "coordinator"


def test_a_keyring_shows_no_private_key(tmp_path: Path) -> None:
    keyring = make_keyring(tmp_path / "keys", "retailer", NOW)
    assert "PRIVATE" in keyring.tls_key.decode()
    assert "PRIVATE" not in repr(keyring)
