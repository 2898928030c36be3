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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast, get_args

from dovetail.agreement import request as requests
from dovetail.agreement.permit import PERMIT_DAYS
from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, request_from_record, request_record
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.store.whole_file import write_whole

Decision = Literal["approved", "refused"]
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_WAITING = 1000
_FIELDS_BEFORE = {"request_digest", "decision", "time"}
"""Of a decision that is bound to no asker and no terms, as older files are; it decides nothing."""


@dataclass(frozen=True)
class Decided:
    """What a person said.

    Attributes:
        request_digest: to exactly which request.
        asked_by: who asked for it.
        terms_digest: under which terms it waited, which were those in force here.
        decision: yes or no.
        time: when, ISO 8601 with its zone.
    """

    request_digest: str
    asked_by: str
    terms_digest: str
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

    def wait_for_decision(self, signed: SignedRequest, now: datetime) -> None:
        """Puts a request before people, unless it lies there already or they have decided.

        A decision that does not count for it, see :meth:`decision`, is taken away.

        Raises:
            PolicyError: rule ``request``: another one of this name lies there, or somebody else's
                that nobody has decided on, and who has read that one could say yes to this.
            DataError: it cannot be written, or too many requests lie there.
        """
        path, said = self._path("waiting", signed.request.job), self._said(signed.request)
        record, there = request_record(signed), self._waits(path)
        if there is None and len(self.waiting()) >= _MOST_WAITING:
            raise DataError("too many requests wait for a person here")
        if there is not None:
            another = there.asked_by != signed.asked_by and said is None
            if another or there.request != signed.request:
                raise PolicyError("request", "another job of this name was put before people here")
        if self.decision(signed, now) is not None:
            return
        if there is None or request_record(there) != record:
            self._write(path, record)
        if said is not None:
            self._path("decided", signed.request.job).unlink(missing_ok=True)

    def waiting(self) -> tuple[SignedRequest, ...]:
        """The requests that nobody has decided on, by job."""
        found = []
        for path in sorted((self._folder / "waiting").glob("*.json")):
            signed = request_from_record(self._read(path))
            if self._said(signed.request) is None:
                found.append(signed)
        return tuple(found)

    def decide(self, job: str, decision: Decision, now: datetime) -> Request:
        """Notes what a person says to the request of this name that waits.

        Raises:
            SettingError: no such request waits.
            DataError: the decision cannot be written.
        """
        signed = self._waits(self._path("waiting", job))
        if signed is None:
            raise SettingError(f"no job named {job!r} waits for a decision")
        decided = Decided(
            requests.digest(signed.request),
            signed.asked_by,
            signed.terms_digest,
            decision,
            now.isoformat(timespec="seconds"),
        )
        self._write(self._path("decided", job), vars(decided))
        return signed.request

    def decision(self, signed: SignedRequest, now: datetime) -> Decision | None:
        """What a person said to exactly this request; ``None`` where nobody did.

        A no holds whoever asks. A yes is for who asked, under the terms of that time, and for as
        many days as a permit lasts.

        Raises:
            DataError: what was decided cannot be read.
            SettingError: it is no decision.
        """
        said = self._said(signed.request)
        if said is None:
            return None
        if said.decision == "refused":
            return "refused"
        same = (said.asked_by, said.terms_digest) == (signed.asked_by, signed.terms_digest)
        recent = now - _moment(said.time) <= timedelta(days=PERMIT_DAYS)
        return "approved" if same and recent else None

    def state(self) -> tuple[bool, tuple[tuple[str, int], ...]]:
        """Something that differs whenever a person paused, resumed or decided."""
        decided = sorted((self._folder / "decided").glob("*.json"))
        return self.paused, tuple((path.name, path.stat().st_mtime_ns) for path in decided)

    def _waits(self, path: Path) -> SignedRequest | None:
        return request_from_record(self._read(path)) if path.exists() else None

    def _said(self, request: Request) -> Decided | None:
        """The newest decision on exactly this request, whoever asked and however old."""
        path = self._path("decided", request.job)
        if not path.exists():
            return None
        record = self._read(path)
        if set(record) == _FIELDS_BEFORE:
            return None
        read = Fields(record, path.name, tuple(Decided.__dataclass_fields__))
        decision: Decision = read.choice("decision", get_args(Decision))
        said = Decided(
            read.text("request_digest"),
            read.text("asked_by"),
            read.text("terms_digest"),
            decision,
            read.text("time"),
        )
        return said if said.request_digest == requests.digest(request) else None

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


def _moment(time: str) -> datetime:
    try:
        moment = datetime.fromisoformat(time)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        raise SettingError("a decision at this node's desk has no time") from None


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path.name!r} at this node's desk cannot be written ({error.strerror})")
