"""All jobs of a coordinator: submitted, approved, run side by side, resumed, cancelled, settled."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.record import require
from dovetail.agreement.signing import PREVIEW, SignedRequest, require_asked
from dovetail.agreement.terms import Terms
from dovetail.agreement.trusted import TrustedTerms
from dovetail.coordinator.job import TRANSITIONS, State
from dovetail.coordinator.journal import (
    StoreJournal,
    checkpoint_of,
    forget_checkpoints,
    job_of,
)
from dovetail.coordinator.parties import node_number
from dovetail.coordinator.progress import EventKind, JobEvent
from dovetail.coordinator.proposing import ask_previews
from dovetail.coordinator.round import Arrays
from dovetail.coordinator.run import Run, Suspended
from dovetail.coordinator.settling import settle
from dovetail.errors import DataError, DovetailError, SettingError, TransportError
from dovetail.flower.actions import Record
from dovetail.store import checkpoints
from dovetail.store.jobs import JobStore
from dovetail.store.model import load_model
from dovetail.store.records import JobRecord
from dovetail.wire.channel import Channel

MOST_JOBS = 100
"""Jobs that may be under way at once."""
PREVIEW_SECONDS = 30.0
LONGEST_DEADLINE = 24 * 3600.0
OPEN_STATES = tuple(str(state) for state, after in TRANSITIONS.items() if after)
_SETTLE_SECONDS = 60.0
_TELL_AGAIN_SECONDS = 30.0
_RETRY_SECONDS = 10.0
_LONGEST_TURN = 10.0
"""Seconds that a job waits for another one to have asked the partners for its permits."""

_logger = logging.getLogger(__name__)


@dataclass
class _Running:
    thread: threading.Thread
    cancelled: threading.Event = field(default_factory=threading.Event)


class Docket:
    """The jobs of one coordinator, over one database and one channel.

    Guarantees:
        What is answered is on the disk. A job that was under way when the coordinator died goes on
        from its last finished round when :meth:`resume` is called, and no round's number is asked
        twice.
    """

    def __init__(
        self,
        store: JobStore,
        folder: Path,
        name: str,
        trusted: TrustedTerms,
        channel: Channel,
        wait: Callable[[float, int | None], int],
        clock: Callable[[], datetime],
        tell: Callable[[JobEvent], None] = lambda _: None,
    ) -> None:
        """Opens the docket.

        Args:
            store: the coordinator's database, claimed.
            folder: the coordinator's.
            name: the coordinator's, as the terms name it.
            trusted: the terms.
            channel: where the nodes are.
            wait: waits so many seconds, or until there were more changes at the nodes than a job
                has seen (``None``: more than now); returns how many there were.
            clock: the time.
            tell: told what happens, after it was noted.
        """
        self._store, self._folder, self._name = store, folder, name
        self._trusted, self._channel, self._wait = trusted, channel, wait
        self._clock, self._tell = clock, tell
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._turns = 0  # that have ended
        self._running: dict[str, _Running] = {}
        self._suspended = threading.Event()
        self._told_again_at: dict[tuple[str, str], float] = {}

    def preview(self, signed: SignedRequest) -> dict[str, Record]:
        """What each partner would say to a request and what it would cost there; nothing runs.

        Raises:
            PolicyError: nobody who may ask did ask this.
            AgreementError: no terms are in force.
        """
        terms = self._in_force()
        require_asked(signed, terms, PREVIEW)
        return ask_previews(self._channel, signed, _nodes(terms), PREVIEW_SECONDS)

    def submit(self, signed: SignedRequest, quorum: int, deadline: float) -> JobRecord:
        """Takes a job in, and runs it as soon as everybody approves.

        Submitting the same again changes nothing.

        Args:
            signed: what is asked, by whom.
            quorum: partners without which a round does not count; 0 for more than half.
            deadline: seconds in which a node answers.

        Raises:
            PolicyError: nobody who may ask did ask this.
            AgreementError: no terms are in force.
            SettingError: quorum or deadline cannot be used, another job has this name, or too
                many jobs are under way.
        """
        terms = self._in_force()
        require_asked(signed, terms)
        partners = len(terms.partners)
        require(0 <= quorum <= partners, f"quorum must be 1 to {partners}, the partners")
        require(0 < deadline <= LONGEST_DEADLINE, "deadline must be above 0 s and at most a day")
        open_jobs = self._store.list(OPEN_STATES, limit=MOST_JOBS + 1)
        known = {record.job for record in open_jobs}
        require(
            len(known - {signed.request.job}) < MOST_JOBS,
            f"{MOST_JOBS} jobs are under way: wait for one to end, or cancel one",
        )
        new = not self._store.events(signed.request.job, limit=1)
        record = self._store.add(self._new_record(signed, quorum or partners // 2 + 1, deadline))
        if new:
            self._note(JobEvent(record.job, "submitted", 0, record.rounds, text=record.asked_by))
        if self._goes_by_itself(signed.asked_by, terms):
            self._take(record)
        elif new:
            self._note(_awaiting(record, self._name))
        return self._store.get(record.job)

    def approve(self, job: str) -> JobRecord:
        """Lets a job that waits for the coordinator's operator go to the partners.

        Raises:
            SettingError: there is no such job, or it has ended.
        """
        record = self._store.get(job)
        _require_open(record)
        self._take(record)
        return self._store.get(job)

    def cancel(self, job: str) -> JobRecord:
        """Ends a job that is under way; what it never began is free again at every partner.

        Raises:
            SettingError: there is no such job, or it has ended.
        """
        record = self._store.get(job)
        _require_open(record)
        with self._lock:
            running = self._running.get(job)
        if running is None:
            self._store.change(
                job, record.state, state=State.CANCELLED, reason="cancelled on request"
            )
            self._note(JobEvent(job, "cancelled", record.rounds_done, record.rounds))
        else:
            running.cancelled.set()
        return self._store.get(job)

    def resume(self) -> None:
        """Goes on with every job that was under way when the coordinator stopped.

        That is also a job that was kept and not yet taken: who handed it in may never ask again.
        """
        self._forget_what_ended()
        newest = self._trusted.newest
        for record in self._store.list(OPEN_STATES, limit=MOST_JOBS):
            if record.owner or (newest and self._goes_by_itself(record.asked_by, newest)):
                done, rounds = record.rounds_done, record.rounds
                self._note(JobEvent(record.job, "resumed", done, rounds))
                self._take(record)

    def suspend(self, timeout: float) -> None:
        """Stops working on all jobs and leaves them to be resumed.

        Args:
            timeout: seconds to wait for rounds that are under way; they are lost otherwise.
        """
        self._suspended.set()
        end = time.monotonic() + timeout
        with self._lock:
            threads = [running.thread for running in self._running.values()]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def settle(self) -> None:
        """Tells partners of ended jobs that did not hear of the end when it came.

        A partner that hears it and cannot keep the model, say, is not told at each call.
        """
        connected, now = set(self._channel.nodes()), time.monotonic()
        for job, partners in self._store.unsettled().items():
            reachable = {
                node_number(partner): partner
                for partner in partners
                if node_number(partner) in connected
                and now >= self._told_again_at.get((job, partner), 0.0)
            }
            with self._lock:
                busy = job in self._running
            if reachable and not busy:
                later = now + _TELL_AGAIN_SECONDS
                self._told_again_at |= {(job, partner): later for partner in reachable.values()}
                model = self._released(job)
                for node in settle(self._channel, job, reachable, _SETTLE_SECONDS, model):
                    self._store.settle_permit(job, reachable[node])
                    del self._told_again_at[job, reachable[node]]

    def _forget_what_ended(self) -> None:
        """Removes checkpoints that a coordinator which was killed at a job's end left behind."""
        for job in checkpoints.kept(self._folder):
            with suppress(SettingError):  # not the name of a job
                if self._store.get(job).state not in OPEN_STATES:
                    forget_checkpoints(self._folder, job)

    def _released(self, job: str) -> tuple[Record, Arrays] | None:
        kept = self._store.release(job)
        if kept is None:
            return None
        arrays, _ = load_model(self._folder / kept.folder)
        return kept.record, arrays

    def _goes_by_itself(self, asked_by: str, terms: Terms) -> bool:
        """Whether a job needs no word of the coordinator's operator."""
        return terms.approval == "automatic" or asked_by == self._name

    def _take(self, record: JobRecord) -> None:
        """Marks a job as ours to run, and runs it."""
        if not record.owner:
            self._store.change(record.job, record.state, owner=self._name)
        self._start(record.job)

    def _start(self, job: str) -> None:
        with self._lock:
            if job in self._running or self._suspended.is_set():
                return
            thread = threading.Thread(target=self._run, args=(job,), name=job, daemon=True)
            self._running[job] = _Running(thread)
        thread.start()

    def _run(self, job: str) -> None:
        """A job's thread: until it ends, or the coordinator does."""
        try:
            while not self._suspended.is_set() and not self._ended(job):
                try:
                    self._go_on(job)
                except Suspended:
                    _logger.info("job %s: goes on another time", job)
                except DovetailError as error:
                    _logger.warning("job %s: %s", job, error)
                except Exception:
                    _logger.exception("job %s failed", job)
                if not self._ended(job):
                    self._suspended.wait(_RETRY_SECONDS)  # the database, say, does not answer
        finally:
            with self._lock:
                del self._running[job]

    def _go_on(self, job: str) -> None:
        """Runs a job from where it stands; one that cannot be gone on with has failed."""
        record = self._store.get(job)
        try:
            run = self._prepared(record)
        except (DataError, SettingError) as error:
            self._store.change(job, record.state, state=State.FAILED, reason=str(error))
            done, rounds = record.rounds_done, record.rounds
            self._note(JobEvent(job, "failed", done, rounds, text=str(error)))
            raise
        if record.state == State.PROPOSED:
            self._store.ask_permits(job, list(run.partners.values()))
        run.run()

    def _ended(self, job: str) -> bool:
        try:
            return self._store.get(job).state not in OPEN_STATES
        except (DataError, TransportError) as error:
            _logger.warning("job %s: %s", job, error)
            return False

    def _prepared(self, record: JobRecord) -> Run:
        signed = _signed(record)
        terms = self._terms_of(record)
        standing = job_of(record, signed.request)
        journal = StoreJournal(self._store, self._folder, terms, standing, self._clock)
        with self._lock:
            cancelled = self._running[record.job].cancelled
        return Run(
            signed,
            terms,
            self._channel,
            _nodes(terms),
            quorum=record.quorum,
            deadline=record.deadline,
            journal=journal,
            on_event=self._note,
            wait=self._noticing(),
            card_of=journal.card_record,
            cancelled=cancelled,
            suspended=self._suspended,
            turn=self._turn,
            standing=standing,
            checkpoint=checkpoint_of(record, self._folder),
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One job at a time asks all partners for permits, unless one takes too long.

        Of two that want the last of a budget, one is then the first at every partner, and gets it;
        else each could be the first somewhere, and neither would.
        """
        taken = self._taken_turn()
        try:
            yield
        finally:
            if taken:
                self._turns += 1
                self._asking.release()

    def _taken_turn(self) -> bool:
        """Waits for any number of turns, and for none of them longer than it may take."""
        while True:
            turns = self._turns
            if self._asking.acquire(timeout=_LONGEST_TURN):
                return True
            if turns == self._turns:
                return False

    def _noticing(self) -> Callable[[float], None]:
        """Waits for one job, which misses no change between two of its waits."""
        seen = self._wait(0.0, None)

        def wait(seconds: float) -> None:
            nonlocal seen
            seen = self._wait(seconds, seen)

        return wait

    def _terms_of(self, record: JobRecord) -> Terms:
        for signed in self._trusted.chain:
            if agreed.digest(signed.terms) == record.terms_digest:
                return signed.terms
        raise SettingError(f"job {record.job!r} runs under terms that are not known here")

    def _in_force(self) -> Terms:
        return self._trusted.in_force(self._clock().date())

    def _note(self, event: JobEvent) -> None:
        """Tells people; that they miss something is no reason to stop."""
        try:
            self._store.append_event(event.job, event.kind, event.round, event.partner, event.text)
        except (DataError, TransportError) as error:
            _logger.warning("job %s: %s is not noted: %s", event.job, event.kind, error)
        self._tell(event)

    def _new_record(self, signed: SignedRequest, quorum: int, deadline: float) -> JobRecord:
        return JobRecord(
            job=signed.request.job,
            request=requests.to_record(signed.request),
            request_digest=requests.digest(signed.request),
            terms_digest=signed.terms_digest,
            asked_by=signed.asked_by,
            signature=signed.signature,
            quorum=quorum,
            deadline=deadline,
            rounds=signed.request.task.rounds,
        )


def _nodes(terms: Terms) -> dict[int, str]:
    return {node_number(partner.name): partner.name for partner in terms.partners}


def _require_open(record: JobRecord) -> None:
    ended = f"job {record.job!r} has ended: it is {record.state}"
    require(record.state in OPEN_STATES, ended)


def _signed(record: JobRecord) -> SignedRequest:
    request = requests.from_record(json.loads(json.dumps(record.request)))
    return SignedRequest(request, record.terms_digest, record.asked_by, record.signature)


def _awaiting(record: JobRecord, coordinator: str) -> JobEvent:
    kind: EventKind = "awaiting"
    text = "waits for the coordinator's operator to approve it"
    return JobEvent(record.job, kind, 0, record.rounds, coordinator, text)
