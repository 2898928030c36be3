"""A coordinator that cheats, with and without a colluding partner, and what stops it.

Where it is simple, the defence is taken away too, and the attack then succeeds: the test would
notice a defence that is gone, and the attack is a real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from dovetail.crypto.key_exchange import ExchangeKey
from dovetail.crypto.keys import new_signing_key
from dovetail.crypto.prg import Prg
from dovetail.errors import ProtocolError, RemoteProtocolError, SettingError, TooManyDropouts
from dovetail.secagg import client as client_module
from dovetail.secagg import masks, messages
from dovetail.secagg.client import Client
from dovetail.secagg.group import Block, Group
from dovetail.secagg.messages import Record, Roster
from dovetail.secagg.server import Server
from dovetail.secagg.shamir import lagrange_weights, recover
from tests.secagg.transcript import (
    BLOCK,
    GROUP,
    LEFT,
    NAMES,
    ROUND,
    Play,
    group_of,
    keys_of,
    vector_of,
)


def unmasked(play: Play, name: str, seed: bytes, key: bytes) -> np.ndarray:
    """A member's vector, once both of its secrets are known: what must never happen."""
    roster = messages.read_roster(list(play.adverts.values()), GROUP, play.block)
    view, context = roster.view(NAMES), play.block.context(GROUP)
    plus: list[Prg] = []
    minus = [masks.self_mask(seed, context, ROUND, name)]
    for other in set(NAMES) - {name}:
        secret = ExchangeKey(key).secret_with(roster.adverts[other].round_keys[0])
        side = minus if name < other else plus
        side.append(masks.pairwise_mask(secret, view, ROUND, name, other))
    vector = play.masked[name].copy()
    masks.apply(vector, plus, minus)
    return vector


def recovered(group: Group, owner: str, kind: str, answers: dict[str, Record]) -> bytes:
    """A secret, from the answers that hold shares of it."""
    shares = {n: int(a[kind][owner], 16) for n, a in answers.items() if owner in a[kind]}
    assert len(shares) >= group.threshold
    weights = lagrange_weights([group.point(name) for name in shares])
    return recover(shares.values(), weights)


# Swapped keys, and a partner isolated among fakes


def isolate(victim: Client, fakes: Iterable[str]) -> np.ndarray:
    """Plays all partners of one, with keys of its own and vectors of zeros."""
    server = Server(GROUP, BLOCK)
    clients = {"brand": victim}
    clients |= {name: Client(GROUP, BLOCK, name, new_signing_key().sign) for name in fakes}
    adverts = {name: c.advertise_keys() for name, c in clients.items()}
    sealed = {name: c.share_keys(list(adverts.values())) for name, c in clients.items()}
    server.adverts(adverts)
    routed = server.route_shares(sealed)
    total = server.round(ROUND)
    for name, one in clients.items():
        one.receive_shares(routed[name])
        vector = vector_of("brand") if name == "brand" else np.zeros(BLOCK.size, dtype=np.uint32)
        one.mask(ROUND, vector)
        total.add(name, vector)
    signatures = {n: c.check_consistency(ROUND, total.survivors()) for n, c in clients.items()}
    signed = total.signed(signatures)
    return total.unmask({name: one.unmask(ROUND, signed) for name, one in clients.items()})


def victim() -> Client:
    return Client(GROUP, BLOCK, "brand", keys_of(NAMES)["brand"].sign)


def test_a_partner_is_not_isolated_among_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteProtocolError, match="has not signed this key advert"):
        isolate(victim(), NAMES[1:])
    monkeypatch.setattr(messages, "_check_signature", lambda *args: None)
    assert (isolate(victim(), NAMES[1:]) == vector_of("brand")).all()


def test_swapped_keys_are_refused_by_every_partner() -> None:
    play = Play()
    swapped = play.adverts["shop"] | {"round_keys": "09" * 64}
    adverts = [play.adverts[name] for name in NAMES[:-1]] + [swapped]
    for member in play.clients.values():
        with pytest.raises(RemoteProtocolError, match=r"shop: has not signed|own is missing"):
            member.share_keys(adverts)


