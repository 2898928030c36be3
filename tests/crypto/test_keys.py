from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto.certificates import new_tls_key
from dovetail.crypto.keys import (
    load_signing_key,
    new_signing_key,
    save_private_key,
    signing_key_of,
    verify,
)
from dovetail.errors import RemoteProtocolError, SettingError

KEY = signing_key_of(bytes(range(32)))
VALUE = {"a": 1, "b": ["x", None]}


def test_a_signature_fits_its_key_purpose_and_value_only() -> None:
    signature = KEY.sign("permit", VALUE)
    verify(KEY.public, signature, "permit", {"b": ["x", None], "a": 1})
    for public, purpose, value in (
        (new_signing_key().public, "permit", VALUE),
        (KEY.public, "request", VALUE),
        (KEY.public, "permit", {**VALUE, "a": 2}),
    ):
        with pytest.raises(RemoteProtocolError, match="does not fit"):
            verify(public, signature, purpose, value)


@given(st.binary(max_size=70), st.text(max_size=70))
def test_no_made_up_signature_or_key_passes(raw: bytes, text: str) -> None:
    for public, signature in ((KEY.public, raw.hex()), (text, raw.hex()), (KEY.public, text)):
        with pytest.raises(RemoteProtocolError):
            verify(public, signature, "permit", VALUE)


def test_a_signature_with_any_bit_flipped_is_refused() -> None:
    signature = bytearray.fromhex(KEY.sign("permit", VALUE))
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            verify(KEY.public, changed.hex(), "permit", VALUE)


def test_one_signature_is_one_text() -> None:
    signature = KEY.sign("permit", VALUE)
    for other in (signature.upper(), f"{signature[:64]} {signature[64:]}", f"{signature}\n"):
        with pytest.raises(RemoteProtocolError, match="does not fit"):
            verify(KEY.public, other, "permit", VALUE)


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_comes_back_from_its_file(tmp_path: Path, passphrase: bytes | None) -> None:
    path = tmp_path / "signing.pem"
    KEY.save(path, passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signing_key(path, passphrase).public == KEY.public
    assert (b"ENCRYPTED" in path.read_bytes()) == bool(passphrase)


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    KEY.save(path, None)
    with pytest.raises(SettingError, match="never replaced"):
        new_signing_key().save(path, None)
    assert load_signing_key(path, None).public == KEY.public


def test_bad_key_files_say_what_is_wrong(tmp_path: Path) -> None:
    locked, plain, tls = tmp_path / "locked.pem", tmp_path / "plain.pem", tmp_path / "tls.pem"
    KEY.save(locked, b"secret")
    KEY.save(plain, None)
    save_private_key(tls, new_tls_key(), None)
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"-----BEGIN")
    noise.chmod(0o600)
    for path, passphrase, message in (
        (locked, None, "needs a passphrase"),
        (locked, b"wrong", "passphrase is wrong"),
        (plain, b"secret", "is not encrypted"),
        (tls, None, "is not a signing key"),
        (noise, None, "is no private key"),
        (tmp_path / "gone.pem", None, "cannot be read"),
    ):
        with pytest.raises(SettingError, match=message):
            load_signing_key(path, passphrase)
    plain.chmod(0o640)
    with pytest.raises(SettingError, match="others may read"):
        load_signing_key(plain, None)


def test_a_key_shows_only_its_public_half() -> None:
    assert KEY.public in repr(KEY)
    assert bytes(range(32)).hex() not in repr(KEY)
