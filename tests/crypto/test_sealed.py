import pytest

from dovetail.crypto.sealed import SEAL_BYTES, seal, unseal
from dovetail.errors import PrivacyError, RemoteProtocolError

KEY = bytes(range(16))


def test_the_cipher_is_that_of_the_gcm_specification() -> None:
    """McGrew and Viega (2005), appendix B, test cases 1 and 2: zero key, zero nonce."""
    assert seal(bytes(16), b"", b"").hex() == "58e2fccefa7e3061367f1d57a4e7455a"
    assert seal(bytes(16), bytes(16), b"").hex() == (
        "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"
    )


def test_only_the_same_key_and_occasion_open_it() -> None:
    sealed = seal(KEY, b"share", b"block 1")
    assert len(sealed) == 5 + SEAL_BYTES
    assert unseal(KEY, sealed, b"block 1") == b"share"
    for key, message, about in [
        (bytes(16), sealed, b"block 1"),
        (KEY, sealed, b"block 2"),
        (KEY, sealed[:-1], b"block 1"),
        (KEY, bytes([sealed[0] ^ 1]) + sealed[1:], b"block 1"),
        (KEY, b"", b"block 1"),
    ]:
        with pytest.raises(RemoteProtocolError, match="does not open"):
            unseal(key, message, about)


def test_a_key_has_16_bytes() -> None:
    with pytest.raises(PrivacyError):
        seal(bytes(32), b"", b"")