def test_a_partner_that_advertises_twice_splits_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A colluding partner signs two adverts; shares of the one do not open beside the other."""
    play = Play()
    second = Client(GROUP, BLOCK, "shop", keys_of(NAMES)["shop"].sign).advertise_keys()
    honest = [play.adverts[name] for name in NAMES]
    sealed = {n: play.clients[n].share_keys(honest) for n in ("platform", "retailer", "shop")}
    play.clients["brand"].share_keys([*honest[:-1], second])
    with pytest.raises(RemoteProtocolError, match="does not open"):
        play.clients["brand"].receive_shares({n: s["brand"] for n, s in sealed.items()})


# Different dropouts told to different partners


def seven() -> tuple[Group, Block, dict[str, Client]]:
    names = tuple(f"p{i}" for i in range(7))
    group, block = group_of(names, 2, 1), Block("ab" * 32, 1, 0, 1, 4, 32)
    return group, block, {n: Client(group, block, n, keys_of(names)[n].sign) for n in names}


def sum_of_four() -> np.ndarray:
    """Seven partners, threshold five: tells each that another two of p0, p1, p2 dropped out.

    Each of the three is dropped by four honest partners; with p6, who colludes, that is enough
    to recover its key, and to learn a sum of four vectors, one fewer than anybody agreed to.
    """
    group, block, clients = seven()
    server = Server(group, block)
    adverts = server.adverts({n: c.advertise_keys() for n, c in clients.items()})
    routed = server.route_shares({n: c.share_keys(adverts) for n, c in clients.items()})
    total = server.round(0)
    for number, (name, one) in enumerate(clients.items()):
        one.receive_shares(routed[name])
        vector = np.full(block.size, 10**number, dtype=np.uint32)
        one.mask(0, vector)
        if number > 2:
            total.add(name, vector)
    colluder = dict(clients["p6"]._held[0])
    dropped = [(1, 2), (0, 2), (0, 1), (0, 1), (1, 2), (0, 2)]
    lists = {
        f"p{i}": [n for n in group.members if n not in (f"p{a}", f"p{b}")]
        for i, (a, b) in enumerate(dropped)
    }
    signatures = {n: clients[n].check_consistency(0, lists[n]) for n in lists}
    answers = {}
    for name, survivors in lists.items():
        signatures["p6"] = clients["p6"]._sign(
            messages.SURVIVORS, messages.survivors_statement(clients[name]._view, 0, survivors)
        )
        answers[name] = clients[name].unmask(0, {n: signatures[n] for n in survivors})
    text = {n: [share.to_bytes(33, "big").hex() for share in pair] for n, pair in colluder.items()}
    answers["p6"] = {
        "self_masks": {n: pair[1] for n, pair in text.items()},
        "round_keys": {n: pair[0] for n, pair in text.items()},
    }
    seeds = {f"p{i}": recovered(group, f"p{i}", "self_masks", answers) for i in range(3, 7)}
    keys = {f"p{i}": recovered(group, f"p{i}", "round_keys", answers) for i in range(3)}
    masks.apply(total._total, *total._streams({**seeds, **keys}))
    return total._total


def test_partners_told_of_different_dropouts_reveal_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RemoteProtocolError, match="has not signed this secagg survivors"):
        sum_of_four()
    monkeypatch.setattr(client_module, "check_signatures", lambda *args: None)
    assert (sum_of_four() == 1111000).all()


def test_two_lists_of_survivors_need_more_partners_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four partners that bear two dropouts and a colluder: refused, and rightly."""
    with pytest.raises(SettingError, match="must exceed"):
        group_of(NAMES, 2, 1)
    monkeypatch.setattr(Group, "__post_init__", lambda self: None)
    weak = group_of(NAMES, 2, 1)
    monkeypatch.setattr("tests.secagg.transcript.GROUP", weak)
    monkeypatch.setattr("tests.secagg.test_hostile_coordinator.GROUP", weak)
    play = Play.__new__(Play)
    play.block, play.server = BLOCK, Server(weak, BLOCK)
    play.clients = {n: Client(weak, BLOCK, n, keys_of(NAMES)[n].sign) for n in NAMES}
    play.adverts = {n: c.advertise_keys() for n, c in play.clients.items()}
    play.until(3)
    colluder = dict(play.clients["retailer"]._held[ROUND])
    play.clients["shop"].mask(ROUND, vector_of("shop"))
    answers: dict[str, Record] = {}
    for survivors in (["brand", "retailer"], ["platform", "shop"]):
        asked = [name for name in survivors if name != "retailer"]
        signed = {n: play.clients[n].check_consistency(ROUND, survivors) for n in asked}
        if "retailer" in survivors:
            signed["retailer"] = play.clients["retailer"].check_consistency(ROUND, survivors)
        answers |= {n: play.clients[n].unmask(ROUND, signed) for n in asked}
    key_share, seed_share = (share.to_bytes(33, "big").hex() for share in colluder["brand"])
    answers["retailer"] = {"self_masks": {"brand": seed_share}, "round_keys": {"brand": key_share}}
    seed = recovered(weak, "brand", "self_masks", answers)
    key = recovered(weak, "brand", "round_keys", answers)
    assert (unmasked(play, "brand", seed, key) == vector_of("brand")).all()


