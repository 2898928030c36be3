"""What a coordinator must not forget: jobs, permits, agreements, releases, and what happened.

Every write is one transaction and on the disk when it returns. A change of a job names what must
hold for it, and the database compares and sets in one statement: of two who want the same change,
one gets it and the other a :class:`LocalProtocolError`.

Guarantees:
    A round's number is asked once: :meth:`JobStore.begin_round` returns once for each, whatever
    crashes. ``rounds_done + lost_rounds`` is ``round_asked``, or one less while a round is open.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa

from dovetail.errors import LocalProtocolError, RemoteProtocolError, SettingError
from dovetail.store import claim as claims
from dovetail.store.database import LOCK_TIMEOUT, Database
from dovetail.store.events import Clock, EventLog
from dovetail.store.records import (
    JobRecord,
    PermitRecord,
    Record,
    ReleaseRecord,
    as_text,
    job_record,
    parsed,
    with_record,
)
from dovetail.store.tables import AGREEMENTS, JOBS, PERMITS, RELEASES

RUNNING = "running"
ENDED = ("released", "refused", "failed", "cancelled")
"""States that a job does not leave."""
_NO_PERMIT = "null"
"""Stands in the place of a permit that was asked for."""
_JOB_COLUMNS = [column for column in JOBS.c if column is not JOBS.c.number]
_JOBS = sa.select(*_JOB_COLUMNS)
_ROUND_OPEN = JOBS.c.rounds_done + JOBS.c.lost_rounds < JOBS.c.round_asked


class JobStore(EventLog):
    """The database of one coordinator. Several threads may use it.

    Every method raises :class:`DataError` where the database cannot be read or written, and
    :class:`TransportError` where it does not answer or another process holds it: the change can be
    tried again.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Over a database that is open; see :meth:`open`."""
        super().__init__(database, clock)
        self._claim: claims.FileClaim | claims.SessionClaim | None = None

    @classmethod
    def open(cls, place: str | Path, clock: Clock, lock_timeout: float = LOCK_TIMEOUT) -> JobStore:
        """Open a coordinator's database, made and brought up to date where necessary.

        Args:
            place: a SQLite file's path, or ``postgresql://USER@HOST/NAME``.
            clock: the time, with its zone.
            lock_timeout: seconds to wait for another process that writes.

        Raises:
            SettingError: the place cannot be used, holds something else, or was written by a
                later version; or PostgreSQL's driver is missing.
        """
        database = Database(place, lock_timeout)
        try:
            return cls(database, clock)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> JobStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the claim, wake who waits for events, let go of the database."""
        self.release_claim()
        super().close()

    def claim(self, holder: str) -> None:
        """Become the one coordinator of this database, until closed or the process ends.

        Args:
            holder: who takes it, for the message that another one gets.

        Raises:
            SettingError: another holds it.
        """
        if self._claim is None:
            self._claim = claims.claim(self._database, holder)

    def renew(self) -> None:
        """Check that the claim still holds.

        Raises:
            TransportError: it was lost; no job may go on before it is claimed again.
            LocalProtocolError: it was never taken.
        """
        if self._claim is None:
            raise LocalProtocolError("the database was not claimed")
        try:
            self._claim.renew()
        except Exception:
            self.release_claim()
            raise

    def release_claim(self) -> None:
        """Let another coordinator have the database."""
        taken, self._claim = self._claim, None
        if taken is not None:
            taken.release()

    def add(self, record: JobRecord) -> JobRecord:
        """Keep a new job; its times are the clock's.

        Returns:
            The job as it stands: the one that was added before, if it is the same request of the
            same asker under the same terms.

        Raises:
            SettingError: another job has this name.
        """
        values = {**vars(record), "request": as_text(record.request)}
        values["created"] = values["updated"] = self._now()
        statement = self._database.insert(JOBS).values(values).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(statement)
            stored = connection.execute(_JOBS.where(JOBS.c.job == record.job)).one()
        same = ("request", "request_digest", "terms_digest", "asked_by")
        if any(getattr(stored, name) != values[name] for name in same):
            raise SettingError(f"another job is named {record.job!r}: choose another name")
        return job_record(stored)

    def get(self, job: str) -> JobRecord:
        """The job of this name.

        Raises:
            SettingError: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(_JOBS.where(JOBS.c.job == job)).one_or_none()
        if row is None:
            raise _unknown(job)
        return job_record(row)

    def list(
        self, states: Collection[str] | None = None, limit: int = 100, before: str | None = None
    ) -> tuple[JobRecord, ...]:
        """Jobs, newest first.

        Args:
            states: only those in one of these states; ``None`` for all.
            limit: at most so many.
            before: only those added before the job of this name.

        Raises:
            SettingError: there is no job named ``before``.
        """
        query = _JOBS.order_by(JOBS.c.number.desc()).limit(limit)
        if states is not None:
            query = query.where(JOBS.c.state.in_(list(states)))
        if before is not None:
            self.get(before)
            number = sa.select(JOBS.c.number).where(JOBS.c.job == before).scalar_subquery()
            query = query.where(JOBS.c.number < number)
        with self._database.read() as connection:
            return tuple(job_record(row) for row in connection.execute(query))

    def change(
        self,
        job: str,
        expected: str,
        *,
        state: str | None = None,
        reason: str | None = None,
        owner: str | None = None,
    ) -> JobRecord:
        """Change a job that is in the state ``expected``; what is ``None`` stays.

        Raises:
            LocalProtocolError: it is in another state by now.
            SettingError: there is no such job.
        """
        given = {"state": state, "reason": reason, "owner": owner}
        values = {name: value for name, value in given.items() if value is not None}
        refusal = f"the job is not {expected} any more"
        return self._set(job, JOBS.c.state == expected, values, refusal)

    def begin_round(self, job: str, number: int) -> JobRecord:
        """Note that a round is asked, before it is.

        Args:
            job: which is running.
            number: the round's, one more than ``round_asked``.

        Raises:
            LocalProtocolError: the job is not running, the number was asked before or is not the
                next, or the round before is still open.
        """
        next_one = sa.and_(
            JOBS.c.state == RUNNING, JOBS.c.round_asked == number - 1, sa.not_(_ROUND_OPEN)
        )
        refusal = "only a running job's next round can be asked, and once"
        return self._set(job, next_one, {"round_asked": number}, refusal)

    def finish_round(self, job: str, number: int, checkpoint: str) -> JobRecord:
        """Note that the round which was asked is finished, and its checkpoint on the disk.

        Args:
            job: which is running.
            number: the round's.
            checkpoint: the digest that :func:`dovetail.store.checkpoints.save` returned.

        Raises:
            LocalProtocolError: the job is not running, or this round is not the open one.
        """
        values = {
            "rounds_done": JOBS.c.rounds_done + 1,
            "checkpoint_round": number,
            "checkpoint": checkpoint,
        }
        open_one = sa.and_(JOBS.c.state == RUNNING, JOBS.c.round_asked == number, _ROUND_OPEN)
        return self._set(job, open_one, values, "only a running job's open round can be finished")

    def lose_round(self, job: str) -> JobRecord:
        """Note that the round which was asked will never be finished.

        Raises:
            LocalProtocolError: the job is not running, or no round is open.
        """
        open_one = sa.and_(JOBS.c.state == RUNNING, _ROUND_OPEN)
        values = {"lost_rounds": JOBS.c.lost_rounds + 1}
        return self._set(job, open_one, values, "only a running job's open round can be lost")

    def _set(
        self, job: str, condition: sa.ColumnElement[bool], values: Record, refusal: str
    ) -> JobRecord:
        statement = JOBS.update().where(JOBS.c.job == job, condition)
        statement = statement.values({**values, "updated": self._now()})
        with self._database.write() as connection:
            changed = connection.execute(statement).rowcount
            row = connection.execute(_JOBS.where(JOBS.c.job == job)).one_or_none()
        if row is None:
            raise _unknown(job)
        if not changed:
            raise LocalProtocolError(refusal)
        return job_record(row)

    def put_permit(self, job: str, partner: str, record: Record, signature: str) -> None:
        """Keep a partner's permit, in place of the same that named an earlier head of its ledger.

        Raises:
            LocalProtocolError: there is no such job.
            RemoteProtocolError: another permit of this partner is kept for the job.
        """
        values = {
            "record": as_text(record),
            "signature": signature,
            "time": self._now(),
            "settled": False,
        }
        statement = self._database.insert(PERMITS).values(job=job, partner=partner, **values)
        statement = statement.on_conflict_do_update(index_elements=["job", "partner"], set_=values)
        this_one = sa.and_(PERMITS.c.job == job, PERMITS.c.partner == partner)
        with self._database.write() as connection:
            kept = connection.scalar(sa.select(PERMITS.c.record).where(this_one))
            if kept not in (None, _NO_PERMIT) and _but_head(parsed(kept)) != _but_head(record):
                raise RemoteProtocolError("this partner gave another permit for this job before")
            connection.execute(statement)

    def ask_permits(self, job: str, partners: Collection[str]) -> None:
        """Note that partners are asked for their permits, before they are.

        A permit may be lost on its way, and its partner still has to be told how the job ended.

        Raises:
            LocalProtocolError: there is no such job.
        """
        asked = {
            "job": job,
            "record": _NO_PERMIT,
            "signature": "",
            "time": self._now(),
            "settled": False,
        }
        rows = [{**asked, "partner": partner} for partner in partners]
        statement = self._database.insert(PERMITS).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(statement, rows)

    def permits(self, job: str) -> dict[str, PermitRecord]:
        """The permits for a job, by partner."""
        query = sa.select(PERMITS).where(PERMITS.c.job == job, PERMITS.c.record != _NO_PERMIT)
        query = query.order_by(PERMITS.c.partner)
        with self._database.read() as connection:
            rows = [with_record(row) for row in connection.execute(query)]
        return {row["partner"]: PermitRecord(**row) for row in rows}

    def settle_permit(self, job: str, partner: str) -> None:
        """Note that a partner knows that a job ended; nothing where it was never asked."""
        this_one = sa.and_(PERMITS.c.job == job, PERMITS.c.partner == partner)
        with self._database.write() as connection:
            connection.execute(PERMITS.update().where(this_one).values(settled=True))

    def unsettled(self) -> dict[str, tuple[str, ...]]:
        """The partners that were asked for a job and do not know that it ended, by ended job."""
        query = sa.select(PERMITS.c.job, PERMITS.c.partner).join(JOBS)
        query = query.where(JOBS.c.state.in_(ENDED), sa.not_(PERMITS.c.settled))
        found: dict[str, tuple[str, ...]] = {}
        with self._database.read() as connection:
            for job, partner in connection.execute(query.order_by(JOBS.c.number, "partner")):
                found[job] = (*found.get(job, ()), partner)
        return found

    def put_agreement(self, version: int, signed: Record) -> None:
        """Keep the next version of the agreement, signed; the same again changes nothing.

        Raises:
            SettingError: it is not the next version, or another one stands under its number.
        """
        text, values = as_text(signed), {"version": version, "time": self._now()}
        statement = self._database.insert(AGREEMENTS).values(**values, signed=text)
        newest = sa.select(sa.func.coalesce(sa.func.max(AGREEMENTS.c.version), 0))
        stored = sa.select(AGREEMENTS.c.signed).where(AGREEMENTS.c.version == version)
        with self._database.write() as connection:
            last = connection.scalar(newest)
            if version == (last or 0) + 1:
                connection.execute(statement.on_conflict_do_nothing())
            found = connection.scalar(stored)
        if found is None:
            raise SettingError(f"version {version} of the agreement is not the next one")
        if found != text:
            raise SettingError(f"another version {version} of the agreement is kept already")

    def agreements(self) -> tuple[Record, ...]:
        """All versions of the agreement, signed, from the first."""
        with self._database.read() as connection:
            rows = connection.scalars(sa.select(AGREEMENTS.c.signed).order_by(AGREEMENTS.c.version))
            return tuple(parsed(text) for text in rows)

    def put_release(self, job: str, record: Record, folder: str) -> None:
        """Keep what a running job releases, in place of what was kept before a crash.

        Raises:
            LocalProtocolError: the job is not running.
        """
        values = {"record": as_text(record), "folder": folder, "time": self._now()}
        statement = self._database.insert(RELEASES).values(job=job, **values)
        statement = statement.on_conflict_do_update(index_elements=["job"], set_=values)
        running = sa.select(JOBS.c.job).where(JOBS.c.job == job, JOBS.c.state == RUNNING)
        with self._database.write() as connection:
            if connection.scalar(running.with_for_update()) is None:
                raise LocalProtocolError("only a running job can release something")
            connection.execute(statement)

    def release(self, job: str) -> ReleaseRecord | None:
        """What a job released; ``None`` where it did not."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(RELEASES).where(RELEASES.c.job == job)).one_or_none()
        return None if row is None else ReleaseRecord(**with_record(row))


def _but_head(permit: Record) -> dict[str, object]:
    """A permit but for what may differ where it is given again."""
    return {name: value for name, value in permit.items() if name != "ledger_head"}


def _unknown(job: str) -> SettingError:
    return SettingError(f"there is no job named {job[:64]!r}")
