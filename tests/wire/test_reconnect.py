"""Connections that are cut, nodes that restart, freeze or are replaced."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc  # type: ignore[import-untyped]
import pytest

from dovetail.errors import TransportError
from dovetail.wire import attendance, envelope, federation
from dovetail.wire.attendance import Attendance, Handler
from dovetail.wire.channel import Received
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.link import Pace
from dovetail.wire.payload import Payload
from dovetail.wire.peers import LIMITS, Access, Limits
from dovetail.wire.tls import channel_credentials
from tests.wire.parties import HOST, PATIENCE, Coordinator, Node, Proxy, eventually, meeting

SIZE = 24 << 20
CUT_AT = 12 << 20
LOST_ON_THE_WAY = 8 << 20
"""More than what lies in buffers when a connection is cut, and less than what came before."""


@contextmanager
def far_away(handler: Handler, limits: Limits = LIMITS) -> Iterator[tuple[Coordinator, Proxy]]:
    """A node that reaches its coordinator through a proxy."""
    with meeting({}, limits=limits) as coordinator, Proxy(coordinator.port) as proxy:
        coordinator.members.admit("far", "node", 1)
        node = coordinator.node("far", handler, proxy.port).start()
        coordinator.until_present(1)
        yield coordinator, proxy
        node.leave()


def test_an_interrupted_request_goes_on_where_it_stopped() -> None:
    with far_away(lambda request: bytes(request[-100:])) as (coordinator, proxy):
        request = os.urandom(SIZE)
        proxy.cut_down = CUT_AT
        assert coordinator.ask({1: request}) == {1: request[-100:]}
        assert proxy.cuts.acquire(timeout=0)
        assert SIZE < proxy.down < SIZE + LOST_ON_THE_WAY


def test_an_interrupted_answer_goes_on_where_it_stopped() -> None:
    answer = os.urandom(SIZE)
    calls = []

    def handler(request: Received) -> bytes:
        calls.append(bytes(request))
        return answer

    with far_away(handler) as (coordinator, proxy):
        proxy.cut_up = CUT_AT
        assert coordinator.ask({1: b"x"}) == {1: answer}
        assert proxy.cuts.acquire(timeout=0)
        assert SIZE < proxy.up < SIZE + LOST_ON_THE_WAY
        assert calls == [b"x"], "the handler ran once"


def test_a_connection_may_break_again_and_again() -> None:
    with far_away(lambda request: bytes(request)) as (coordinator, proxy):
        request = os.urandom(6 << 20)
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(coordinator.ask, {1: request[i:]}) for i in range(3)]
            for _ in range(3):
                coordinator.until_present(1)
                proxy.cut()
                coordinator.until_absent(1)
            assert [done.result() for done in asked] == [{1: request[i:]} for i in range(3)]


def test_who_was_asked_something_comes_back_without_waiting_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attendance, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(attendance, "_LONGEST_WAIT", 60 * PATIENCE)
    with far_away(lambda request: bytes(request)) as (coordinator, proxy):
        for _ in range(15):  # and twice as long each time would be too long
            coordinator.until_present(1)
            assert coordinator.ask({1: b"x"}) == {1: b"x"}
            proxy.cut()
            coordinator.until_absent(1)


def test_an_answer_that_is_ready_while_there_is_no_connection_is_kept() -> None:
    asked, release = threading.Event(), threading.Event()

    def handler(request: Received) -> bytes:
        asked.set()
        assert release.wait(PATIENCE)
        return b"answer"

    with far_away(handler) as (coordinator, proxy), ThreadPoolExecutor() as pool:
        waiting = pool.submit(coordinator.ask, {1: b"x"})
        assert asked.wait(PATIENCE)
        seen = coordinator.server.changes
        proxy.cut()
        release.set()
        coordinator.until(lambda: coordinator.server.changes >= seen + 2)
        assert waiting.result() == {1: b"answer"}


def test_who_does_not_come_back_in_time_is_lost() -> None:
    asked, release = threading.Event(), threading.Event()

    def handler(_: Received) -> bytes:
        asked.set()
        release.wait(PATIENCE)
        return b""

    limits = Limits(reconnect_grace=0.1)
    with meeting({}, limits=limits) as coordinator, ThreadPoolExecutor() as pool:
        coordinator.members.admit("a", "node", 1)
        node = coordinator.node("a", handler).start()
        coordinator.until_present(1)
        waiting = pool.submit(coordinator.ask, {1: b"x"})
        assert asked.wait(PATIENCE)
        node.leave()
        assert str(waiting.result()[1]) == "the node was lost and did not come back"
        assert str(coordinator.ask({1: b"x"})[1]) == "the node is not connected"
        release.set()


def test_a_node_that_restarted_has_lost_its_answers_at_once_and_is_asked_nothing_twice() -> None:
    asked, release = threading.Event(), threading.Event()
    again: list[bytes] = []

    def first(_: Received) -> bytes:
        asked.set()
        release.wait(PATIENCE)
        return b""

    def second(request: Received) -> bytes:
        again.append(bytes(request))
        return bytes(request)

    limits = Limits(reconnect_grace=3600)
    with meeting({}, limits=limits) as coordinator, ThreadPoolExecutor() as pool:
        coordinator.members.admit("a", "node", 1)
        node = coordinator.node("a", first).start()
        coordinator.until_present(1)
        begun = pool.submit(coordinator.ask, {1: b"begun"})
        assert asked.wait(PATIENCE)
        node.leave()
        coordinator.until_absent(1)
        queued = pool.submit(coordinator.ask, {1: b"queued"})
        seats = coordinator.server._federation._seats
        eventually(lambda: seats[1].asking.outstanding == 2)
        restarted = coordinator.node("a", second).start()
        assert str(begun.result()[1]) == "the node restarted; its answer was lost"
        assert queued.result() == {1: b"queued"}
        assert again == [b"queued"]
        release.set()
        restarted.leave()


def test_a_second_connection_takes_the_place_of_the_first() -> None:
    with meeting({"a": lambda _: b"first"}) as coordinator:
        second = coordinator.node("a", lambda _: b"second").start()
        while coordinator.ask({1: b""}) != {1: b"second"}:
            pass
        reasons = [event.reason for event in coordinator.events if event.kind == "lost"]
        assert "another connection of the same node took its place" in reasons
        second.leave()


def test_a_coordinator_that_restarts_finds_its_nodes_again() -> None:
    with meeting({}) as coordinator, Proxy(coordinator.port) as proxy:
        coordinator.members.admit("a", "node", 1)
        node = coordinator.node("a", bytes, proxy.port).start()
        coordinator.until_present(1)
        coordinator.server.stop(0)
        eventually(lambda: node.attendance.state.phase == "waiting")
        assert node.attendance.state.reason == "the coordinator is stopping"
        after = Coordinator("a")
        proxy._target = ("127.0.0.1", after.server.start())
        after.until_present(1)
        assert after.ask({1: b"x"}) == {1: b"x"}
        node.leave()
        after.server.stop(0)


def attend(access: Access) -> None:
    """The whole life of a node in a process of its own."""
    Attendance(access, bytes, lambda *_: None).run(threading.Event())


@contextmanager
def child(access: Access) -> Iterator[int]:
    process = multiprocessing.get_context("spawn").Process(target=attend, args=(access,))
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    "pace",
    [Pace(0.5, 1.5), pytest.param(Pace(), marks=pytest.mark.long)],
    ids=["quick", "as it is"],
)
def test_a_frozen_node_is_found_and_a_thawed_one_comes_back(pace: Pace) -> None:
    with meeting({}, pace=pace) as coordinator:
        coordinator.members.admit("a", "node", 1)
        with child(coordinator.access("a")) as pid:
            coordinator.until_present(1)
            assert coordinator.ask({1: b"x"}) == {1: b"x"}
            os.kill(pid, signal.SIGSTOP)
            coordinator.until_absent(1)
            os.kill(pid, signal.SIGCONT)
            coordinator.until_present(1)
            assert coordinator.ask({1: b"x"}) == {1: b"x"}
        assert coordinator.events[1].reason == "the other side has fallen silent"


def test_a_slow_link_is_not_taken_for_a_dead_one() -> None:
    """The longest chunk would take longer than a node may be silent."""
    with meeting({}, pace=Pace(0.5, 2.0)) as coordinator, Proxy(coordinator.port) as proxy:
        coordinator.members.admit("far", "node", 1)
        node = coordinator.node("far", lambda request: bytes(request[:1000]), proxy.port).start()
        coordinator.until_present(1)
        proxy.rate = 400_000
        request = os.urandom(5 << 19)
        assert coordinator.ask({1: request}) == {1: request[:1000]}
        assert [event.kind for event in coordinator.events] == ["connected"]
        node.leave()


def test_a_killed_node_is_noticed_at_once() -> None:
    with meeting({}, limits=Limits(reconnect_grace=0.0)) as coordinator:
        coordinator.members.admit("a", "node", 1)
        with child(coordinator.access("a")) as pid:
            coordinator.until_present(1)
            os.kill(pid, signal.SIGKILL)
            coordinator.until_absent(1)
        assert coordinator.events[-1].reason == "the connection was closed"


def test_a_silent_coordinator_is_left() -> None:
    """Something takes the connection and never says a word."""
    with socket.create_server((HOST, 0)) as silent:
        access = Coordinator().access("a", silent.getsockname()[1])
        attendance = Attendance(access, bytes, lambda *_: None, pace=Pace(0.05, 0.2))
        node = Node(attendance).start()
        eventually(lambda: attendance.state.phase == "waiting")
        assert attendance.state.reason == "the other side has fallen silent"
        node.leave()


def test_inbound_budget_holds_one_answer_at_a_time() -> None:
    answer = os.urandom(3 << 20)
    limits = Limits(inbound_bytes=4 << 20)
    handlers = dict.fromkeys("abc", lambda _: answer)
    with meeting(handlers, limits=limits) as coordinator:
        budget = coordinator.server._federation.budget
        answers = coordinator.server.exchange(dict.fromkeys((1, 2, 3), Payload(b"x")), PATIENCE)
        for _, got in answers:
            assert got == answer
            assert budget.used == 3 << 20, "the others wait until this one is let go"
        assert dict(answers) == {}


def test_a_node_that_does_not_send_its_answer_delays_others_only_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(federation, "_STALLED", 0.3)
    answer = os.urandom(3 << 20)
    with meeting({"a": lambda _: answer}, limits=Limits(inbound_bytes=4 << 20)) as coordinator:
        coordinator.members.admit("mute", "node", 2)
        with ThreadPoolExecutor() as pool:
            mute = pool.submit(offer_and_send_nothing, coordinator.access("mute"))
            coordinator.until_present(2)
            asked = pool.submit(coordinator.ask, {2: b"x"})
            eventually(lambda: coordinator.server._federation.budget.used == 3 << 20)
            assert coordinator.ask({1: b"x"}) == {1: answer}
            assert str(asked.result()[2]) == "the node stopped sending its answer"
            mute.result()


def offer_and_send_nothing(access: Access) -> None:
    """A node that makes its coordinator wait, until the exchange is over."""
    say: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    say.put(envelope.write(pb.FromNode(hello=pb.Hello(version=1, incarnation=bytes(16)))))
    with grpc.secure_channel(access.address, channel_credentials(access)) as channel:
        call = channel.stream_stream("/dovetail.v1.Federation/Attend")
        for raw in call(iter(say.get, None), timeout=PATIENCE):
            frame, _ = envelope.read(raw, pb.ToNode)
            if frame.HasField("chunk"):
                offer = pb.Offer(exchange=frame.chunk.exchange, total=3 << 20)
                say.put(envelope.write(pb.FromNode(offer=offer)))
            if frame.HasField("done"):
                say.put(None)


def test_an_answer_larger_than_the_budget_comes_alone() -> None:
    answer = os.urandom(3 << 20)
    handlers = dict.fromkeys("ab", lambda _: answer)
    with meeting(handlers, limits=Limits(inbound_bytes=1 << 20)) as coordinator:
        assert coordinator.ask({1: b"", 2: b""}) == {1: answer, 2: answer}


def test_who_stops_listening_frees_what_it_held() -> None:
    answer = os.urandom(3 << 20)
    handlers = dict.fromkeys("ab", lambda _: answer)
    with meeting(handlers, limits=Limits(inbound_bytes=4 << 20)) as coordinator:
        answers = coordinator.server.exchange({1: Payload(), 2: Payload()}, PATIENCE)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert coordinator.ask({1: b"", 2: b""}) == {1: answer, 2: answer}
        assert not isinstance(coordinator.ask({1: b""})[1], TransportError)
