"""One line of a ledger: its fields, its digest, and its form as plain data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
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
_WITHOUT_FRACTIONS = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
"""Writes the canonical form, five times faster, of records of ASCII words and whole numbers."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        sequence: its place, from 1.
        previous: digest of the entry before it, or :data:`GENESIS`.
        time: when it was decided, in UTC, ISO 8601 to the second.
        kind: what it does; see the table in :mod:`dovetail.agreement.ledger`.
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
        require(_is_count(self.sequence), "sequence must be at least 1")
        require(_is_digest(self.previous), "previous must be a digest in hex")
        require(_is_time(self.time), "time must be ISO 8601 in UTC, to the second")
        require_job(self.job)
        self._check_own_fields()
        for count in (self.round, self.count):
            require(count is None or _is_count(count), "a count must be at least 1")
        require(
            self.request_digest is None or _is_digest(self.request_digest),
            "request_digest must be a digest in hex",
        )

    def _check_own_fields(self) -> None:
        for name in _OPTIONAL:
            has, may = getattr(self, name) is not None, name in _OWN_FIELDS[self.kind]
            require(has == may, f"{self.kind} {'needs' if may else 'has no'} {name}")

    @property
    def moment(self) -> datetime:
        """:attr:`time` as a moment, in UTC."""
        return datetime.fromisoformat(self.time)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields, in hex; the next entry names it."""
        record = to_record(self)
        if self.event is not None:
            return canonical.digest(record)
        return hashlib.sha256(_WITHOUT_FRACTIONS.encode(record).encode()).hexdigest()


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


def entries_as_json(entries: Iterable[Entry]) -> list[dict[str, object]]:
    """A ledger for other programs: each entry as :func:`to_record` has it, and its ``digest``.

    Whoever holds it can check the chain: a digest is SHA-256 over the RFC 8785 form of the other
    fields, and the next entry's ``previous``.
    """
    return [{**to_record(entry), "digest": entry.digest} for entry in entries]


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


def _is_count(value: object) -> bool:
    """Exactly an int: SQLite would make one of 1.0 and of True, and the digest would differ."""
    return type(value) is int and 1 <= value <= LARGEST_WHOLE


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.utcoffset() == timedelta(0) and moment.isoformat(timespec="seconds") == text
