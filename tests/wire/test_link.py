"""One connection: signs of life, silence, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dovetail.errors import RemoteProtocolError, TransportError
from dovetail.wire import envelope
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.link import Link, Pace, Stride
from dovetail.wire.outbox import Outbox
from dovetail.wire.payload import Payload
from dovetail.wire.transfer import CHUNK, GRAIN, Outgoing
from tests.wire.parties import PATIENCE

BEAT = envelope.write(pb.ToNode(beat=pb.Beat()))
QUICK = Pace(0.02, 0.2)


class Side:
    """One side of a connection; what it writes lies there until the other side reads it."""

    def __init__(self, room: int = 1000) -> None:
        self.written: asyncio.Queue[bytes | None] = asyncio.Queue(room)
        self.other: Side | None = None
        self.outbox = Outbox(pb.ToNode)
        self.heard: list[bytes] = []
        self.link = Link(self, self.outbox, BEAT, QUICK)

    async def read(self) -> bytes | None:
        assert self.other is not None
        return await self.other.written.get()

    async def write(self, frame: bytes) -> None:
        await self.written.put(frame)

    async def hear(self, frame: bytes) -> None:
        self.heard.append(frame)

    async def carry(self) -> str:
        return await self.link.carry(self.hear)


def joined(here: Side, there: Side) -> None:
    here.other, there.other = there, here


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


def test_two_quiet_sides_live_until_one_ends() -> None:
    async def test() -> None:
        here, there = Side(), Side()
        joined(here, there)
        carrying = [asyncio.ensure_future(side.carry()) for side in (here, there)]
        while min(len(here.heard), len(there.heard)) < 15:
            await asyncio.sleep(0.01)
        here.link.end("enough")
        here.link.end("too late to be the reason")
        assert await carrying[0] == "enough"
        here.written.put_nowait(None)
        assert await carrying[1] == ""
        assert set(here.heard + there.heard) == {BEAT}

    run(test())


def test_silence_is_the_end() -> None:
    async def test() -> None:
        here = Side()
        joined(here, Side())
        with pytest.raises(TransportError, match="fallen silent"):
            await here.carry()

    run(test())


def test_a_side_that_speaks_and_does_not_listen_is_gone() -> None:
    async def test() -> None:
        here, deaf = Side(room=1), Side()
        joined(here, deaf)

        async def speak() -> None:
            while True:
                await deaf.write(BEAT)
                await asyncio.sleep(0.01)

        speaking = asyncio.ensure_future(speak())
        with pytest.raises(TransportError, match="fallen silent"):
            await here.carry()
        speaking.cancel()

    run(test())


def test_hearing_may_take_its_time() -> None:
    async def test() -> None:
        here, there = Side(), Side()
        joined(here, there)
        slow = asyncio.Event()

        async def hear(_: bytes) -> None:
            await slow.wait()

        carrying = asyncio.ensure_future(here.link.carry(hear))
        there.written.put_nowait(BEAT)
        for _ in range(3):
            await asyncio.sleep(QUICK.silence)
            assert not carrying.done()
        here.link.end("")
        assert await carrying == ""

    run(test())


def test_a_broken_protocol_is_passed_on() -> None:
    async def test() -> None:
        here, there = Side(), Side()
        joined(here, there)

        async def hear(_: bytes) -> None:
            raise RemoteProtocolError("nonsense")

        there.written.put_nowait(b"?")
        with pytest.raises(RemoteProtocolError, match="nonsense"):
            await here.link.carry(hear)

    run(test())


def test_a_link_that_was_ended_takes_nothing_more_from_the_outbox() -> None:
    async def test() -> None:
        here = Side(room=1)
        joined(here, Side())
        for _ in range(5):
            here.outbox.say(pb.ToNode(beat=pb.Beat()))
        carrying = asyncio.ensure_future(here.carry())
        while not here.written.full():
            await asyncio.sleep(0)
        here.link.end("replaced")
        await carrying
        left = 0
        while here.outbox.next(GRAIN):
            left += 1
        assert left >= 3

    run(test())


def test_nothing_is_carried_any_more_once_a_link_was_ended() -> None:
    class Hasty(Side):
        async def hear(self, frame: bytes) -> None:
            await super().hear(frame)
            self.link.end("enough")

        async def write(self, frame: bytes) -> None:
            await super().write(frame)
            self.link.end("enough")

    async def test() -> None:
        hearing, writing = Hasty(), Hasty()
        joined(hearing, Side())
        joined(writing, Side())
        assert hearing.other is not None
        for _ in range(3):
            hearing.other.written.put_nowait(BEAT)
            writing.outbox.say(pb.ToNode(beat=pb.Beat()))
        assert await hearing.carry() == await writing.carry() == "enough"
        assert len(hearing.heard) == 1
        assert writing.written.qsize() == 1

    run(test())


def test_transfers_take_turns_and_short_frames_come_first() -> None:
    outbox = Outbox(pb.ToNode)
    for name in (b"a", b"b"):
        outbox.send(name, Outgoing(Payload(bytes(2 * GRAIN))))
    outbox.next(GRAIN)
    outbox.say(pb.ToNode(done=pb.Done(exchange=b"c")))
    frames = []
    while raw := outbox.next(GRAIN):
        frame, _ = envelope.read(raw, pb.ToNode)
        frames.append(frame.done.exchange or frame.chunk.exchange)
    assert frames == [b"c", b"b", b"a", b"b"]


def test_chunks_are_long_once_a_link_has_proved_quick_and_short_once_it_is_slow() -> None:
    stride = Stride()
    assert stride.size == 4 * GRAIN
    for _ in range(31):
        stride.took(stride.size, 0.01)
    assert stride.size == 4 * GRAIN, "buffers may have taken that much"
    for _ in range(100):
        stride.took(stride.size, 0.01)
    assert stride.size == CHUNK
    for seconds, size in ((0.5, CHUNK), (2.0, CHUNK // 2), (2.0, CHUNK // 4)):
        stride.took(CHUNK, seconds)
        assert stride.size == size
    for _ in range(10):
        stride.took(CHUNK, 2.0)
    assert stride.size == GRAIN
