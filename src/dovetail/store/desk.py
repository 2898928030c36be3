"""What people at a partner have to decide and have decided: small files in one folder.

``waiting/JOB.json`` holds a request that waits for a person, ``decided/JOB.json`` what a person
said to it, and the file ``paused`` is there while the node is to refuse everything. The running
node and the commands of people meet here; a decision survives a restart of either.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, cast, get_args

from dovetail.agreement import request as requests
from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, request_from_record, request_record
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.store.whole_file import write_whole

Decision = Literal["approved", "refused"]
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_WAITING = 1000


@dataclass(frozen=True)
class Decided:
    """What a person said.

    Attributes:
        request_digest: to exactly which request.
        decision: yes or no.
        time: when, ISO 8601.
    """

    request_digest: str
    decision: Decision
    time: str


class Desk:
    """A partner's desk; several processes may use one."""

    def __init__(self, folder: Path) -> None:
        """Opens the desk.

        Args:
            folder: made with mode 0700 where it is missing.

        Raises:
            DataError: it cannot be written.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("waiting", "decided"):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The right of one process to serve this node, until it ends however it ends.

        Raises:
            SettingError: another process has it.
            DataError: the folder cannot be written.
        """
        try:
            file = os.open(self._folder / ".serving", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        try:
            _lock(file)
            yield
        finally:
            os.close(file)

    @property
    def paused(self) -> bool:
        """Whether the node is to refuse everything that is asked."""
        return (self._folder / "paused").exists()

    def pause(self, now: datetime) -> None:
        """Refuse everything from now on."""
        self._write(self._folder / "paused", {"since": now.isoformat(timespec="seconds")})

    def resume(self) -> None:
        """Answer again."""
        (self._folder / "paused").unlink(missing_ok=True)

    def wait_for_decision(self, signed: SignedRequest) -> None:
        """Puts a request before people, unless it lies there already.

        Raises:
            PolicyError: rule ``request``: another one of this name lies there, and who has read
                that one could say yes to this.
            DataError: it cannot be written, or too many requests lie there.
        """
        path = self._path("waiting", signed.request.job)
        record = request_record(signed)
        if path.exists():
            there = request_from_record(self._read(path))
            if (there.request, there.asked_by) != (signed.request, signed.asked_by):
                raise PolicyError("request", "another job of this name was put before people here")
            if request_record(there) == record:
                return
        elif len(self.waiting()) >= _MOST_WAITING:
            raise DataError("too many requests wait for a person here")
        self._write(path, record)

    def waiting(self) -> tuple[SignedRequest, ...]:
        """The requests that nobody has decided on, by job."""
        found = []
        for path in sorted((self._folder / "waiting").glob("*.json")):
            signed = request_from_record(self._read(path))
            if self.decision(signed.request) is None:
                found.append(signed)
        return tuple(found)

    def decide(self, job: str, decision: Decision, now: datetime) -> Request:
        """Notes what a person says to the request of this name that waits.

        Raises:
            SettingError: no such request waits.
            DataError: the decision cannot be written.
        """
        path = self._path("waiting", job)
        if not path.exists():
            raise SettingError(f"no job named {job!r} waits for a decision")
        request = request_from_record(self._read(path)).request
        time = now.isoformat(timespec="seconds")
        decided = Decided(requests.digest(request), decision, time)
        self._write(self._path("decided", job), vars(decided))
        return request

    def decision(self, request: Request) -> Decision | None:
        """What a person said to exactly this request; ``None`` where nobody did."""
        path = self._path("decided", request.job)
        if not path.exists():
            return None
        read = Fields(self._read(path), path.name, tuple(Decided.__dataclass_fields__))
        if read.text("request_digest") != requests.digest(request):
            return None
        decision: Decision = read.choice("decision", get_args(Decision))
        return decision

    def state(self) -> tuple[bool, tuple[tuple[str, int], ...]]:
        """Something that differs whenever a person paused, resumed or decided."""
        decided = sorted((self._folder / "decided").glob("*.json"))
        return self.paused, tuple((path.name, path.stat().st_mtime_ns) for path in decided)

    def _path(self, kind: str, job: str) -> Path:
        if _JOB.fullmatch(job) is None:
            raise SettingError("that cannot be the name of a job")
        return self._folder / kind / f"{job}.json"

    def _read(self, path: Path) -> Mapping[str, object]:
        try:
            return cast("Mapping[str, object]", json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise DataError(f"{path.name!r} at this node's desk cannot be read") from None

    def _write(self, path: Path, record: Mapping[str, object]) -> None:
        try:
            write_whole(path, json.dumps(record, indent=2, ensure_ascii=False).encode())
        except OSError as error:
            raise _unwritable(path, error) from None


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingError("another process serves this node already") from None


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path.name!r} at this node's desk cannot be written ({error.strerror})")
