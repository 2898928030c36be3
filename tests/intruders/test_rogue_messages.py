"""Messages to a node that say nothing, or too much; and what it tells of itself in its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from dovetail.agreement.request import Request
from dovetail.agreement.signing import request_record
from dovetail.data.arrays import CustomerArrays
from dovetail.errors import DovetailError, PolicyError
from dovetail.flower import actions, codec
from dovetail.flower._compat import new_message
from dovetail.flower.records import array_record
from dovetail.node.opening import arrays_folder
from dovetail.node.settings import load_settings
from dovetail.privacy import pld
from tests.intruders.house import (
    COHORT,
    leaks,
    with_task,
)
from tests.intruders.rogues import (
    RogueCoordinator,
    good_arrays,
)
from tests.samples import TASK


def messages_of(rogue: RogueCoordinator, config: dict[str, Any]) -> Iterator[Message]:
    """Every kind of message, with the same settings."""
    for kind in (actions.PREVIEW, actions.PROPOSE, actions.TRAIN, actions.CLOSE, actions.KEEP):
        content = RecordDict({"config": ConfigRecord(config)})
        content["arrays"] = array_record(good_arrays(rogue.house.terms))
        yield Message(content, rogue.node, kind)


DEEP = "[" * 100_000
NESTED = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "17",
        '"x"',
        DEEP,
        NESTED,
        '{"job": "job-1"}',
        "{" + "9" * 5000,
        5,
        b"x",
    ],
    ids=lambda text: str(text)[:20],
)
def test_settings_that_are_no_record(text: Any, rogue: RogueCoordinator) -> None:
    config = {"signed": text, "request": text, "server-round": 1, "job": "job-9", "card": text}
    for message in messages_of(rogue, config):
        with pytest.raises(DovetailError) as caught:
            rogue.ask(message)
        assert "Traceback" not in str(caught.value)


def test_fields_that_hold_something_else(rogue: RogueCoordinator) -> None:
    good: Any = json.loads(json.dumps(request_record(rogue.house.asked(Request("job-8", TASK)))))
    strange: list[Any] = [
        None,
        True,
        1e400,
        10**400,
        "\ud800",
        "",
        [],
        {},
        ["x"] * 11_000,
        "x" * 900,
    ]
    for name in good:
        for value in strange:
            record = good | {name: value}
            message = actions.propose_message(rogue.node, record)
            with pytest.raises(DovetailError) as caught:
                rogue.ask(message)
            assert "internal" not in str(caught.value), (name, str(value)[:20])


def test_messages_of_no_known_kind(rogue: RogueCoordinator) -> None:
    for kind in ("query", "query.ledger", "evaluate", "train.more", "query.propose_all"):
        message = Message(RecordDict({"config": ConfigRecord({})}), rogue.node, kind)
        with pytest.raises(DovetailError):
            rogue.ask(message)


def test_an_error_where_something_is_to_be_asked(rogue: RogueCoordinator) -> None:
    message = Message(RecordDict({}), rogue.node, actions.PROPOSE)
    raw = codec.encode(new_message(message.metadata, Error(7, "no")))
    answer = rogue.raw(raw)
    assert isinstance(answer, bytes | bytearray)
    assert codec.decode(answer).error.reason == "an error was sent where something was to be asked"


def test_bytes_that_are_no_message(rogue: RogueCoordinator) -> None:
    good = codec.encode(rogue.training(2))
    for raw in (b"", b"\xff" * 50, good[:-1], good[1:], good + b"x", b"[" * 10_000):
        assert "the node failed to answer" in str(rogue.raw(raw))


@pytest.mark.parametrize("times", [200, pytest.param(5_000, marks=pytest.mark.long)])
def test_previews_by_the_thousand_cost_nothing(times: int, rogue: RogueCoordinator) -> None:
    found = {rogue.preview(rogue.house.asked())["remaining"] for _ in range(times)}
    assert len(found) == 1


@pytest.mark.parametrize("forged", [True, False])
def test_a_preview_that_would_take_minutes_to_answer_exactly(
    forged: bool, rogue: RogueCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may keep a node busy with what it will not do anyway."""
    monkeypatch.setattr(pld, "composed", lambda *_: pytest.fail("this would take minutes"))
    endless: dict[str, Any] = {"rounds": 7_839_188, "sampling_prob": 0.441}
    task = {"noise_multiplier": 16_205.85} | ({"rounds": 200} if forged else endless)
    signed = rogue.house.asked(with_task("job-2", **task))
    if forged:
        with pytest.raises(PolicyError, match="did not sign this request"):
            rogue.preview(replace(signed, signature="0" * 128))
    else:
        found = rogue.preview(signed)
        assert found["refused_by"] == "rounds"
        assert found["epsilon"] > 0


def test_the_detector_of_leaks_finds_what_it_is_to_find(admitted: RogueCoordinator) -> None:
    home = admitted.house.home("retailer")
    settings = load_settings(home / "node.toml")
    folder = arrays_folder(settings, admitted.house.terms.schema)
    prepared = b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(CustomerArrays.open(folder)) == COHORT
    assert leaks(prepared) != []
    assert leaks((home / "customers.csv").read_bytes())
    assert leaks(f"only {COHORT} customers".encode()) == ["the cohort"]
    assert leaks(f"only {COHORT:,} customers".encode()) == ["the cohort"]
    assert leaks(b"sha256 81207f, 1200 customers") == []
