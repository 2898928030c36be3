"""JSON vectors: the good one is what is said, and each bad one meets the error that it names.

A bad vector changes what one call is given. ``at`` is a path into it; there it puts ``to``, a
``copy`` of another place in ``good.json``, or nothing (``drop``). Where the server goes on without
the member whose message it is, the vector names who is ``left_out``, and not an ``error``.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from dovetail import errors
from dovetail.errors import TooManyDropouts
from tests.secagg.transcript import BLOCK, GROUP, ROUND, VECTORS, Play, transcript, vector_of

GOOD = json.loads((VECTORS / "good.json").read_text())


def _bytes(value: Any) -> Any:
    """Hexadecimal digits back to bytes, for what travels as bytes."""
    if isinstance(value, dict):
        return {name: _bytes(part) for name, part in value.items()}
    return bytes.fromhex(value) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    return np.array(value, dtype=np.uint32)


CALLS: dict[str, tuple[int, Any, Callable[[Play, Any], object]]] = {
    "server.adverts": (0, GOOD["adverts"], lambda p, v: p.server.adverts(v)),
    "client.share_keys": (
        0,
        [GOOD["adverts"][name] for name in sorted(GOOD["adverts"])],
        lambda p, v: p.clients["brand"].share_keys(v),
    ),
    "server.route_shares": (1, GOOD["sealed"], lambda p, v: p.server.route_shares(_bytes(v))),
    "client.receive_shares": (
        1,
        GOOD["routed"]["brand"],
        lambda p, v: p.clients["brand"].receive_shares(_bytes(v)),
    ),
    "client.mask": (2, {"round": ROUND}, lambda p, v: _mask(p, v["round"])),
    "server.add": (
        3,
        [{"member": name, "masked": GOOD["masked"][name]} for name in GOOD["masked"]],
        lambda p, v: _add(p, v),
    ),
    "client.check_consistency": (
        4,
        {"round": ROUND, "survivors": GOOD["survivors"]},
        lambda p, v: p.clients["brand"].check_consistency(v["round"], v["survivors"]),
    ),
    "server.signed": (5, GOOD["signatures"], lambda p, v: p.sum.signed(v)),
    "client.unmask": (
        5,
        {"round": ROUND, "signatures": GOOD["signatures"]},
        lambda p, v: p.clients["brand"].unmask(v["round"], v["signatures"]),
    ),
    "server.unmask": (6, GOOD["answers"], lambda p, v: p.sum.unmask(v)),
}
"""Each call that takes something from outside: steps before it, what it is given, how."""

BAD: list[tuple[str, dict[str, Any]]] = [
    (call, case)
    for path in sorted(VECTORS.glob("*.json"))
    if path.stem not in ("good", "encoding")
    for call, cases in json.loads(path.read_text()).items()
    for case in cases
]
WHOLE = ("server.signed", "server.unmask")
"""Calls of the server that a bad vector, which leaves one of three out, stops as a whole."""


def _bad(chosen: Callable[[str, dict[str, Any]], bool]) -> pytest.MarkDecorator:
    params = [
        pytest.param(call, case, id=f"{call}: {case['name']}")
        for call, case in BAD
        if chosen(call, case)
    ]
    return pytest.mark.parametrize(("call", "case"), params)


def _add(play: Play, parts: Any) -> None:
    for part in parts:
        play.sum.add(part["member"], _words(part["masked"]))


def _mask(play: Play, number: Any) -> None:
    play.clients["brand"].mask(number, vector_of("brand"))


def changed(value: Any, case: dict[str, Any]) -> Any:
    root = {"": copy.deepcopy(value)}
    for change in case["changes"]:
        whole: list[Any] = ["", *change["at"]]
        path, last = whole[:-1], whole[-1]
        place: Any = root
        for key in path:
            place = place[key]
        if "drop" in change:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(_new(change))
        else:
            place[last] = _new(change)
    return root[""]


def _new(change: dict[str, Any]) -> Any:
    if "to" in change:
        return change["to"]
    found = GOOD
    for key in change["copy"]:
        found = found[key]
    return copy.deepcopy(found)


def test_what_is_said_is_what_the_vector_holds() -> None:
    assert transcript() == GOOD


def test_the_sum_is_that_of_the_survivors() -> None:
    total = sum(vector_of(name).view(np.int32).astype(int) for name in GOOD["survivors"])
    assert (_words(GOOD["sum"]).view(np.int32) == total).all()
    assert BLOCK.size == len(GOOD["sum"])


@pytest.mark.parametrize("call", CALLS)
def test_the_good_vector_is_accepted(call: str) -> None:
    steps, value, act = CALLS[call]
    act(Play().until(steps), copy.deepcopy(value))


@_bad(lambda _, case: "error" in case)
def test_a_bad_vector_meets_its_error(call: str, case: dict[str, Any]) -> None:
    steps, value, act = CALLS[call]
    play = Play().until(steps)
    with pytest.raises(getattr(errors, case["error"]), match=case["message"]) as caught:
        act(play, changed(value, case))
    assert type(caught.value) is getattr(errors, case["error"])


@_bad(lambda _, case: "left_out" in case)
def test_a_bad_vector_leaves_its_member_out(call: str, case: dict[str, Any]) -> None:
    steps, value, act = CALLS[call]
    play, bad = Play().until(steps), changed(value, case)
    enough = len(bad) > GROUP.threshold
    with nullcontext() if enough else pytest.raises(TooManyDropouts):
        act(play, bad)
    faults = play.sum.faults if steps > 2 else play.server.faults
    assert list(faults) == [case["left_out"]]
    assert re.search(case["message"], faults[case["left_out"]])


def test_every_call_has_bad_vectors() -> None:
    assert {call for call, _ in BAD} == set(CALLS)


@_bad(lambda call, case: call != "server.add" and ("error" in case or call in WHOLE))
def test_who_was_told_nonsense_can_still_be_told_the_truth(call: str, case: dict[str, Any]) -> None:
    """A refused message changes nothing, so that nobody is stopped by a forged one.

    (``server.add`` is several messages, of which the first ones count.)
    """
    steps, value, act = CALLS[call]
    play = Play().until(steps)
    with pytest.raises(errors.ProtocolError):
        act(play, changed(value, case))
    act(play, copy.deepcopy(value))
