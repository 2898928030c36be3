"""One line of a ledger: its fields, its digest, and its form as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal, cast, get_args

from dovetail.agreement.record import LARGEST_WHOLE, Fields, require
from dovetail.agreement.request import require_job
from dovetail.crypto import canonical
from dovetail.privacy import event as events
from dovetail.privacy.event import Event

Kind = Literal["reserve", "begin", "commit", "cancel"]

GENESIS = "0" * 64
"""What the first entry names as its previous one."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        sequence: its place, from 1.
        previous: digest of the entry before it, or :data:`GENESIS`.
        time: when it was decided, in UTC, ISO 8601 to the second.
        kind: what it does; see the table above.
        job: whose it is.
        round: of *begin* and *commit*, >= 1.
        request_digest: of *reserve*.
        event: of *reserve*: what each step of the job releases.
        count: of *reserve* and *begin*: how often, >= 1.
    """

    sequence: int
    previous: str
    time: str
    kind: Kind
    job: str
    round: int | None = None
    request_digest: str | None = None
    event: Event | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.sequence <= LARGEST_WHOLE, "sequence must be at least 1")
        require(_is_digest(self.previous), "previous must be a digest in hex")
        require(_is_time(self.time), "time must be ISO 8601 in UTC, to the second")
        require_job(self.job)
        self._check_own_fields()
        for count in (self.round, self.count):
            require(count is None or 1 <= count <= LARGEST_WHOLE, "a count must be at least 1")
        require(
            self.request_digest is None or _is_digest(self.request_digest),
            "request_digest must be a digest in hex",
        )

    def _check_own_fields(self) -> None:
        for name in _OPTIONAL:
            has, may = getattr(self, name) is not None, name in _OWN_FIELDS[self.kind]
            require(has == may, f"{self.kind} {'needs' if may else 'has no'} {name}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields, in hex; the next entry names it."""
        return canonical.digest(to_record(self))


_OPTIONAL = ("round", "request_digest", "event", "count")
_OWN_FIELDS: dict[Kind, tuple[str, ...]] = {
    "reserve": ("request_digest", "event", "count"),
    "begin": ("round", "count"),
    "commit": ("round",),
    "cancel": (),
}
_NAMES = ("sequence", "previous", "time", "kind", "job", *_OPTIONAL)


def to_record(entry: Entry) -> dict[str, object]:
    """The entry as JSON-able data."""
    return {
        "sequence": entry.sequence,
        "previous": entry.previous,
        "time": entry.time,
        "kind": entry.kind,
        "job": entry.job,
        "round": entry.round,
        "request_digest": entry.request_digest,
        "event": None if entry.event is None else events.to_record(entry.event),
        "count": entry.count,
    }


def from_record(record: object) -> Entry:
    """The entry that :func:`to_record` wrote.

    Raises:
        SettingError: a field is missing, unknown, of another type or out of range.
        PrivacyError: the event is unknown or out of range.
    """
    read = Fields(record, "entry", _NAMES)
    kind = read.choice("kind", get_args(Kind))
    own = _OWN_FIELDS[kind]
    for name in _OPTIONAL:
        require(name in own or read.raw(name) is None, f"{kind} has no {name}")
    return Entry(
        sequence=read.whole("sequence"),
        previous=read.text("previous"),
        time=read.text("time"),
        kind=kind,
        job=read.text("job"),
        round=read.whole("round") if "round" in own else None,
        request_digest=read.text("request_digest") if "request_digest" in own else None,
        event=_event(read.raw("event")) if "event" in own else None,
        count=read.whole("count") if "count" in own else None,
    )


def time_of(now: datetime) -> str:
    """A moment as entries write it.

    Raises:
        SettingError: it has no time zone.
    """
    require(now.tzinfo is not None, "the ledger's clock must know its time zone")
    return now.astimezone(UTC).isoformat(timespec="seconds")


def _event(record: object) -> Event:
    require(isinstance(record, dict), "event must be a table of fields")
    return events.from_record(cast("dict[str, object]", record))


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.utcoffset() == timedelta(0) and moment.isoformat(timespec="seconds") == text
