"""Inside a party's process: where it can be killed, and what it notes down for the tests.

A party's process may be killed at a *point*: before or after the n-th call of a function since the
test asked for it, by a file :data:`DOOM` in the party's folder of notes. Without that file every
point only passes the call on. What a party asked, read, received and let go is appended to
:data:`NOTES` beside it, one line each, before anything is done with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal

DOOM = "doom.json"
NOTES = "notes.jsonl"

NODE = {
    "receive": "dovetail.wire.attendance:Attendance._answer",
    "permit": "dovetail.node.gate:Gate.admit",
    "reserve": "dovetail.store.ledger:LedgerStore.reserve",
    "begin": "dovetail.store.ledger:LedgerStore.begin",
    "read": "dovetail.node.worker:Worker.contribute",
    "commit": "dovetail.store.ledger:LedgerStore.commit",
    "send": "dovetail.wire.answering:Answering.answer",
    "keep": "dovetail.node.opening:save_received",
    "close": "dovetail.store.ledger:LedgerStore.cancel",
    "prepare": "dovetail.node.opening:prepare",
    "write": "dovetail.data.customers:_write_meta",
    "trust": "dovetail.node.opening:write_whole",
    "advertise_keys": "dovetail.secagg.client:Client.advertise_keys",
    "share_keys": "dovetail.secagg.client:Client.share_keys",
    "receive_shares": "dovetail.secagg.client:Client.receive_shares",
    "masked_input": "dovetail.secagg.client:Client.mask",
    "check_consistency": "dovetail.secagg.client:Client.check_consistency",
    "unmask": "dovetail.secagg.client:Client.unmask",
}
COORDINATOR = {
    "add": "dovetail.store.jobs:JobStore.add",
    "change": "dovetail.store.jobs:JobStore.change",
    "permit": "dovetail.store.jobs:JobStore.put_permit",
    "ask": "dovetail.store.jobs:JobStore.begin_round",
    "send": "dovetail.wire.federation:Federation.ask",
    "receive": "dovetail.coordinator.round:Round.add",
    "aggregate": "dovetail.coordinator.run:apply_mean",
    "save": "dovetail.store.checkpoints:save",
    "finish": "dovetail.store.jobs:JobStore.finish_round",
    "tidy": "dovetail.store.checkpoints:keep",
    "lose": "dovetail.store.jobs:JobStore.lose_round",
    "release": "dovetail.coordinator.run:release",
    "model": "dovetail.coordinator.journal:save_model",
    "put": "dovetail.store.jobs:JobStore.put_release",
    "settle": "dovetail.store.jobs:JobStore.settle_permit",
    "forget": "dovetail.store.checkpoints:forget",
    "exchange": "dovetail.coordinator.aggregating:Aggregation._asked",
    "masked_input": "dovetail.secagg.server:RoundSum.add",
    "unmask": "dovetail.secagg.server:RoundSum.unmask",
}
"""What happens at a party, and the function that does it."""

When = Literal["before", "after"]


@dataclass(frozen=True)
class Doom:
    """Where a process is to be killed: before or after the ``nth`` call at a point."""

    point: str
    when: When
    nth: int = 1

    def write(self, folder: Path) -> None:
        """Asks for it."""
        waiting = folder / f".{DOOM}"
        waiting.write_text(json.dumps(asdict(self)))
        waiting.replace(folder / DOOM)

    @classmethod
    def read(cls, folder: Path) -> Doom | None:
        """What was asked for, if anything was."""
        try:
            return cls(**json.loads((folder / DOOM).read_text()))
        except FileNotFoundError:
            return None


class Points:
    """The points of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._doom: Doom | None = None
        self._calls = 0

    def watch(self, point: str, function: str) -> None:
        """Makes a function a point."""
        owner, name, real = _found(function)

        @wraps(real)
        def passed(*arguments: Any, **named: Any) -> Any:
            due = self._due(point)
            if due == "before":
                self._die()
            result = real(*arguments, **named)
            if due == "after":
                self._die()
            return result

        setattr(owner, name, passed)

    def _due(self, point: str) -> When | None:
        with self._lock:
            doom = Doom.read(self._folder)
            if doom != self._doom:
                self._doom, self._calls = doom, 0
            if doom is None or doom.point != point:
                return None
            self._calls += 1
            return doom.when if self._calls == doom.nth else None

    def _die(self) -> None:
        (self._folder / DOOM).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()


