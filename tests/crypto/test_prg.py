import hashlib
import hmac
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto import prg
from dovetail.crypto.prg import Prg, derive_key, fresh_key
from dovetail.errors import PrivacyError

KEY = bytes(range(16))
NIST_KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
PARTS = st.one_of(st.text(max_size=6), st.integers(-(10**6), 10**6))


def test_first_block_of_the_zero_key_is_the_published_one() -> None:
    """AES-128 of a zero block under the zero key: NIST AESAVS, also GCM's test case 1."""
    assert Prg(bytes(16)).words64(2).astype("<u8").tobytes() == bytes.fromhex(
        "66e94bd4ef8a2c3b884cfa59ca342b2e"
    )


def test_the_block_cipher_is_that_of_sp_800_38a() -> None:
    """NIST SP 800-38A, F.5.1: the key stream block of each counter, here as ECB."""
    encrypt = Cipher(AES(NIST_KEY), ECB()).encryptor()
    counters = [bytes(range(0xF0, 0x100))[:-1] + bytes([0xFF]), bytes(range(0xF0, 0xFE))]
    counters[1] += bytes([0xFF, 0x00])
    assert encrypt.update(counters[0]).hex() == "ec8cdf7398607cb0f2d21675ea9ea1e4"
    assert encrypt.update(counters[1]).hex() == "362b7c3c6773516318a077d7fc5073ae"


def test_blocks_are_the_cipher_of_counters_from_zero() -> None:
    """NIST SP 800-38A, section 6.5 and appendix B.1: one more per block, big-endian."""
    encrypt = Cipher(AES(NIST_KEY), ECB()).encryptor()
    expected = b"".join(encrypt.update(i.to_bytes(16, "big")) for i in range(70_000))
    assert Prg(NIST_KEY).words32(280_000).astype("<u4").tobytes() == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_calls_read_one_keystream_from_front_to_back(sizes: list[int]) -> None:
    pieces = Prg(KEY)
    read = b"".join(pieces.words32(n).tobytes() for n in sizes)
    assert read == Prg(KEY).words32(sum(sizes)).tobytes()


def test_large_fill_continues_across_internal_chunks() -> None:
    whole = Prg(KEY).words64(100_000)
    parts = Prg(KEY)
    assert np.array_equal(whole, np.concatenate([parts.words64(n) for n in (1, 65_535, 34_464)]))


def test_no_block_comes_twice() -> None:
    source = Prg(KEY)
    blocks = np.concatenate([source.words64(2 * n) for n in (1, 7, 20_000, 3, 100_000)])
    assert len(np.unique(blocks.reshape(-1, 2), axis=0)) == 120_011


def test_fill_overwrites_what_was_there() -> None:
    dirty = np.full((3, 5), 7, dtype=np.int32)
    clean = np.zeros((3, 5), dtype=np.int32)
    Prg(KEY).fill(dirty)
    Prg(KEY).fill(clean)
    assert np.array_equal(dirty, clean)
    assert dirty.any()


def test_a_key_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prg, "MAX_BYTES", 64)
    source = Prg(KEY)
    source.words32(16)
    with pytest.raises(PrivacyError, match="used up"):
        source.words32(1)


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(PrivacyError, match="16 bytes"):
        Prg(bytes(length))


def test_arrays_that_cannot_be_filled_are_refused() -> None:
    frozen = np.zeros(4, dtype=np.uint32)
    frozen.setflags(write=False)
    for array in (frozen, np.zeros((4, 4), dtype=np.uint32).T[1:], np.zeros(2, dtype=object)):
        with pytest.raises(PrivacyError, match="contiguous"):
            Prg(KEY).fill(array)


def test_fresh_keys_differ() -> None:
    assert len({fresh_key() for _ in range(100)}) == 100


def test_derived_key_is_hkdf_of_the_stated_encoding() -> None:
    """Recomputed from RFC 5869 with hmac alone, so that old keys stay derivable."""
    info = b"dovetail/1" + b"s" + (5).to_bytes(8, "big") + b"noise"
    info += b"i" + (2).to_bytes(8, "big") + b"12"
    extracted = hmac.digest(bytes(32), KEY, hashlib.sha256)
    expected = hmac.digest(extracted, info + b"\x01", hashlib.sha256)[:16]
    assert derive_key(KEY, "noise", 12) == expected


@given(
    st.lists(PARTS, min_size=1, max_size=4).map(tuple),
    st.lists(PARTS, min_size=1, max_size=4).map(tuple),
)
def test_contexts_give_equal_keys_only_if_equal(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert (derive_key(KEY, *one) == derive_key(KEY, *other)) == (one == other)


def test_contexts_that_look_alike_differ() -> None:
    contexts: list[tuple[str | int, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",)]
    contexts += [(1, 2), (12,), (-1,), ("", "abc"), ("abc", "")]
    keys = sorted(derive_key(KEY, *context) for context in contexts)
    assert all(a != b for a, b in pairwise(keys))
    assert derive_key(KEY, "a") != derive_key(bytes(16), "a")


def test_derivation_refuses_what_is_ambiguous_or_weak() -> None:
    for context in ((), (True,), (1.0,), (b"x",)):
        with pytest.raises(PrivacyError):
            derive_key(KEY, *context)
    with pytest.raises(PrivacyError, match="at least"):
        derive_key(bytes(8), "a")
