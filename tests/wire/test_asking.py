"""The coordinator's half: what a node may say when, and what it costs to say anything else."""

from __future__ import annotations

import pytest

from dovetail.errors import RemoteProtocolError, TransportError
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.transfer import GRAIN, INLINE
from tests.wire.halves import LIMIT, LONGEST, Asker, name

REQUEST = bytes(3 * GRAIN)


def hello(*holdings: pb.Holding, incarnation: int = 1) -> pb.Hello:
    return pb.Hello(version=1, incarnation=name(incarnation), holdings=holdings)


def offer(total: int, number: int = 1, inlined: bool = False) -> pb.FromNode:
    return pb.FromNode(offer=pb.Offer(exchange=name(number), total=total, inlined=inlined))


def chunk(offset: int, total: int, number: int = 1) -> pb.FromNode:
    return pb.FromNode(chunk=pb.Chunk(exchange=name(number), offset=offset, total=total))


def failed(reason: str = "away") -> pb.FromNode:
    return pb.FromNode(failed=pb.Failed(exchange=name(1), reason=reason))


def asker(stage: str) -> Asker:
    """With one exchange, which has come as far as ``stage``."""
    half = Asker()
    half.hello(hello())
    assert [frame.WhichOneof("frame") for frame in half.said()] == ["welcome"]
    half.begin(1, REQUEST)
    if stage == "queued":
        return half
    half.send()
    if stage == "sending":
        return half
    half.said()
    if stage == "asked":
        return half
    if stage == "offered":
        half.budget.ask(LIMIT, lambda: None)
    half.hear(offer(2 * GRAIN))
    half.said()
    return half


ALLOWED = {
    "queued": {},
    "sending": {"failed": failed()},
    "asked": {"failed": failed(), "offer": offer(2 * GRAIN), "inlined": offer(0, inlined=True)},
    "offered": {},
    "receiving": {"chunk": chunk(0, 2 * GRAIN)},
}
FRAMES = {
    "failed": failed(),
    "offer": offer(2 * GRAIN),
    "inlined": offer(0, inlined=True),
    "chunk": chunk(0, 2 * GRAIN),
}


@pytest.mark.parametrize("stage", ALLOWED)
@pytest.mark.parametrize("kind", FRAMES)
def test_what_a_node_may_say_when(stage: str, kind: str) -> None:
    half = asker(stage)
    data = bytes(GRAIN) if kind == "chunk" else b""
    if kind in ALLOWED[stage]:
        half.hear(FRAMES[kind], data)
        return
    with pytest.raises(RemoteProtocolError, match="out of turn"):
        half.hear(FRAMES[kind], data)
    assert str(half.outcomes[1]) == "the node broke the protocol: a frame came out of turn"
    assert half.asking.outstanding == 0
    assert half.budget.used in (0, LIMIT)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (chunk(GRAIN, 2 * GRAIN), bytes(GRAIN)),
        (chunk(0, 3 * GRAIN), bytes(GRAIN)),
        (chunk(0, 2 * GRAIN), bytes(3 * GRAIN)),
        (chunk(0, 2 * GRAIN), bytes(7)),
        (chunk(0, 2 * GRAIN), b""),
    ],
)
def test_a_chunk_that_does_not_fit_costs_the_exchange(frame: pb.FromNode, data: bytes) -> None:
    half = asker("receiving")
    with pytest.raises(RemoteProtocolError):
        half.hear(frame, data)
    assert isinstance(half.outcomes[1], TransportError)
    assert half.budget.used == 0


@pytest.mark.parametrize(
    ("total", "data"), [(3, b"ab"), (INLINE + 1, bytes(INLINE + 1)), (0, b"a")]
)
def test_an_answer_in_its_offer_is_as_long_as_it_says_and_short(total: int, data: bytes) -> None:
    half = asker("asked")
    with pytest.raises(RemoteProtocolError):
        half.hear(offer(total, inlined=True), data)


def test_frames_about_unknown_exchanges_are_ignored() -> None:
    half = asker("receiving")
    for frame in (offer(5, 2), chunk(0, 5, 2), chunk(0, 5, 0)):
        half.hear(frame, b"abcde")
    half.hear(pb.FromNode(offer=pb.Offer(exchange=b"short")))
    assert half.said() == []
    assert half.asking.outstanding == 1


