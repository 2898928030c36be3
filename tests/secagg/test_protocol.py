from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import TooManyDropouts
from dovetail.secagg.group import Block, Group
from dovetail.secagg.messages import Step
from dovetail.secagg.protocol import Leaves, run_secagg, share_keys, sum_round
from tests.secagg.transcript import group_of, keys_of

ALL = tuple(f"p{i}" for i in range(7))
SETTINGS = [(n, d, c) for n in range(2, 8) for d in range(n) for c in range(n) if n > 2 * d + c]
"""Every number of partners, dropouts and colluders that a group of up to seven can have."""


def group(n: int, dropouts: int, colluders: int) -> Group:
    return group_of(ALL[:n], dropouts, colluders)


def block(bits: int = 32, size: int = 3, rounds: int = 1) -> Block:
    return Block("ab" * 32, 1, 5, rounds, size, bits)


def words(names: tuple[str, ...], about: Block, number: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    top = 2**about.bits
    return {n: draw.integers(top, size=about.size, dtype=f"u{about.bits // 8}") for n in names}


def check(about: Group, of: Block, leaves: Leaves) -> None:
    """The sum is that of all who sent their vectors, whoever left when."""
    vectors = words(about.members, of)
    signers = {name: key.sign for name, key in keys_of(about.members).items()}
    survivors, total = run_secagg(about, of, signers, vectors, leaves)
    counted = [n for n in about.members if leaves.get(n, Step.UNMASKING) > Step.MASKED_INPUT]
    assert list(survivors) == counted
    assert (total == sum(vectors[name] for name in counted)).all()
    assert total.dtype == f"u{of.bits // 8}"


def every_way_to_leave(members: tuple[str, ...], leavers: int) -> Iterator[dict[str, Step]]:
    for gone in combinations(members, leavers):
        for steps in product(Step, repeat=leavers):
            yield dict(zip(gone, steps, strict=True))


@pytest.mark.parametrize(("n", "d", "c"), [s for s in SETTINGS if s[0] <= 5 and s[1] <= 1])
def test_whoever_leaves_when_the_sum_is_that_of_the_survivors(n: int, d: int, c: int) -> None:
    for leavers in range(d + 1):
        for leaves in every_way_to_leave(ALL[:n], leavers):
            check(group(n, d, c), block(), leaves)


@pytest.mark.parametrize(("n", "d", "c"), [s for s in SETTINGS if s[0] <= 4])
def test_one_dropout_too_many_is_refused_at_every_step(n: int, d: int, c: int) -> None:
    for leaves in every_way_to_leave(ALL[:n], d + 1):
        with pytest.raises(TooManyDropouts):
            check(group(n, d, c), block(), leaves)


@st.composite
def tolerated(draw: st.DrawFn) -> tuple[Group, dict[str, Step]]:
    n, d, c = draw(st.sampled_from([s for s in SETTINGS if s[0] >= 4]))
    gone = draw(st.lists(st.sampled_from(ALL[:n]), max_size=d, unique=True))
    return group(n, d, c), {name: draw(st.sampled_from(Step)) for name in gone}


@settings(max_examples=80, deadline=None)
@given(tolerated(), st.sampled_from([32, 64]), st.integers(1, 40))
def test_every_tolerated_dropout_leaves_the_sum_of_the_rest(
    case: tuple[Group, dict[str, Step]], bits: int, size: int
) -> None:
    check(case[0], block(bits, size), case[1])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(ALL), st.sampled_from(list(Step)[3:]), max_size=2),
        max_size=5,
    )
)
def test_the_rounds_of_a_block_lose_different_members(rounds: list[dict[str, Step]]) -> None:
    """Who missed a round takes part in the next: only a restart costs it the block."""
    about, of = group(7, 2, 2), block(rounds=max(1, len(rounds)))
    signers = {name: key.sign for name, key in keys_of(ALL).items()}
    server, clients = share_keys(about, of, signers)
    for number, leaves in zip(of.numbers, rounds, strict=False):
        vectors = words(ALL, of, number)
        survivors, total = sum_round(server, clients, number, vectors, leaves)
        assert (total == sum(vectors[name] for name in survivors)).all()


def test_a_round_that_failed_does_not_stop_the_next() -> None:
    about, of = group(4, 1, 1), block(rounds=2)
    signers = {name: key.sign for name, key in keys_of(ALL).items()}
    server, clients = share_keys(about, of, signers)
    vectors = words(about.members, of)
    with pytest.raises(TooManyDropouts):
        sum_round(server, clients, 5, vectors, {"p0": Step.UNMASKING, "p1": Step.UNMASKING})
    _, total = sum_round(server, clients, 6, vectors)
    assert (total == sum(vectors.values())).all()


def test_a_masked_vector_looks_like_noise() -> None:
    """Of a vector of zeros, 2^17 words: every byte value is about equally frequent.

    The chi-square statistic of 255 degrees of freedom exceeds 500 with probability below 1e-17.
    """
    about, of = group(2, 0, 0), block(size=1 << 17)
    signers = {name: key.sign for name, key in keys_of(ALL).items()}
    _, clients = share_keys(about, of, signers)
    vector = np.zeros(of.size, dtype=np.uint32)
    clients["p0"].mask(5, vector)
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    assert ((counts - 2048.0) ** 2 / 2048).sum() < 500
