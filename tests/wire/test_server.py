"""Requests and answers over real gRPC with mutual TLS."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dovetail.errors import TransportError
from dovetail.wire.channel import Received
from dovetail.wire.payload import Payload
from dovetail.wire.peers import Limits
from tests.wire.parties import PATIENCE, Coordinator, eventually, meeting


def reverse(request: Received) -> bytes:
    return bytes(request[::-1])


@pytest.mark.parametrize("size", [0, 1, 1_000, 65_536, 65_537, 1 << 20, 5_000_001, 64 << 20])
def test_round_trip(size: int) -> None:
    request = (bytes(range(256)) * (size // 256 + 1))[:size]
    with meeting({"a": reverse, "b": reverse}) as coordinator:
        assert coordinator.ask({1: request, 2: request}) == {1: request[::-1], 2: request[::-1]}


def test_parts_of_a_request_arrive_as_one() -> None:
    head, shared = b"head", b"x" * 3_000_000
    with meeting({"a": bytes, "b": bytes}) as coordinator:
        requests = {1: Payload(head, shared), 2: Payload(b"other", shared, b"tail")}
        answers = dict(coordinator.server.exchange(requests, PATIENCE))
        assert answers == {1: head + shared, 2: b"other" + shared + b"tail"}


def test_several_exchanges_at_once() -> None:
    def ask(i: int) -> bool:
        request = bytes([i]) * (i * 300_000 + 1)
        return coordinator.ask({1: request, 2: request}) == {1: request, 2: request}

    with meeting({"a": bytes, "b": bytes}) as coordinator, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(12)))


def test_an_answer_comes_while_another_request_is_at_work() -> None:
    release = threading.Event()

    def handler(request: Received) -> bytes:
        if request == b"slow":
            assert release.wait(PATIENCE)
        return bytes(request)

    with meeting({"a": handler}) as coordinator, ThreadPoolExecutor() as pool:
        slow = pool.submit(coordinator.ask, {1: b"slow"})
        assert coordinator.ask({1: b"quick"}) == {1: b"quick"}
        release.set()
        assert slow.result() == {1: b"slow"}


def test_unknown_nodes_fail_at_once() -> None:
    with meeting({"a": bytes}) as coordinator:
        answers = coordinator.ask({1: b"x", 9: b"x"}, 3600)
        assert answers[1] == b"x"
        assert str(answers[9]) == "the node is not connected"


def test_who_has_not_answered_by_the_deadline_is_late_and_can_be_asked_again() -> None:
    release = threading.Event()

    def handler(request: Received) -> bytes:
        if request == b"slow":
            release.wait(PATIENCE)
        return bytes(request)

    with meeting({"a": handler}) as coordinator:
        answers = coordinator.ask({1: b"slow"}, 0.2)
        assert str(answers[1]) == "the node did not answer in time"
        assert coordinator.ask({1: b"next"}) == {1: b"next"}
        release.set()


def test_failures_are_told_at_once_and_tell_nothing() -> None:
    def broken(_: Received) -> bytes:
        raise ValueError("salary 1234")

    def away(_: Received) -> bytes:
        raise TransportError("partner is away")

    with meeting({"a": broken, "b": away}) as coordinator:
        answers = coordinator.ask({1: b"x", 2: b"x"}, 3600)
        assert str(answers[1]) == "the node failed to answer"
        assert str(answers[2]) == "partner is away"


def test_limits_are_refused_by_name() -> None:
    release = threading.Event()

    def handler(request: Received) -> bytes:
        if request == b"hang":
            release.wait(PATIENCE)
        return bytes(200_000) if request == b"long" else bytes(request)

    limits = Limits(max_message_bytes=100_000, exchanges_per_node=2)
    with meeting({"a": handler}, limits=limits) as coordinator, ThreadPoolExecutor() as pool:
        assert str(coordinator.ask({1: b"long"})[1]) == "the node's answer is longer than allowed"
        refused = coordinator.ask({1: bytes(100_001)})
        assert str(refused[1]) == "the request is longer than allowed"
        assert coordinator.ask({1: bytes(100_000)}) == {1: bytes(100_000)}
        hanging = [pool.submit(coordinator.ask, {1: b"hang"}) for _ in range(2)]
        eventually(
            lambda: (
                str(coordinator.ask({1: b"x"})[1])
                == "the node has too many requests to answer already"
            )
        )
        release.set()
        assert [done.result() for done in hanging] == [{1: b"hang"}] * 2
        assert coordinator.ask({1: b"again"}) == {1: b"again"}


def test_too_many_nodes_are_refused() -> None:
    with meeting({"a": bytes}, limits=Limits(nodes=1)) as coordinator:
        coordinator.members.admit("b", "node", 2)
        node = coordinator.node("b", bytes).start()
        eventually(lambda: node.attendance.state.phase == "waiting")
        assert "too many nodes are connected" in node.attendance.state.reason
        assert [event.kind for event in coordinator.events] == ["connected", "refused"]
        node.leave()
        assert coordinator.server.nodes() == [1]


def test_nodes_are_welcomed_and_told_of_changes() -> None:
    heard: list[bytes] = []
    told = threading.Semaphore(0)

    def on_welcome(document: bytes, clock: float) -> None:
        assert clock > 1e9
        heard.append(document)
        told.release()

    with meeting({"a": bytes}) as coordinator:
        coordinator.members.admit("b", "node", 2)
        node = coordinator.node("b", bytes, on_welcome=on_welcome).start()
        assert told.acquire(timeout=PATIENCE)
        coordinator.document = b"new terms" * 100_000
        coordinator.server.announce()
        assert told.acquire(timeout=PATIENCE)
        assert heard == [b"terms for b", b"new terms" * 100_000 + b" for b"]
        node.leave()


def test_a_nudge_is_a_change() -> None:
    with meeting({}) as coordinator:
        coordinator.members.admit("a", "node", 1)
        node = coordinator.node("a", bytes).start()
        coordinator.until_present(1)
        coordinator.ask({1: b""})  # so that the node, too, knows that it is connected
        seen = coordinator.server.changes
        node.attendance.nudge()
        assert coordinator.server.wait_for_change(PATIENCE, seen) == seen + 1
        assert coordinator.server.wait_for_change(0.0, seen + 1) == seen + 1
        for _ in range(100):
            node.attendance.nudge()
        assert coordinator.server.wait_for_change(PATIENCE, seen + 1) == seen + 2
        coordinator.ask({1: b""})
        assert coordinator.server.changes == seen + 2, "many nudges are one change"
        node.leave()


def test_links_are_listed() -> None:
    with meeting({"a": bytes, "b": bytes}) as coordinator:
        links = coordinator.server.links()
        assert [(link.name, link.number) for link in links] == [("a", 1), ("b", 2)]
        assert all(abs(link.clock_ahead) < PATIENCE for link in links)
        assert all("127.0.0.1" in link.address and link.heard >= link.since - 1 for link in links)
        assert sorted((e.kind, e.peer and e.peer.name) for e in coordinator.events) == [
            ("connected", "a"),
            ("connected", "b"),
        ]


def test_an_address_in_use_is_an_error() -> None:
    with meeting({}) as coordinator:
        second = Coordinator(port=coordinator.port)
        with pytest.raises(TransportError, match="in use"):
            second.server.start()
        second.server.stop()


def test_stopping_ends_exchanges() -> None:
    asked, release = threading.Event(), threading.Event()

    def handler(_: Received) -> bytes:
        asked.set()
        release.wait(PATIENCE)
        return b""

    with meeting({"a": handler}) as coordinator, ThreadPoolExecutor() as pool:
        waiting = pool.submit(coordinator.ask, {1: b"x"})
        assert asked.wait(PATIENCE)
        coordinator.server.stop(0)
        assert str(waiting.result()[1]) == "the coordinator is stopping"
        assert str(coordinator.ask({1: b"x"})[1]) == "the coordinator is stopping"
        release.set()