@pytest.mark.parametrize(
    "frame", [pb.FromNode(), pb.FromNode(beat=pb.Beat()), pb.FromNode(hello=hello())]
)
def test_frames_about_no_exchange_do_not_belong_here(frame: pb.FromNode) -> None:
    with pytest.raises(RemoteProtocolError):
        asker("receiving").hear(frame)


def test_an_answer_comes_whole_and_is_done_with() -> None:
    half = asker("receiving")
    half.hear(chunk(0, 2 * GRAIN), b"a" * GRAIN)
    half.hear(chunk(GRAIN, 2 * GRAIN), b"b" * GRAIN)
    assert half.outcomes == {1: b"a" * GRAIN + b"b" * GRAIN}
    assert [frame.done.exchange for frame in half.said()] == [name(1)]
    assert half.budget.used == 2 * GRAIN, "until who asked lets go of it"
    half.hear(chunk(GRAIN, 2 * GRAIN), b"b" * GRAIN)  # a replay finds nobody


def test_nothing_is_granted_beyond_the_budget_nor_the_longest_answer() -> None:
    half = Asker()
    half.hello(hello())
    for number in (1, 2, 3):
        half.begin(number, b"x")
    half.said()
    half.hear(offer(4 * GRAIN, 1))
    half.hear(offer(4 * GRAIN, 2))
    assert [frame.send_from.exchange for frame in half.said()] == [name(1)]
    half.hear(offer(LONGEST + 1, 3))
    assert str(half.outcomes[3]) == "the node's answer is longer than allowed"
    half.asking.abandon(name(1))
    done_3, done_1, grant_2 = sorted(half.said(), key=lambda frame: frame.WhichOneof("frame") or "")
    assert {done_3.done.exchange, done_1.done.exchange} == {name(1), name(3)}
    assert grant_2.send_from == pb.SendFrom(exchange=name(2), offset=0)


def test_what_the_node_gives_as_a_reason_is_cut_and_readable() -> None:
    half = asker("asked")
    half.hear(failed("\x1b[2Jaway\n" + "x" * 5_000))
    assert str(half.outcomes[1]).startswith(" [2Jaway xxx")
    assert len(str(half.outcomes[1])) == 500


HOLDINGS = {
    "nothing": (),
    "receiving": (pb.Holding(exchange=name(1), receiving=GRAIN),),
    "too much": (pb.Holding(exchange=name(1), receiving=2 * GRAIN),),
    "odd": (pb.Holding(exchange=name(1), receiving=GRAIN - 1),),
    "working": (pb.Holding(exchange=name(1), working=pb.Working()),),
    "offered": (pb.Holding(exchange=name(1), offered=2 * GRAIN),),
    "another": (pb.Holding(exchange=name(1), offered=GRAIN),),
    "failed": (pb.Holding(exchange=name(1), failed="away"),),
    "no state": (pb.Holding(exchange=name(1)),),
}
GOES_ON = {
    "queued": {"nothing"},
    "sending": {"nothing", "receiving"},
    "asked": {"nothing", "receiving", "too much", "working", "offered", "another"},
    "offered": {"offered"},
    "receiving": {"offered"},
}
"""What the node may hold at each stage, so that the exchange goes on."""


@pytest.mark.parametrize("stage", GOES_ON)
@pytest.mark.parametrize("holding", HOLDINGS)
def test_an_exchange_goes_on_from_what_the_node_holds(stage: str, holding: str) -> None:
    half = asker(stage)
    half.asking.suspend()
    half.hello(hello(*HOLDINGS[holding]))
    if holding in GOES_ON[stage]:
        assert half.outcomes == {}
    elif holding == "failed" and stage in ("sending", "asked"):
        assert str(half.outcomes[1]) == "away"
    elif holding == "no state" and stage in ("queued", "sending", "asked"):
        assert half.outcomes == {}, "it says nothing of the exchange"
    else:
        assert "broke the protocol" in str(half.outcomes[1])


