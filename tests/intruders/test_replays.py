"""Who stands between: frames that are changed, cut, repeated, reordered; and what leaves at all."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from dovetail.agreement.signing import request_record
from dovetail.errors import DovetailError
from dovetail.flower import actions, codec
from dovetail.flower.codec import payloads
from dovetail.node.settings import load_settings
from dovetail.store.desk import Desk
from dovetail.wire import envelope
from dovetail.wire.channel import Received
from dovetail.wire.generated import federation_pb2 as pb
from tests.intruders.house import COORDINATOR, HOST, PARTNERS, REQUEST, House, leaks, now, with_task
from tests.intruders.offices import office
from tests.intruders.rogues import RogueCoordinator, eventually, rogue_coordinator

Tamper = Callable[[list[bytes]], list[bytes]]
"""What becomes of some pieces that came one after the other."""


def flipped(pieces: list[bytes]) -> list[bytes]:
    last = bytearray(pieces[-1])
    last[len(last) // 2] ^= 1
    return [*pieces[:-1], bytes(last)]


def repeated(pieces: list[bytes]) -> list[bytes]:
    return [*pieces, pieces[-1]]


def reordered(pieces: list[bytes]) -> list[bytes]:
    return [piece for pair in zip(pieces[1::2], pieces[::2], strict=False) for piece in pair]


def dropped(pieces: list[bytes]) -> list[bytes]:
    return pieces[:-2] + pieces[-1:]


def foreign(pieces: list[bytes]) -> list[bytes]:
    return [*pieces, b"\x17\x03\x03\x00\x10" + bytes(16)]


@dataclass
class Between:
    """Passes connections on, and tampers with them when it is told to, once each way.

    Attributes:
        tamper: what to do next; nothing where ``None``.
        tampered: how often it did something.
    """

    target: int
    tamper: Tamper | None = None
    tampered: int = 0
    _open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        for side in self._open:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection((HOST, self.target))
                self._open += [here, there]
                for way in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 12):
                tamper = self.tamper
                if tamper is not None and len(data) > 200:  # else it may be a ping of gRPC's
                    self.tamper = None
                    self.tampered += 1
                    part = len(data) // 4
                    pieces = [data[at : at + part] for at in range(0, len(data), part)]
                    data = b"".join(tamper(pieces))
                sink.sendall(data)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


MANY = [flipped, repeated, reordered, foreign, pytest.param(dropped, marks=pytest.mark.long)]
"""What is merely missing is noticed when nothing is heard for too long."""


@pytest.mark.parametrize("tamper", MANY)
def test_a_connection_that_is_tampered_with_is_lost_and_nothing_else(
    tamper: Tamper, tmp_path: Path
) -> None:
    """TLS notices; the node comes back, and each round is answered and charged once."""
    house = House(tmp_path)
    port = int(house.address.rpartition(":")[2])
    with office(house, "retailer", "platform") as desk, Between(port) as between:
        house.reached_through("brand", between.port)
        desk.attend("brand")
        request = with_task(rounds=12, noise_multiplier=2.0)
        desk.submit(house.asked(request), quorum=3)
        client = desk.client(house.keys[COORDINATOR])
        seen = 0
        for event in client.watch({"job": "job-1", "after": 0}):
            if event["kind"] == "round":
                seen += 1
                if seen in (2, 6):
                    between.tamper = tamper
        client.close()
        events = desk.watch()
        assert between.tampered >= 1
        assert events[-1]["kind"] == "released", events[-1]
        for name in PARTNERS:
            kinds = house.kinds(name)
            assert kinds.count("commit") <= 12
            assert house.spent(name) == kinds.count("begin") <= 12


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[RogueCoordinator]:
    with rogue_coordinator(House(tmp_path)) as rogue:
        yield rogue
        assert rogue.leaked() == []


def recorded(rogue: RogueCoordinator) -> list[bytes]:
    """A job's messages as they went over the wire, each with its own id."""
    record = request_record(rogue.house.asked())
    messages = [
        actions.preview_message(rogue.node, record),
        actions.propose_message(rogue.node, record),
        *(rogue.training(number) for number in (1, 2, 3)),
        actions.close_message(rogue.node, "job-1"),
    ]
    return [payload.joined() for payload in payloads(messages)]


