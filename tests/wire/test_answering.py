"""The node's half: what a coordinator may say when."""

from __future__ import annotations

import pytest

from dovetail.errors import RemoteProtocolError
from dovetail.wire import answering
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.transfer import GRAIN, INLINE
from tests.wire.halves import Answerer, name

ANSWER = b"a" * (2 * GRAIN)


def chunk(offset: int, total: int, number: int = 1) -> pb.ToNode:
    return pb.ToNode(chunk=pb.Chunk(exchange=name(number), offset=offset, total=total))


def send_from(offset: int, number: int = 1) -> pb.ToNode:
    return pb.ToNode(send_from=pb.SendFrom(exchange=name(number), offset=offset))


def done(number: int = 1) -> pb.ToNode:
    return pb.ToNode(done=pb.Done(exchange=name(number)))


def answerer(stage: str) -> Answerer:
    """With one exchange, which has come as far as ``stage``."""
    half = Answerer()
    half.hello()
    half.hear(chunk(0, 2 * GRAIN), bytes(GRAIN))
    if stage == "receiving":
        return half
    half.hear(chunk(GRAIN, 2 * GRAIN), bytes(GRAIN))
    if stage == "working":
        return half
    if stage == "failed":
        half.answering.refuse(name(1), "away")
        half.said()
        return half
    half.work(lambda _: ANSWER)
    half.said()
    if stage == "sending":
        half.hear(send_from(0))
        half.send()
    return half


ALLOWED = {
    "receiving": {"chunk"},
    "working": set(),
    "failed": set(),
    "offered": {"send_from"},
    "sending": set(),
}


@pytest.mark.parametrize("stage", ALLOWED)
@pytest.mark.parametrize("kind", ["chunk", "send_from"])
def test_what_a_coordinator_may_say_when(stage: str, kind: str) -> None:
    half = answerer(stage)
    frame = chunk(GRAIN, 2 * GRAIN) if kind == "chunk" else send_from(0)
    if kind in ALLOWED[stage]:
        half.hear(frame, bytes(GRAIN) if kind == "chunk" else b"")
        return
    held = half.hello()
    with pytest.raises(RemoteProtocolError):
        answerer(stage).hear(frame, bytes(GRAIN) if kind == "chunk" else b"")
    assert half.hello() == held, "nothing was changed"


@pytest.mark.parametrize("stage", ALLOWED)
def test_what_is_done_with_is_forgotten_at_any_stage(stage: str) -> None:
    half = answerer(stage)
    half.hear(done())
    half.hear(done())
    assert half.said() == []
    assert list(half.hello().holdings) == []
    if half.to_do:
        half.work(lambda _: ANSWER)
    half.answering.refuse(name(1), "away")
    assert half.said() == []


@pytest.mark.parametrize(
    ("stage", "held"),
    [
        ("receiving", pb.Holding(exchange=name(1), receiving=GRAIN)),
        ("working", pb.Holding(exchange=name(1), working=pb.Working())),
        ("failed", pb.Holding(exchange=name(1), failed="away")),
        ("offered", pb.Holding(exchange=name(1), offered=2 * GRAIN)),
        ("sending", pb.Holding(exchange=name(1), offered=2 * GRAIN)),
    ],
)
def test_what_is_held_is_said_at_the_next_connection(stage: str, held: pb.Holding) -> None:
    hello = answerer(stage).hello(17.0)
    assert hello == pb.Hello(version=1, incarnation=name(1), clock=17.0, holdings=[held])


@pytest.mark.parametrize("size", [0, 1, INLINE])
def test_a_short_answer_comes_with_its_offer(size: int) -> None:
    half = answerer("working")
    half.work(lambda _: b"a" * size)
    expected = pb.FromNode(offer=pb.Offer(exchange=name(1), total=size, inlined=True))
    assert half.send() == (expected, b"a" * size)
    assert half.send() is None


def test_a_short_answer_that_was_lost_on_the_way_can_be_sent_again() -> None:
    half = answerer("working")
    half.work(lambda _: b"abc")
    half.said()
    assert half.hello().holdings == [pb.Holding(exchange=name(1), offered=3)]
    half.hear(send_from(0))
    sent = half.send()
    assert sent is not None
    assert sent[1] == b"abc"


@pytest.mark.parametrize("offset", [GRAIN, 2 * GRAIN, 7, 2**64 - 1])
def test_an_answer_does_not_begin_in_the_middle(offset: int) -> None:
    with pytest.raises(RemoteProtocolError):
        answerer("offered").hear(send_from(offset))


def test_an_answer_goes_on_where_the_coordinator_is() -> None:
    half = answerer("sending")
    half.hello()
    half.hear(send_from(GRAIN))
    assert [frame.chunk.offset for frame in half.said()] == [GRAIN]


def test_frames_about_unknown_exchanges_are_ignored() -> None:
    half = answerer("offered")
    half.hear(send_from(0, 2))
    half.hear(done(2))
    half.hear(chunk(GRAIN, 2 * GRAIN, 2), bytes(GRAIN))
    assert half.said() == []


def test_a_request_is_answered_once_even_if_it_is_replayed() -> None:
    half = answerer("offered")
    half.hear(done())
    half.hear(chunk(0, 5), b"again")
    (refused,) = half.said()
    assert refused.failed.reason == "this exchange was over before"
    assert not half.to_do


@pytest.mark.parametrize(
    "frame", [pb.ToNode(), pb.ToNode(welcome=pb.Welcome()), chunk(0, 5, 2**64), done(1)]
)
def test_frames_that_do_not_belong_here_are_refused_or_harmless(frame: pb.ToNode) -> None:
    half = answerer("working")
    if frame.WhichOneof("frame") in ("chunk", "done"):
        half.hear(frame, b"abcde")
    else:
        with pytest.raises(RemoteProtocolError):
            half.hear(frame)


def test_an_id_of_another_length_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="id is malformed"):
        Answerer().hear(pb.ToNode(chunk=pb.Chunk(exchange=b"short", total=1)), b"x")


def test_a_node_holds_so_many_exchanges_and_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_EXCHANGES", 2)
    monkeypatch.setattr(answering, "MAX_REQUEST_BYTES", 4 * GRAIN)
    half = answerer("working")
    half.hear(chunk(0, 2 * GRAIN + 1, 2), bytes(GRAIN))
    assert [frame.failed.reason for frame in half.said()] == [
        "the requests to the node are too long"
    ]
    half.hear(chunk(0, 2 * GRAIN, 3), bytes(GRAIN))
    half.hear(chunk(0, 1, 4), b"x")
    assert [frame.failed.reason for frame in half.said()] == ["the node holds too many exchanges"]
    half.work(lambda _: ANSWER)
    half.hear(done())
    half.said()
    half.hear(chunk(0, 2 * GRAIN, 5), bytes(GRAIN))
    assert half.said() == []
