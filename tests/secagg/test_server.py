import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from dovetail.errors import LocalProtocolError, RemoteProtocolError, TooManyDropouts
from dovetail.secagg.messages import Step
from dovetail.secagg.protocol import share_keys
from tests.secagg.transcript import BLOCK, NAMES, ROUND, Play, group_of, keys_of


def test_a_block_takes_its_steps_in_order() -> None:
    play = Play()
    with pytest.raises(LocalProtocolError, match="in order"):
        play.server.route_shares({})
    with pytest.raises(LocalProtocolError, match="in order"):
        play.server.round(ROUND)
    play.until(2)
    with pytest.raises(LocalProtocolError, match="in order"):
        play.server.adverts(play.adverts)
    with pytest.raises(LocalProtocolError, match="in order"):
        play.server.route_shares(play.sealed)


def test_a_sum_takes_its_steps_in_order() -> None:
    play = Play().until(3)
    for early in (
        lambda: play.sum.signed({}),
        lambda: play.sum.unmask({}),
    ):
        with pytest.raises(LocalProtocolError, match="in order"):
            early()
    play.add()
    with pytest.raises(LocalProtocolError, match="in order"):
        play.sum.add("shop", play.masked["brand"])
    play.sign()
    play.answer()
    play.sum.unmask(play.answers)
    with pytest.raises(LocalProtocolError, match="in order"):
        play.sum.unmask(play.answers)


@pytest.mark.parametrize("number", [ROUND - 1, ROUND, ROUND + 2])
def test_rounds_are_of_the_block_and_go_forward(number: int) -> None:
    play = Play().until(3)
    with pytest.raises(LocalProtocolError, match="later than the last one"):
        play.server.round(number)
    play.server.round(ROUND + 1)


def test_too_few_vectors_leave_the_sum_open() -> None:
    play = Play().until(3)
    for name in ("brand", "platform"):
        play.sum.add(name, play.masked[name])
    with pytest.raises(TooManyDropouts, match="masked input: fewer than 3"):
        play.sum.survivors()
    play.sum.add("retailer", play.masked["retailer"])
    assert play.sum.survivors() == play.sum.survivors() == NAMES[:3]


@pytest.mark.parametrize("masked", [[1, 2, 3, 4, 5], None, np.zeros(5), np.zeros(5, np.uint64)])
def test_only_words_are_added(masked: np.ndarray) -> None:
    with pytest.raises(RemoteProtocolError, match="brand: its masked input has another"):
        Play().until(3).sum.add("brand", masked)


def test_a_member_whose_shares_fit_nothing_is_named() -> None:
    """It dealt them wrongly: whoever recovers its secret finds out."""
    play = Play().until(5)
    signed = play.sum.signed(play.signatures)
    answers = {name: play.clients[name].unmask(ROUND, signed) for name in play.survivors}
    answers["brand"]["round_keys"]["shop"] = "00" * 32 + "07"
    with pytest.raises(RemoteProtocolError, match=r"shop: shares do not fit|fit no secret"):
        play.sum.unmask(answers)


def test_any_threshold_of_answers_gives_the_same_sum() -> None:
    sums = []
    for missing in (None, *NAMES):
        group = group_of(NAMES, 1, 1)
        signers = {name: key.sign for name, key in keys_of(NAMES).items()}
        server, clients = share_keys(group, BLOCK, signers)
        total = server.round(ROUND)
        for number, (name, client) in enumerate(clients.items()):
            vector = np.full(BLOCK.size, 10**number, dtype=np.uint32)
            client.mask(ROUND, vector)
            total.add(name, vector)
        who = total.survivors()
        signed = total.signed({n: c.check_consistency(ROUND, who) for n, c in clients.items()})
        answers = {n: c.unmask(ROUND, signed) for n, c in clients.items() if n != missing}
        sums.append(total.unmask(answers).tolist())
    assert sums == [[1111] * BLOCK.size] * 5


@pytest.mark.parametrize("n", [3, 24])
def test_memory_does_not_grow_with_the_partners(n: int) -> None:
    """One vector and a quarter, besides what arrives: 4 MB of sum, below 5 MB at the peak."""
    names = tuple(f"p{i:02}" for i in range(n))
    group, block = group_of(names, 0, 1), replace(BLOCK, rounds=1, size=1 << 20)
    signers = {name: key.sign for name, key in keys_of(names).items()}
    server, clients = share_keys(group, block, signers)
    vector = np.zeros(block.size, dtype=np.uint32)
    tracemalloc.start()
    total = server.round(ROUND)
    for name in names:
        total.add(name, vector)
        clients[name]._done, clients[name]._number = (
            Step.MASKED_INPUT,
            ROUND,
        )  # as if it had masked the vector
    who = total.survivors()
    signed = total.signed({n: c.check_consistency(ROUND, who) for n, c in clients.items()})
    total.unmask({name: client.unmask(ROUND, signed) for name, client in clients.items()})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * vector.nbytes