# Both secrets of one partner


def test_an_answer_never_has_shares_of_both_secrets_of_one_partner() -> None:
    answers = Play().until(6).answers
    for answer in answers.values():
        assert not answer["self_masks"].keys() & answer["round_keys"].keys()
        assert answer["self_masks"].keys() | answer["round_keys"].keys() == set(NAMES)


def ask_twice(play: Play) -> np.ndarray:
    """One list with everybody in it, then one without ``brand``, to the same partners."""
    play.clients["shop"].mask(ROUND, vector_of("shop"))
    first: dict[str, Record] = {}
    second: dict[str, Record] = {}
    for survivors, answers in ((list(NAMES), first), (list(NAMES[1:]), second)):
        signed = {n: play.clients[n].check_consistency(ROUND, survivors) for n in NAMES[1:]}
        answers |= {n: play.clients[n].unmask(ROUND, signed) for n in NAMES[1:]}
    seed = recovered(GROUP, "brand", "self_masks", first)
    return unmasked(play, "brand", seed, recovered(GROUP, "brand", "round_keys", second))


def test_no_partner_unmasks_a_round_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteProtocolError, match="asked before"):
        ask_twice(Play().until(3))
    monkeypatch.setattr(Client, "_expect", lambda self, step: None)
    with pytest.raises(KeyError):  # the round is forgotten: the second line of defence
        ask_twice(Play().until(3))
    monkeypatch.setattr(Client, "_forget_before", lambda self, number: None)
    assert (ask_twice(Play().until(3)) == vector_of("brand")).all()


def test_no_partner_signs_two_lists_of_one_round() -> None:
    play = Play().until(4)
    play.sign()
    with pytest.raises(RemoteProtocolError, match="asked before"):
        play.clients["brand"].check_consistency(ROUND, list(NAMES))


# Replayed rounds


def ask_again(play: Play) -> np.ndarray:
    """The difference of two answers to one round; masks that come twice cancel in it."""
    changed = vector_of("brand") + np.uint32(77)
    play.clients["brand"].mask(ROUND, changed)
    changed -= play.masked["brand"]
    return changed


def test_no_partner_masks_a_round_twice() -> None:
    with pytest.raises(RemoteProtocolError, match="the round is over"):
        ask_again(Play().until(3))
    play = Play().until(3)
    play.clients["brand"]._number = ROUND - 1
    assert (ask_again(play) == 77).all()


def test_rounds_never_go_back_and_what_is_over_is_forgotten() -> None:
    play = Play().until(2)
    brand = play.clients["brand"]
    brand.mask(ROUND + 1, vector_of("brand"))
    with pytest.raises(RemoteProtocolError, match="the round is over"):
        brand.mask(ROUND, vector_of("brand"))
    assert set(brand._own) == set(brand._held) == {ROUND + 1}


