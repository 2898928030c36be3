"""Who may not in, and what each is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc  # type: ignore[import-untyped]
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from dovetail.errors import TransportError
from dovetail.wire import envelope
from dovetail.wire.attendance import Attendance
from dovetail.wire.channel import Received
from dovetail.wire.control import ControlClient
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.peers import Access, Peer, Record
from dovetail.wire.tls import channel_credentials
from tests.wire.parties import (
    COORDINATOR,
    HOST,
    PATIENCE,
    Clerk,
    Coordinator,
    Node,
    certificate,
    eventually,
    meeting,
)

TURNED_AWAY = "cannot be reached, or turned this certificate away"


def reason_for(access: Access) -> str:
    """Why a node with this access is not let in."""
    node = Node(Attendance(access, bytes, lambda *_: None)).start()
    eventually(lambda: node.attendance.state.phase == "waiting")
    node.leave()
    return node.attendance.state.reason


def test_a_foreign_certificate_is_turned_away() -> None:
    with meeting({}) as coordinator:
        assert TURNED_AWAY in reason_for(coordinator.access("stranger"))
        assert coordinator.server.nodes() == []


def test_a_certificate_with_the_name_of_a_member_is_turned_away() -> None:
    with meeting({"a": bytes}) as coordinator:
        pem, key = certificate("a", ("another",))
        access = replace(coordinator.access("a"), certificate=pem, private_key=key)
        assert TURNED_AWAY in reason_for(access)


def test_the_certificate_of_a_member_without_its_key_is_turned_away() -> None:
    with meeting({"a": bytes}) as coordinator:
        access = replace(coordinator.access("a"), private_key=certificate("thief")[1])
        assert reason_for(access)
        assert len(coordinator.events) == 1


def test_an_expired_certificate_is_turned_away() -> None:
    with meeting({}) as coordinator:
        coordinator.members.admit("old", "node", 1, days=-1)
        assert TURNED_AWAY in reason_for(coordinator.access("old", days=-1))


def test_no_certificate_is_turned_away() -> None:
    with meeting({}) as coordinator:
        credentials = grpc.ssl_channel_credentials(COORDINATOR[0])
        with grpc.secure_channel(f"{HOST}:{coordinator.port}", credentials) as channel:
            call = channel.stream_stream("/dovetail.v1.Federation/Attend")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b""]), timeout=PATIENCE))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_no_tls_is_turned_away() -> None:
    with (
        meeting({}) as coordinator,
        grpc.insecure_channel(f"{HOST}:{coordinator.port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/dovetail.v1.Control/List")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_another_coordinator_is_not_believed() -> None:
    with meeting({"a": bytes}) as coordinator:
        access = replace(coordinator.access("a"), server_certificate=certificate("x", (HOST,))[0])
        assert "is not the coordinator that was named" in reason_for(access)


def test_a_coordinator_that_is_not_there_is_said_to_be_down() -> None:
    coordinator = Coordinator("a")
    port = coordinator.server.start()
    coordinator.server.stop(0)
    assert "nothing listens" in reason_for(coordinator.access("a", port))


def test_a_revoked_node_is_cut_off_and_its_exchanges_end() -> None:
    asked, release = threading.Event(), threading.Event()

    def handler(_: Received) -> bytes:
        asked.set()
        release.wait(PATIENCE)
        return b""

    with meeting({"a": handler, "b": bytes}) as coordinator, ThreadPoolExecutor() as pool:
        waiting = pool.submit(coordinator.ask, {1: b"x"})
        assert asked.wait(PATIENCE)
        coordinator.members.revoke("a")
        coordinator.server.drop_revoked()
        assert str(waiting.result()[1]) == "the certificate was revoked"
        coordinator.until_absent(1)
        assert str(coordinator.ask({1: b"x"})[1]) == "the node is not connected"
        assert coordinator.ask({2: b"x"}) == {2: b"x"}
        assert coordinator.events[-1].reason == "the certificate was revoked"
        assert TURNED_AWAY in reason_for(coordinator.access("a"))
        release.set()


def test_a_peer_revoked_between_handshake_and_call_is_refused() -> None:
    with meeting({"a": bytes}) as coordinator:
        with ControlClient(coordinator.access("analyst")) as client:
            client.call("List", {})
            coordinator.members.revoke("analyst")
            with pytest.raises(TransportError, match="not enrolled, or was revoked"):
                client.call("List", {})
        assert coordinator.events[-1].kind == "refused"
        assert coordinator.events[-1].peer is None


def test_a_node_revoked_while_it_connects_is_cut_off() -> None:
    with meeting({}) as coordinator:
        coordinator.members.admit("a", "node", 1)
        coordinator.before_welcome = lambda: coordinator.members.revoke("a")
        assert reason_for(coordinator.access("a")) == "the certificate was revoked"
        coordinator.until_absent(1)


def test_an_analyst_posing_as_a_node_is_refused() -> None:
    with meeting({}) as coordinator:
        reason = reason_for(coordinator.access("analyst"))
        assert reason == "analyst 'analyst' may not attend"
        assert [event.kind for event in coordinator.events] == ["refused"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.call("Submit", {}),
        lambda client: list(client.watch({})),
        lambda client: client.fetch({}, lambda _: None),
    ],
)
def test_a_node_asking_for_control_is_refused(ask: Callable[[ControlClient], object]) -> None:
    with meeting({"a": bytes}) as coordinator:
        with (
            ControlClient(coordinator.access("a")) as client,
            pytest.raises(TransportError, match="node 'a' may not use Control"),
        ):
            ask(client)
        assert coordinator.events[-1].kind == "refused"


def test_a_revoked_watcher_is_cut_off() -> None:
    class Endless(Clerk):
        def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
            yield {}
            assert cancelled.wait(PATIENCE)

    with (
        meeting({}, clerk=Endless()) as coordinator,
        ControlClient(coordinator.access("analyst")) as client,
    ):
        events = client.watch({})
        assert next(events) == {}
        coordinator.members.revoke("analyst")
        coordinator.server.drop_revoked()
        with pytest.raises(TransportError, match="the certificate was revoked"):
            next(events)


def hello(version: int = 1, incarnation: bytes = bytes(16)) -> bytes:
    return envelope.write(pb.FromNode(hello=pb.Hello(version=version, incarnation=incarnation)))


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", "of no known kind"),
        (b"\xff\xff", "cut off"),
        (envelope.write(pb.FromNode(beat=pb.Beat())), "did not say hello"),
        (hello(version=2), "another version"),
        (hello(incarnation=b"short"), "incarnation is malformed"),
    ],
)
def test_a_node_that_does_not_introduce_itself_is_refused(first: bytes, reason: str) -> None:
    with meeting({}) as coordinator:
        coordinator.members.admit("a", "node", 1)
        access = coordinator.access("a")
        with grpc.secure_channel(access.address, channel_credentials(access)) as channel:
            call = channel.stream_stream("/dovetail.v1.Federation/Attend")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([first]), timeout=PATIENCE))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason in caught.value.details()
        assert [event.kind for event in coordinator.events] == ["refused"]


def test_a_node_that_breaks_the_protocol_is_told_and_cut_off() -> None:
    with meeting({}) as coordinator:
        coordinator.members.admit("a", "node", 1)
        access = coordinator.access("a")
        with grpc.secure_channel(access.address, channel_credentials(access)) as channel:
            frames = channel.stream_stream("/dovetail.v1.Federation/Attend")(
                iter([hello(), hello()]), timeout=PATIENCE
            )
            said = [envelope.read(raw, pb.ToNode)[0] for raw in frames]
        assert [frame.WhichOneof("frame") for frame in said] == ["welcome", "farewell"]
        assert said[1].farewell.reason == "a frame came that does not belong here"
        coordinator.until_absent(1)


def test_health_and_reflection_answer_members() -> None:
    with meeting({"a": bytes}) as coordinator:
        access = coordinator.access("a")
        with grpc.secure_channel(access.address, channel_credentials(access)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            status = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
            names = {service.name for service in answer.list_services_response.service}
            assert {"dovetail.v1.Federation", "dovetail.v1.Control"} <= names


def test_a_certificate_that_expires_while_connected_is_refused_its_next_call() -> None:
    with (
        meeting({"a": bytes}) as coordinator,
        ControlClient(coordinator.access("analyst")) as client,
    ):
        client.call("List", {})
        coordinator.server._admission._clock = lambda: 2**33
        with pytest.raises(TransportError, match="the certificate has expired"):
            client.call("List", {})