def test_a_request_is_resumed_where_the_node_is() -> None:
    half = asker("asked")
    half.asking.suspend()
    half.hello(hello(*HOLDINGS["receiving"]))
    assert [frame.chunk.offset for frame in half.said() if frame.HasField("chunk")] == [GRAIN]


def test_an_answer_is_resumed_where_the_coordinator_is() -> None:
    half = asker("receiving")
    half.hear(chunk(0, 2 * GRAIN), bytes(GRAIN))
    half.asking.suspend()
    assert half.budget.used == 2 * GRAIN, "what has come is kept"
    half.hello(hello(*HOLDINGS["offered"]))
    (grant,) = [frame for frame in half.said() if frame.HasField("send_from")]
    assert grant.send_from.offset == GRAIN


def test_a_connection_before_the_last_one_is_known_to_be_lost_grants_nothing() -> None:
    half = asker("offered")
    half.hello(hello(*HOLDINGS["offered"]))
    assert [frame.WhichOneof("frame") for frame in half.said()] == ["welcome"]


def test_an_answer_that_stops_coming_makes_room_for_others() -> None:
    half = asker("receiving")
    half.asking.drop_stalled()
    half.hear(chunk(0, 2 * GRAIN), bytes(GRAIN))
    half.asking.drop_stalled()
    assert half.outcomes == {}
    half.asking.drop_stalled()
    assert str(half.outcomes[1]) == "the node stopped sending its answer"
    assert half.budget.used == 0
    assert [frame.WhichOneof("frame") for frame in half.said()] == ["done"]


@pytest.mark.parametrize("stage", ["queued", "sending", "asked", "offered"])
def test_who_has_no_room_may_take_any_time(stage: str) -> None:
    half = asker(stage)
    for _ in range(3):
        half.asking.drop_stalled()
    assert half.outcomes == {}


def test_who_waits_for_room_without_a_connection_leaves_the_queue() -> None:
    half = asker("offered")
    half.asking.suspend()
    granted: list[int] = []
    half.budget.ask(0, lambda: granted.append(1))
    assert granted == [1]


@pytest.mark.parametrize("stage", ["sending", "asked", "offered", "receiving"])
def test_a_node_that_restarted_has_lost_what_was_begun(stage: str) -> None:
    half = asker(stage)
    half.begin(2, REQUEST)
    half.asking.suspend()
    half.hello(hello(incarnation=2))
    assert str(half.outcomes[1]) == "the node restarted; its answer was lost"
    assert 2 not in half.outcomes
    assert {frame.chunk.exchange for frame in half.said() if frame.HasField("chunk")} == {name(2)}


def test_what_nobody_wants_is_forgotten_when_the_node_comes_back() -> None:
    half = asker("asked")
    half.asking.suspend()
    half.asking.abandon(name(1))
    half.hello(hello(*HOLDINGS["working"]))
    assert [frame.done.exchange for frame in half.said() if frame.HasField("done")] == [name(1)]


@pytest.mark.parametrize(
    "bad",
    [
        pb.Hello(version=1, incarnation=b"short"),
        hello(pb.Holding(exchange=b"short")),
        hello(*HOLDINGS["working"], *HOLDINGS["working"]),
    ],
)
def test_a_hello_that_is_malformed_changes_nothing(bad: pb.Hello) -> None:
    half = asker("asked")
    with pytest.raises(RemoteProtocolError):
        half.hello(bad)
    assert half.outcomes == {}
    assert half.asking.outstanding == 1


@pytest.mark.parametrize("stage", GOES_ON)
def test_an_abandoned_exchange_leaves_nothing_behind(stage: str) -> None:
    half = asker(stage)
    half.asking.abandon(name(1))
    half.asking.abandon(name(1))
    assert half.asking.outstanding == 0
    assert half.outcomes == {}
    assert half.budget.used in (0, LIMIT)
    told = [frame.WhichOneof("frame") for frame in half.said()]
    assert told == ([] if stage == "queued" else ["done"])


@pytest.mark.parametrize("stage", GOES_ON)
def test_a_lost_node_ends_every_exchange(stage: str) -> None:
    half = asker(stage)
    half.asking.fail("gone")
    assert str(half.outcomes[1]) == "gone"
    assert half.budget.used in (0, LIMIT)
