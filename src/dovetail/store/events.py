"""What happened to jobs, in order, for whoever watches them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from threading import Condition

import sqlalchemy as sa

from dovetail.store.database import Database, Purpose
from dovetail.store.records import EventRecord, utc
from dovetail.store.tables import EVENTS

Clock = Callable[[], datetime]


class EventLog:
    """The events in a database. Several threads may use it.

    A sequence is seen only after every smaller one: who has read up to it has missed nothing.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Over a database that is open, with the time, with its zone."""
        self._database, self._clock = database, clock
        self._news, self._closed = Condition(), False
        with database.read() as connection:
            self._newest = _newest(connection)

    def close(self) -> None:
        """Wake who waits for events, let go of the database."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._database.close()

    def append_event(
        self, job: str, kind: str, round_number: int = 0, partner: str = "", text: str = ""
    ) -> int:
        """Note what happened to a job.

        Returns:
            The event's sequence: larger than that of every event before.

        Raises:
            LocalProtocolError: there is no such job.
        """
        values = {"job": job, "kind": kind, "round": round_number, "partner": partner, "text": text}
        statement = EVENTS.insert().values(**values, time=self._now())
        with self._database.write() as connection:
            self._database.lock(connection, Purpose.APPEND_EVENT)
            connection.execute(statement)
            sequence = _newest(connection)
        with self._news:
            self._newest = max(self._newest, sequence)
            self._news.notify_all()
        return sequence

    def events(
        self, job: str | None = None, after: int = 0, limit: int = 1000
    ) -> tuple[EventRecord, ...]:
        """What happened after the event ``after``, in order, to one job or to all.

        Args:
            job: the job's name; ``None`` for all.
            after: the sequence of the last event known; 0 for none.
            limit: at most so many.
        """
        query = sa.select(EVENTS).where(EVENTS.c.sequence > after)
        if job is not None:
            query = query.where(EVENTS.c.job == job)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.sequence).limit(limit))
            return tuple(EventRecord(**row._mapping) for row in rows)

    def wait_for_events(self, after: int, timeout: float) -> int:
        """Wait until this process appends an event after ``after``, or closes the store.

        Args:
            after: the sequence that this method, or :meth:`append_event`, returned last.
            timeout: at most so many seconds.

        Returns:
            The sequence of the newest event that is known: what to wait after next time, whether
            or not it was of the job that one watches.
        """
        with self._news:
            self._news.wait_for(lambda: self._closed or self._newest > after, timeout)
            return self._newest

    def _now(self) -> str:
        return utc(self._clock())


def _newest(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.select(sa.func.max(EVENTS.c.sequence))) or 0)
