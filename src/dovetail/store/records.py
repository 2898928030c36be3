"""What a coordinator keeps, as plain data, and how it stands in a row of the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from dovetail.crypto.canonical import canonical_bytes
from dovetail.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class JobRecord:
    """One job as it is kept.

    Attributes:
        job: its name, unique.
        request: what is asked, as a JSON record.
        request_digest: of the request.
        terms_digest: of the terms it runs under.
        asked_by: the party that asked.
        signature: of the asker.
        quorum: partners without which a round does not count.
        deadline: seconds in which a node answers.
        rounds: rounds that the job is to have.
        state: a word of :class:`dovetail.coordinator.job.State`.
        round_asked: number of the last round that was asked; 0 before the first.
        rounds_done: how many rounds were finished.
        lost_rounds: how many were asked and will never be finished.
        checkpoint_round: number of the last round that was finished; 0 before the first.
        checkpoint: digest of the checkpoint after that round; empty before the first.
        reason: why it ended, for every end but ``released``.
        owner: who runs it.
        created: when it was added; ISO 8601, UTC.
        updated: when it last changed.
    """

    job: str
    request: Record
    request_digest: str
    terms_digest: str
    asked_by: str
    signature: str
    quorum: int
    deadline: float
    rounds: int
    state: str = "proposed"
    round_asked: int = 0
    rounds_done: int = 0
    lost_rounds: int = 0
    checkpoint_round: int = 0
    checkpoint: str = ""
    reason: str = ""
    owner: str = ""
    created: str = ""
    updated: str = ""

    @property
    def round_open(self) -> bool:
        """Whether the round that was asked last is neither finished nor lost."""
        return self.rounds_done + self.lost_rounds < self.round_asked


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to a job.

    Attributes:
        sequence: grows with every event of the database.
        time: when; ISO 8601, UTC.
        job: to which job.
        kind: what; a word of :class:`dovetail.coordinator.app.JobEvent`.
        round: in which round; 0 before the first.
        partner: whom it concerns; empty where all.
        text: why, where there is a reason.
    """

    sequence: int
    time: str
    job: str
    kind: str
    round: int
    partner: str
    text: str


@dataclass(frozen=True)
class PermitRecord:
    """A partner's permit for a job.

    Attributes:
        job: for which job.
        partner: whose.
        record: the permit, as a JSON record.
        signature: of the partner's node.
        time: when it was kept; ISO 8601, UTC.
        settled: whether the partner knows that the job ended.
    """

    job: str
    partner: str
    record: Record
    signature: str
    time: str
    settled: bool


@dataclass(frozen=True)
class ReleaseRecord:
    """What a job released: its card's record, and the folder that holds the model."""

    job: str
    record: Record
    folder: str
    time: str


def job_record(row: sa.Row[Any]) -> JobRecord:
    """The job that stands in a row without its number."""
    values = dict(row._mapping)
    return JobRecord(**{**values, "request": parsed(values["request"])})


def with_record(row: sa.Row[Any]) -> dict[str, Any]:
    """A row's values by column, its JSON parsed."""
    values = dict(row._mapping)
    return {**values, "record": parsed(values["record"])}


def as_text(record: Record) -> str:
    """A JSON record as it is kept: in its canonical form, so that equal ones are equal texts.

    Raises:
        LocalProtocolError: it is no JSON value.
    """
    return canonical_bytes(record).decode()


def parsed(text: str) -> dict[str, Any]:
    """The record that :func:`as_text` wrote.

    Raises:
        DataError: the text is something else.
    """
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError("the database is damaged: a record in it is not JSON")
    return record


def utc(now: datetime) -> str:
    """A time as it is kept: ISO 8601, in UTC, to the microsecond."""
    return now.astimezone(UTC).isoformat(timespec="microseconds")
