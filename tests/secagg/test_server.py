import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import LocalProtocolError, RemoteProtocolError, TooManyDropouts
from dovetail.secagg.client import Client
from dovetail.secagg.group import Group
from dovetail.secagg.messages import KEY_ADVERT, Advert, Step
from dovetail.secagg.protocol import share_keys
from dovetail.secagg.server import Server
from dovetail.secagg.shamir import PRIME
from tests.secagg.transcript import BLOCK, NAMES, ROUND, Play, dice, group_of, keys_of


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
    with pytest.raises(RemoteProtocolError, match="shop: shares of its secret do not fit"):
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


# Members whose messages cannot be used

SEVEN = group_of(tuple(f"p{i}" for i in range(7)), 2, 1)
SENT = [step for step in Step if step is not Step.RECEIVE_SHARES]
"""Steps that end in a message to the server."""

Spoil = Callable[[Step, dict[str, Any]], dict[str, Any]]
"""Changes what the server is sent in one step, by member."""


@dataclass
class Outcome:
    """What came of a sum: who is in it, the sum, and whom the server left out of what."""

    survivors: tuple[str, ...]
    total: np.ndarray
    faults: dict[Step, dict[str, str]] = field(default_factory=dict)


def vector(name: str) -> np.ndarray:
    return np.full(BLOCK.size, 10 ** int(name[1:]), dtype=np.uint32)


def sum_of(spoil: Spoil, group: Group = SEVEN) -> Outcome:
    """A sum in which the server goes on with those whom it did not leave out."""
    server, faults = Server(group, BLOCK), {}
    signers = {name: key.sign for name, key in keys_of(group.members).items()}
    clients = {name: Client(group, BLOCK, name, signers[name]) for name in group.members}
    said = spoil(Step.ADVERTISE_KEYS, {n: c.advertise_keys() for n, c in clients.items()})
    adverts = server.adverts(said)
    faults[Step.ADVERTISE_KEYS] = server.faults
    sealed = {advert["member"]: clients[advert["member"]].share_keys(adverts) for advert in adverts}
    routed = server.route_shares(spoil(Step.SHARE_KEYS, sealed))
    faults[Step.SHARE_KEYS] = server.faults
    total, masked = server.round(ROUND), {name: vector(name) for name in routed}
    for name, words in masked.items():
        clients[name].receive_shares(routed[name])
        clients[name].mask(ROUND, words)
    faults[Step.MASKED_INPUT] = add_all(total, spoil(Step.MASKED_INPUT, masked))
    who = total.survivors()
    signatures = {name: clients[name].check_consistency(ROUND, who) for name in who}
    signed = total.signed(spoil(Step.CONSISTENCY_CHECK, signatures))
    faults[Step.CONSISTENCY_CHECK] = total.faults
    answers = {name: clients[name].unmask(ROUND, signed) for name in signed}
    found = total.unmask(spoil(Step.UNMASKING, answers))
    return Outcome(who, found, faults | {Step.UNMASKING: total.faults})


def add_all(total: Any, masked: Mapping[str, Any]) -> dict[str, str]:
    faults = {}
    for name, words in masked.items():
        try:
            total.add(name, words)
        except RemoteProtocolError as error:
            faults[name] = str(error)
    return faults


NONSENSE = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.binary(max_size=82),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["member", "p1", "p6", "self_masks"]), st.none(), max_size=2),
)


def spoiled(data: st.DataObject, bad: Mapping[str, Step]) -> Spoil:
    """At its step a member sends nonsense, another's message, or one with a part of it changed."""

    def spoil(step: Step, said: dict[str, Any]) -> dict[str, Any]:
        for name in [n for n, at in bad.items() if at is step and n in said]:
            ways = [NONSENSE]
            if step in (Step.ADVERTISE_KEYS, Step.SHARE_KEYS, Step.CONSISTENCY_CHECK):
                ways += [st.sampled_from([said[n] for n in said if n != name])]
            if isinstance(said[name], dict):
                parts = st.tuples(st.sampled_from(sorted(said[name])), NONSENSE)
                ways += [parts.map(partial(with_part, said[name]))]
            said = said | {name: data.draw(st.one_of(ways))}
        return said

    return spoil


