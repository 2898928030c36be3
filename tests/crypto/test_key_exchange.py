import pytest

from dovetail.crypto.key_exchange import ExchangeKey
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


def test_a_private_key_has_32_bytes_and_is_not_shown() -> None:
    with pytest.raises(PrivacyError):
        ExchangeKey(bytes(16))
    assert ALICE.hex() not in repr(ExchangeKey(ALICE))
