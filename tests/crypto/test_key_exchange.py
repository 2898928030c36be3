import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto import key_exchange
from dovetail.crypto.key_exchange import ExchangeKey, check_public
from dovetail.errors import PrivacyError, RemoteProtocolError

ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def test_the_secret_is_that_of_rfc_7748() -> None:
    """RFC 7748, section 6.1."""
    alice, bob = ExchangeKey(ALICE), ExchangeKey(BOB)
    assert alice.secret_with(bob.public) == bob.secret_with(alice.public) == SHARED


@pytest.mark.parametrize("low", [bytes(32), bytes([1]) + bytes(31), bytes(31), bytes(33)])
def test_public_keys_of_low_order_or_another_length_are_refused(low: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be used"):
        ExchangeKey(ALICE).secret_with(low)


PRIME = 2**255 - 19
LOW = [
    (u + more + top).to_bytes(32, "little")
    for u in sorted(key_exchange._LOW_ORDER)
    for more in (0, PRIME)
    for top in (0, 1 << 255)
    if u + more < 2**255
]
"""Every way to write the points of low order: reduced or not, with the topmost bit or without."""


@pytest.mark.parametrize("low", [*LOW, bytes(31), bytes(33)], ids=bytes.hex)
def test_what_no_private_key_takes_is_known_without_one(low: bytes) -> None:
    for private in (ALICE, BOB):
        with pytest.raises(RemoteProtocolError, match="cannot be used"):
            ExchangeKey(private).secret_with(low)
    with pytest.raises(RemoteProtocolError, match="cannot be used"):
        check_public(low)


def doubled(u: int) -> int:
    """RFC 7748's doubling of a point, by its coordinate."""
    above, below = pow(u * u - 1, 2, PRIME), 4 * u * (u * u + 486662 * u + 1) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def test_the_points_of_order_eight_are_those_whose_double_has_order_four() -> None:
    assert [u for u in key_exchange._LOW_ORDER - {0, 1, PRIME - 1} if doubled(u) != 1] == []
    for u in (1, PRIME - 1):
        assert pow(u * u - 1, 2, PRIME) == 0, "and theirs order two"


@given(st.binary(min_size=32, max_size=32))
def test_any_other_public_key_will_do(public: bytes) -> None:
    if public not in LOW:
        check_public(public)
        ExchangeKey(ALICE).secret_with(public)


def test_a_private_key_has_32_bytes_and_is_not_shown() -> None:
    with pytest.raises(PrivacyError):
        ExchangeKey(bytes(16))
    assert ALICE.hex() not in repr(ExchangeKey(ALICE))
