import os
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import LocalProtocolError, RemoteProtocolError
from dovetail.secagg.shamir import PRIME, SECRET_BYTES, lagrange_weights, recover, split

SECRET = bytes(range(32))


def test_the_prime_is_one_and_the_smallest_above_every_secret() -> None:
    def strong(n: int, base: int) -> bool:
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        x = pow(base, odd, n)
        return x in (1, n - 1) or any(pow(x, 2**i, n) == n - 1 for i in range(1, twos))

    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    assert all(strong(PRIME, base) for base in bases)
    assert not any(all(strong(n, base) for base in bases) for n in range(2**256 + 1, PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(
    secret: bytes, threshold: int, data: st.DataObject
) -> None:
    points = data.draw(st.lists(st.integers(1, 64), min_size=threshold, max_size=8, unique=True))
    shares = dict(zip(points, split(secret, threshold, points, os.urandom), strict=True))
    for chosen in combinations(points, threshold):
        assert recover([shares[point] for point in chosen], lagrange_weights(chosen)) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """For one share less than the threshold and any other secret there is one polynomial."""
    points = (1, 2, 3)
    shares = split(SECRET, 3, points, os.urandom)
    weights = lagrange_weights(points)
    other = int.from_bytes(bytes(32), "big")
    known = sum(s * w for s, w in zip(shares[:2], weights[:2], strict=True))
    third = (other - known) * pow(weights[2], -1, PRIME) % PRIME
    assert recover([*shares[:2], third], weights) == bytes(32)


def test_equal_secrets_have_unequal_shares() -> None:
    first, second = (split(SECRET, 2, (1, 2), os.urandom) for _ in range(2))
    assert first != second


def test_a_threshold_of_one_shares_the_secret_itself() -> None:
    assert split(SECRET, 1, (1, 2), os.urandom) == [int.from_bytes(SECRET, "big")] * 2


def test_shares_are_of_the_polynomial() -> None:
    """With the coefficients drawn as 1 and 2: secret + x + 2 x^2, by hand."""
    drawn = (2).to_bytes(49, "big") + (1).to_bytes(49, "big")
    secret = (5).to_bytes(SECRET_BYTES, "big")
    assert split(secret, 3, (1, 2, 3), lambda count: drawn[:count]) == [8, 15, 26]
    assert lagrange_weights((1, 2, 3)) == [3, PRIME - 3, 1]


def test_shares_of_no_secret_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="fit no secret"):
        recover([PRIME - 1], [1])


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(31), 1, (1,)),
        (SECRET, 0, (1,)),
        (SECRET, 2, (1,)),
        (SECRET, 1, (0, 1)),
        (SECRET, 1, (1, 1)),
    ],
)
def test_what_cannot_be_shared(secret: bytes, threshold: int, points: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        split(secret, threshold, points, os.urandom)
