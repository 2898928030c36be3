"""What analysts and operators ask, over real gRPC with mutual TLS."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dovetail import errors
from dovetail.errors import DovetailError, LocalProtocolError, RemoteProtocolError, TransportError
from dovetail.wire.control import METHODS, ControlClient
from dovetail.wire.payload import Part
from dovetail.wire.peers import Limits, Peer, Record
from tests.wire.parties import PATIENCE, Clerk, Coordinator, eventually, meeting


def client(coordinator: Coordinator, name: str = "analyst") -> ControlClient:
    return ControlClient(coordinator.access(name))


def test_every_method_reaches_the_handler() -> None:
    record = {"job": "ü", "rounds": [1, 2.5, None, True]}
    with meeting({}) as coordinator, client(coordinator) as control:
        for method in METHODS:
            expected = {"method": method, "peer": "analyst", "record": record}
            assert control.call(method, record) == expected
        with pytest.raises(LocalProtocolError):
            control.call("Attend", record)


def test_events_arrive_as_they_happen() -> None:
    happened: list[threading.Event] = [threading.Event() for _ in range(3)]

    class Busy(Clerk):
        def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
            for i, event in enumerate(happened):
                assert event.wait(PATIENCE)
                yield {"round": i}

    with meeting({}, clerk=Busy()) as coordinator, client(coordinator) as control:
        events = control.watch({})
        for i, event in enumerate(happened):
            event.set()
            assert next(events) == {"round": i}
        assert list(events) == []


def test_who_stops_watching_is_known_to_have_left() -> None:
    left = threading.Event()

    class Endless(Clerk):
        def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
            try:
                while not cancelled.wait(0.001):
                    yield {}
            finally:  # asked for the next event, or never asked again
                left.set()

    with meeting({}, clerk=Endless()) as coordinator, client(coordinator) as control:
        events = control.watch({})
        next(events)
        events.close()  # type: ignore[attr-defined]
        assert left.wait(PATIENCE)


def test_a_file_arrives_whole() -> None:
    with meeting({}) as coordinator, client(coordinator) as control:
        got: list[bytes] = []
        assert control.fetch({"of": 1}, got.append) == {"peer": "analyst", "record": {"of": 1}}
        assert b"".join(got) == b"ab" + b"c" * 3_000_000


def test_an_empty_file_is_a_file() -> None:
    class Empty(Clerk):
        def fetch(self, peer: Peer, record: Record) -> tuple[Record, Iterable[Part]]:
            return {"rows": 0}, []

    with meeting({}, clerk=Empty()) as coordinator, client(coordinator) as control:
        assert control.fetch({}, lambda _: None) == {"rows": 0}


class Failing(Clerk):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def call(self, method: str, peer: Peer, record: Record) -> Record:
        raise self.error

    def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
        yield {}
        raise self.error

    def fetch(self, peer: Peer, record: Record) -> tuple[Record, Iterable[Part]]:
        raise self.error


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (
            errors.PolicyError("purpose", "not agreed ü"),
            errors.PolicyError("purpose", "not agreed ü"),
        ),
        (errors.SettingError("no such job"), errors.SettingError("no such job")),
        (errors.LocalProtocolError("we"), RemoteProtocolError("we")),
        (errors.RemoteProtocolError("they"), LocalProtocolError("they")),
        (ValueError("salary 1234"), RemoteProtocolError("internal error at the coordinator")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_as_class_and_text(
    raised: Exception, seen: DovetailError, caplog: pytest.LogCaptureFixture
) -> None:
    with meeting({}, clerk=Failing(raised)) as coordinator, client(coordinator) as control:
        with pytest.raises(type(seen)) as called:
            control.call("Show", {})
        with pytest.raises(type(seen)) as watched:
            list(control.watch({}))
        with pytest.raises(type(seen)) as fetched:
            control.fetch({}, lambda _: None)
        assert str(called.value) == str(watched.value) == str(fetched.value) == str(seen)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == (0 if isinstance(raised, DovetailError) else 3)


def test_an_answer_that_is_no_json_is_an_error() -> None:
    class Wrong(Clerk):
        def call(self, method: str, peer: Peer, record: Record) -> Record:
            return {"epsilon": float("nan")}

    with meeting({}, clerk=Wrong()) as coordinator, client(coordinator) as control:
        with pytest.raises(RemoteProtocolError, match="what JSON cannot"):
            control.call("Show", {})
        with pytest.raises(LocalProtocolError, match="what JSON cannot"):
            control.call("Show", {"x": object()})


def test_too_long_a_document_is_refused_on_either_side() -> None:
    with (
        meeting({}, limits=Limits(document_bytes=1_000)) as coordinator,
        client(coordinator) as control,
    ):
        with pytest.raises(LocalProtocolError, match="longer than allowed"):
            control.call("Submit", {"x": "y" * 1_000})
        with pytest.raises(RemoteProtocolError, match="longer than allowed"):
            control.call("Submit", {"x": "y" * 970})  # the answer is longer
        with pytest.raises(LocalProtocolError, match="longer than allowed"):
            control.call("Submit", {"x": "y" * (9 << 20)})


def test_too_many_calls_and_streams_are_refused() -> None:
    release = threading.Event()

    class Slow(Clerk):
        def call(self, method: str, peer: Peer, record: Record) -> Record:
            release.wait(PATIENCE)
            return {}

        def watch(self, peer: Peer, record: Record, cancelled: threading.Event) -> Iterator[Record]:
            yield {}
            cancelled.wait(PATIENCE)

    limits = Limits(calls=1, streams=1)
    with (
        meeting({}, limits=limits, clerk=Slow()) as coordinator,
        client(coordinator) as control,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(control.call, "List", {})
        service = coordinator.server._control
        eventually(lambda: service._calls == 1)
        with pytest.raises(TransportError, match="too many calls"):
            control.call("List", {})
        release.set()
        assert first.result() == {}
        assert control.call("List", {}) == {}
        watching = control.watch({})
        next(watching)
        with pytest.raises(TransportError, match="too many watchers"):
            next(control.watch({}))
        watching.close()  # type: ignore[attr-defined]
        eventually(lambda: service._streams == 0)
        assert next(control.watch({})) == {}


def test_a_coordinator_that_is_not_there_is_a_transport_error() -> None:
    coordinator = Coordinator()
    coordinator.port = coordinator.server.start()
    coordinator.server.stop(0)
    with client(coordinator) as control, pytest.raises(TransportError, match="nothing listens"):
        control.call("List", {})


def test_a_call_that_takes_too_long_is_a_transport_error() -> None:
    release = threading.Event()

    class Slow(Clerk):
        def call(self, method: str, peer: Peer, record: Record) -> Record:
            release.wait(PATIENCE)
            return {}

    with (
        meeting({}, clerk=Slow()) as coordinator,
        ControlClient(coordinator.access("analyst"), timeout=0.2) as control,
    ):
        with pytest.raises(TransportError, match="did not answer in time"):
            control.call("List", {})
        release.set()