def with_part(good: dict[str, Any], part: tuple[str, Any]) -> dict[str, Any]:
    return good | dict([part])


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from(SEVEN.members), st.sampled_from(SENT), max_size=2), st.data()
)
def test_whose_message_cannot_be_used_is_left_out_and_the_rest_go_on(
    bad: dict[str, Step], data: st.DataObject
) -> None:
    outcome = sum_of(spoiled(data, bad))
    added = [name for name in SEVEN.members if bad.get(name, Step.UNMASKING) > Step.MASKED_INPUT]
    assert list(outcome.survivors) == added
    assert (outcome.total == sum(vector(name) for name in added)).all()
    for step in SENT:
        assert set(outcome.faults[step]) == {name for name, at in bad.items() if at is step}


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SENT), st.sets(st.sampled_from(SEVEN.members), min_size=3, max_size=3))
def test_too_many_whose_messages_cannot_be_used_are_too_many_dropouts(
    step: Step, bad: set[str]
) -> None:
    def spoil(at: Step, said: dict[str, Any]) -> dict[str, Any]:
        return said | dict.fromkeys(bad if at is step else ())

    with pytest.raises(TooManyDropouts, match=f"^{step}: fewer than 5"):
        sum_of(spoil)


def test_a_step_that_too_few_took_says_who_did_not() -> None:
    play = Play().until(5)
    with pytest.raises(TooManyDropouts):
        play.sum.signed(play.signatures | {"brand": play.signatures["platform"]})
    assert play.sum.faults == {"brand": "has not signed this secagg survivors"}
    play.sum.signed(play.signatures)
    assert play.sum.faults == {}


def test_members_with_the_same_key_are_both_left_out() -> None:
    """Neither can be told from the other; fresh keys that are drawn well are never the same."""
    signers = keys_of(SEVEN.members)

    def spoil(step: Step, said: dict[str, Any]) -> dict[str, Any]:
        if step is not Step.ADVERTISE_KEYS:
            return said
        copy = {k: v for k, v in said["p1"].items() if k != "signature"}
        copy["round_keys"] = said["p4"]["round_keys"]
        return said | {"p1": {**copy, "signature": signers["p1"].sign(KEY_ADVERT, copy)}}

    outcome = sum_of(spoil)
    reason = "a public key in its advert is there twice"
    assert outcome.faults[Step.ADVERTISE_KEYS] == {"p1": reason, "p4": reason}
    assert outcome.total[0] == 1101101


def test_a_member_that_advertises_one_key_twice_is_left_out() -> None:
    play = Play()
    advert = play.clients["shop"]._advert
    twice = Advert(advert.share_key, advert.round_keys[:1] * 2, advert.commitments)
    statement = twice.statement(BLOCK.context(play.server._group), "shop")
    signature = keys_of(NAMES)["shop"].sign(KEY_ADVERT, statement)
    play.server.adverts(play.adverts | {"shop": {**statement, "signature": signature}})
    assert list(play.server.faults) == ["shop"]


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.sampled_from(SEVEN.members), max_size=1),
    st.sampled_from([Step.ADVERTISE_KEYS, Step.MASKED_INPUT]),
    st.data(),
)
def test_wrong_shares_are_survived_as_long_as_answers_are_spare(
    gone: set[str], step: Step, data: st.DataObject
) -> None:
    """Of some secrets or of all, by as many members as there are answers beyond the threshold."""
    left = [name for name in SEVEN.members if name not in gone]
    liars = data.draw(st.sets(st.sampled_from(left), max_size=len(left) - SEVEN.threshold))

    def spoil(at: Step, said: dict[str, Any]) -> dict[str, Any]:
        if at is step:
            return {name: sent for name, sent in said.items() if name not in gone}
        changed = {n: tampered(said[n], n, data) for n in sorted(liars) if at is Step.UNMASKING}
        return said | changed

    outcome = sum_of(spoil)
    assert (outcome.total == sum(vector(name) for name in left)).all()
    assert set(outcome.faults[Step.UNMASKING]) == liars
    for reason in outcome.faults[Step.UNMASKING].values():
        assert "does not fit the others'" in reason


def tampered(answer: dict[str, Any], name: str, data: st.DataObject) -> dict[str, Any]:
    """An answer with other shares of some secrets, in which nothing else is wrong."""
    shares = [(kind, of) for kind in ("self_masks", "round_keys") for of in answer[kind]]
    wrong = data.draw(st.sets(st.sampled_from(shares), min_size=1))
    changed = {kind: dict(answer[kind]) for kind in ("self_masks", "round_keys")}
    for kind, of in wrong:
        moved = int(answer[kind][of], 16) + int.from_bytes(dice(name, of)(32), "big")
        changed[kind][of] = f"{moved % PRIME:066x}"
    return answer | changed