def test_a_round_that_was_overtaken_is_not_unmasked() -> None:
    play = Play().until(5)
    play.clients["brand"].mask(ROUND + 1, vector_of("brand"))
    with pytest.raises(RemoteProtocolError):
        play.clients["brand"].unmask(ROUND, play.signatures)


def test_no_keys_are_advertised_or_shared_twice() -> None:
    """Were shares dealt twice, to two rosters, half the threshold of each might be enough."""
    play = Play().until(1)
    with pytest.raises(RemoteProtocolError, match="advertise keys"):
        play.clients["brand"].advertise_keys()
    with pytest.raises(RemoteProtocolError, match="share keys"):
        play.clients["brand"].share_keys(list(play.adverts.values()))


# Different partners shown to different partners


def withhold(play: Play) -> dict[str, Record]:
    """Tells ``brand`` alone that ``shop`` shared no keys."""
    routed = play.server.route_shares(play.sealed)
    del routed["brand"]["shop"]
    for name, one in play.clients.items():
        one.receive_shares(routed[name])
    play.mask()
    play.add()
    play.sign()
    return {n: play.clients[n].unmask(ROUND, play.signatures) for n in play.survivors}


def test_partners_shown_different_partners_do_not_sign_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RemoteProtocolError, match="has not signed this secagg survivors"):
        withhold(Play().until(1))
    monkeypatch.setattr(Roster, "view", lambda self, members: self.digest)
    assert withhold(Play().until(1))


def test_masks_of_partners_with_different_views_do_not_cancel() -> None:
    streams = [
        masks.pairwise_mask(bytes(32), Roster({}, "ab").view(shared), 1, "brand", "shop").words32(4)
        for shared in (NAMES, NAMES[:3])
    ]
    assert not (streams[0] == streams[1]).any()


# Too few, and what errors tell


@pytest.mark.parametrize("count", range(GROUP.threshold))
def test_a_list_of_too_few_survivors_is_not_signed(count: int) -> None:
    play = Play().until(3)
    with pytest.raises(TooManyDropouts):
        play.clients["brand"].check_consistency(ROUND, list(NAMES[:count]))


def test_no_error_shows_a_secret_or_what_it_was_sent() -> None:
    """Every call of a fresh victim with something planted in it."""
    planted = "5eC4e7"
    play = Play().until(1)
    brand = play.clients["brand"]
    for call in (
        lambda: brand.receive_shares({planted: b""}),
        lambda: brand.receive_shares({"shop": planted.encode() * 20}),
        lambda: play.server.route_shares({planted: {}}),
        lambda: client_of_brand().share_keys([{planted: planted}]),
        lambda: client_of_brand().share_keys([play.adverts["shop"] | {"member": planted}]),
        lambda: client_of_brand().share_keys([play.adverts["shop"] | {"share_key": planted}]),
    ):
        with pytest.raises(ProtocolError) as caught:
            call()
        assert planted not in str(caught.value)


def client_of_brand() -> Client:
    one = victim()
    one.advertise_keys()
    return one


@pytest.mark.parametrize("weak", ["share_key", "round_keys"])
def test_a_colluder_that_offers_a_weak_key_is_refused(weak: str) -> None:
    """A public key of low order, with which everybody would know what it is used for.

    By every partner before it shares keys, and by an honest coordinator before that.
    """
    play = Play()
    advert = play.clients["shop"]._advert
    low = {"share_key": bytes(32), "round_keys": (advert.round_keys[0], b"\1" + bytes(31))}
    statement = replace(advert, **{weak: low[weak]}).statement(BLOCK.context(GROUP), "shop")  # type: ignore[arg-type]
    signature = keys_of(NAMES)["shop"].sign(messages.KEY_ADVERT, statement)
    play.adverts["shop"] = {**statement, "signature": signature}
    for name in LEFT:
        with pytest.raises(RemoteProtocolError, match="shop: a public key cannot be used"):
            play.clients[name].share_keys(list(play.adverts.values()))
    assert [record["member"] for record in play.server.adverts(play.adverts)] == list(LEFT)
    assert play.server.faults == {"shop": "a public key cannot be used for key agreement"}