@pytest.mark.parametrize("seed", range(4))
def test_messages_replayed_in_any_order(seed: int, alone: RogueCoordinator) -> None:
    """No round is answered twice, and nothing is charged that was not asked and permitted."""
    rng, messages = random.Random(seed), recorded(alone)
    answered: Counter[int] = Counter()
    for _ in range(60):
        which = rng.randrange(len(messages))
        answer = alone.raw(messages[which])
        assert isinstance(answer, bytes | bytearray)
        answered[which] += not codec.decode(answer).has_error()
    kinds = alone.house.kinds("retailer")
    assert all(answered[which] <= 1 for which in (2, 3, 4))
    assert kinds.count("commit") == sum(answered[which] for which in (2, 3, 4))
    assert kinds.count("reserve") <= 1
    assert kinds.count("cancel") <= 1
    assert alone.house.spent("retailer") <= REQUEST.task.steps


def test_a_whole_job_replayed_after_its_end_costs_nothing(alone: RogueCoordinator) -> None:
    messages = recorded(alone)
    first = [codec.decode(as_bytes(alone.raw(raw))).has_error() for raw in messages]
    assert first == [False] * 6
    head = alone.house.head("retailer")
    again = [codec.decode(as_bytes(alone.raw(raw))).has_error() for raw in messages]
    assert again == [False, True, True, True, True, True]
    assert alone.house.head("retailer") == head


def as_bytes(answer: Any) -> Received:
    assert isinstance(answer, bytes | bytearray)
    return answer


@dataclass
class Tap:
    """Every frame that a node said, before TLS."""

    frames: list[bytes] = field(default_factory=list)

    def leaked(self) -> list[str]:
        return leaks(b"".join(self.frames))


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    """Notes all that nodes of this process send."""
    made, write = Tap(), envelope.write

    def tapped(frame: Any, data: Any = ()) -> bytes:
        raw = write(frame, data)
        if isinstance(frame, pb.FromNode):
            made.frames.append(raw)
        return raw

    monkeypatch.setattr(envelope, "write", tapped)
    return made


def test_canary_nothing_of_a_row_or_a_count_leaves_in_a_whole_job(
    tmp_path: Path, tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dovetail")
    house = House(tmp_path)
    with office(house, *PARTNERS) as desk:
        desk.call("Preview", signed=request_record(house.asked()))
        desk.submit(house.asked(with_task("refused", features=("age", "income"))))
        desk.watch("refused")
        desk.submit(house.asked(with_task(local_steps=2, sampling_prob=1.0, noise_multiplier=5.0)))
        assert desk.watch()[-1]["kind"] == "released"
        eventually((house.home("retailer") / "models" / "job-1" / "card.json").exists)
        for method in ("Show", "Permits"):
            desk.call(method, job="job-1")
    assert len(tap.frames) > 20
    assert tap.leaked() == []
    assert leaks(caplog.text.encode()) == []
    everything = [path for path in house.home(COORDINATOR).rglob("*") if path.is_file()]
    assert any(path.name == "jobs.sqlite" for path in everything)
    for path in everything:
        assert leaks(path.read_bytes()) == [], path.name


def test_canary_nothing_leaves_with_what_goes_wrong(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures of every kind while rows are read, and a node that people paused."""
    house = House(tmp_path)
    with rogue_coordinator(house) as rogue:
        rogue.propose(house.asked())
        for number, error in enumerate((ValueError, KeyError, MemoryError, OSError), 1):
            monkeypatch.setattr(
                "dovetail.node.runner.train_round", partial(fails_with, error), raising=True
            )
            with pytest.raises(DovetailError) as caught:
                rogue.train(min(number, 3))
            assert str(caught.value) == "internal error at the node"
        Desk(load_settings(house.home("retailer") / "node.toml").desk).pause(now())
        with pytest.raises(DovetailError, match="paused"):
            rogue.train(1)
        assert rogue.leaked() == []
    assert tap.leaked() == []


def fails_with(error: type[Exception], *_: Any) -> Any:
    """A failure that says what it was reading."""
    raise error(f"row canary-9c41e7: age 47.618393, 1 of {1207} customers")