class Notes:
    """What one party notes; a line is whole or not there, also where the process is killed."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(folder / NOTES, flags, 0o600)

    def note(self, what: str, **more: object) -> None:
        """Appends a line."""
        os.write(self._file, json.dumps({"what": what, **more}).encode() + b"\n")


def notes(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of these kinds that a party has noted, or of all kinds."""
    path = folder / NOTES
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if not kinds or line["what"] in kinds]


def install(folder: Path, party: str, coordinator: str) -> None:
    """Sets up the points and the notes of this process.

    Args:
        folder: the party's, for notes.
        party: who this is.
        coordinator: the coordinator's name.
    """
    written = Notes(folder)
    if party == coordinator:
        _note_at_coordinator(written)
    else:
        _note_at_node(written)
    points = Points(folder)
    for point, function in (COORDINATOR if party == coordinator else NODE).items():
        points.watch(point, function)


def _note_at_node(written: Notes) -> None:
    """Rows that are read, contributions that the node lets go, and rounds that it unmasks."""

    def read(real: Callable[..., Any]) -> Callable[..., Any]:
        def contribute(worker: Any, request: Any, number: int, *more: Any) -> Any:
            written.note("read", job=request.job, round=number)
            return real(worker, request, number, *more)

        return contribute

    def left(real: Callable[..., Any]) -> Callable[..., Any]:
        def train(node: Any, request: Mapping[str, Any], number: int, *more: Any) -> Any:
            contribution = real(node, request, number, *more)
            written.note("left", job=request["job"], round=number, digest=_of(contribution.arrays))
            return contribution

        return train

    def unmasked(real: Callable[..., Any]) -> Callable[..., Any]:
        def unmask(aggregating: Any, request: Any, body: Mapping[str, Any]) -> Any:
            answer = real(aggregating, request, body)
            written.note("unmasked", job=request.job, round=body["round"])
            return answer

        return unmask

    _wrap("dovetail.node.worker:Worker.contribute", read)
    _wrap("dovetail.node.aggregating:Aggregating._unmask", unmasked)
    _wrap("dovetail.node.app:Node.train", left)


def _note_at_coordinator(written: Notes) -> None:
    """Rounds that are asked, replies that came, and replies that are added up."""
    _wrap("dovetail.coordinator.aggregating:ask", partial(_asking, written))  # before the grid's
    _wrap("dovetail.flower.grid:ask", partial(_asking, written))
    _note_sums(written)


def _asking(written: Notes, real: Callable[..., Any]) -> Callable[..., Any]:
    from dovetail.errors import DovetailError
    from dovetail.flower.actions import TRAIN, arrays_of

    def ask(channel: Any, messages: Iterable[Any], *more: Any) -> Iterator[Any]:
        asked = {message.metadata.dst_node_id: message for message in messages}
        training = {n for n, m in asked.items() if m.metadata.message_type == TRAIN}
        for node in training:
            written.note("asked", node=node, **_round_of(asked[node]))
        for node, reply in real(channel, list(asked.values()), *more):
            if node in training and not isinstance(reply, DovetailError):
                digest = _of(arrays_of(reply))
                written.note("came", node=node, digest=digest, **_round_of(asked[node]))
            yield node, reply

    return ask


def _note_sums(written: Notes) -> None:
    from dovetail.flower.grid import MASKED

    def adding(real: Callable[..., Any]) -> Callable[..., Any]:
        def add(round_: Any, node: int, arrays: Mapping[str, Any]) -> None:
            written.note("added", digest=_of(arrays))
            real(round_, node, arrays)

        return add

    def adding_masked(real: Callable[..., Any]) -> Callable[..., Any]:
        def add(sum_: Any, member: str, masked: Any) -> None:
            written.note("added", digest=_of({MASKED: masked}))
            real(sum_, member, masked)

        return add

    _wrap("dovetail.coordinator.round:Round.add", adding)
    _wrap("dovetail.secagg.server:RoundSum.add", adding_masked)


def _round_of(message: Any) -> dict[str, object]:
    config = message.content.config_records["config"]
    return {"job": json.loads(config["request"])["job"], "round": config["server-round"]}


def _of(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + bytes(arrays[name].tobytes()))
    return digest.hexdigest()


def _wrap(function: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    owner, name, real = _found(function)
    setattr(owner, name, around(real))


def _found(function: str) -> tuple[Any, str, Callable[..., Any]]:
    module, _, path = function.partition(":")
    above, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(f"{module}:{above}" if above else module)
    return owner, name, getattr(owner, name)
