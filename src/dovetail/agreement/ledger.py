"""What one partner has promised and spent, and the rules by which it may spend more.

::

    entry     stands before               needs                               charges
    reserve   the first row of a job      a job never seen; budget            count
    begin     the rows of a round         an open job; a round never          what its reservation
                                          committed; if begun before: the     no longer covers (only
                                          same count, and budget; no more     after a begin again)
                                          than twice the reservation drawn
    commit    the first byte of a round   an open job; that round begun,      nothing
                                          not committed
    cancel    nothing more of a job       an open job                         minus what was never
                                                                              begun

A job is open from its *reserve* to its *cancel*, and takes place once: its name is never free
again. The first attempts at its rounds together draw at most what it reserved. A round that was
begun and never committed, because something crashed, may be begun again; each attempt draws
``count`` more, since the first may have computed something, and where the reservation no longer
covers what is drawn, the difference is charged on top, until all attempts have drawn
:data:`MOST_DRAWN` times what was reserved.

A job has charged ``max(reserved, drawn)`` while it is open and ``drawn`` once it is cancelled.
Entries hold events and never epsilons; ε is computed from all that is charged.

A budget covers one period at a time (``Budget.period``). A job belongs to the period in which it
was reserved: all that it ever draws is charged there, and what it gives back is given back there,
however late. A period ends when an entry lies in a later one; nothing is reserved in it any more,
or a clock set back could spend what is left of all the past.

::

    time of an entry                    decided                 read back
    in the period of the last entry     in that period          in that period
    in a later period                   in that later period    in that later period
    in an earlier period                never: the clock went   as if it lay in the period of the
                                        backwards               last entry

The last cell is for terms that changed: a history is allowed to go back by a day under a budget
that never refills, and must still be readable when it is later divided into months. A job that is
read back so is charged to a period that still counts, and not to one that is over.

Guarantees:
    ε of all that was charged within one period never exceeds the budget under which it was
    decided: a crash at any point wastes budget and never overspends it. No job is charged more than
    :data:`MOST_DRAWN` times what it reserved. No committed round can be begun or committed again.
    Changing, dropping, inserting or reordering entries is found when they are read back, except
    that a chain cannot know of entries cut off its end (an old copy put back): compare
    :attr:`Ledger.head` with one noted elsewhere for that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime

from dovetail.agreement.entry import GENESIS, Entry, time_of
from dovetail.agreement.record import require
from dovetail.agreement.terms import Budget
from dovetail.errors import DovetailError, LedgerError, PolicyError
from dovetail.privacy import accountant
from dovetail.privacy.accountant import Accountant
from dovetail.privacy.event import Event, Spending

MOST_DRAWN = 2
"""How many times its reservation a job may draw, all attempts together: who asks a round again and
again burns no more of a budget, and every round can still crash once and be begun again."""


@dataclass(frozen=True)
class JobSpending:
    """What one job has promised and drawn.

    Attributes:
        request_digest: of the request it was reserved for.
        event: what each of its steps releases.
        reserved: how often it was promised.
        reserved_at: time of its reservation, in UTC, ISO 8601 to the second.
        period: the budget's period that all of it is charged to, as ``Budget.period_of`` names it.
        drawn: how often it was begun, every attempt counted.
        drawn_once: how often it was begun, only first attempts counted; <= ``reserved``.
        rounds_begun: rounds begun at least once.
        rounds_committed: rounds committed.
        cancelled: whether it accepts nothing more.
    """

    request_digest: str
    event: Event
    reserved: int
    reserved_at: str
    period: str
    drawn: int = 0
    drawn_once: int = 0
    rounds_begun: int = 0
    rounds_committed: int = 0
    cancelled: bool = False

    @property
    def charged(self) -> int:
        """How often :attr:`event` is charged for this job."""
        return self.drawn if self.cancelled else max(self.reserved, self.drawn)


@dataclass(frozen=True)
class _Round:
    count: int
    committed: bool


class Ledger:
    """What the entries so far add up to; decides which entry may come next.

    Deciding changes nothing; :meth:`apply` does, with an entry that was decided (and, where there
    is a file, written) or is read back. Every step costs the same however long the history: what
    is charged is counted by kind of event, and mostly an upper bound on its ε decides.
    """

    def __init__(self, budget: Budget) -> None:
        """Begin with no entries, under ``budget``."""
        self.budget = budget
        self._accountant = Accountant()
        self._jobs: dict[str, JobSpending] = {}
        self._open: dict[str, None] = {}
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._charged: dict[str, dict[Event, int]] = {}
        self._period = ""
        self._head = GENESIS
        self._length = 0

    @property
    def head(self) -> str:
        """Digest of the last entry: names the whole history."""
        return self._head

    @property
    def length(self) -> int:
        """Number of entries."""
        return self._length

    def period(self, now: datetime) -> str:
        """The period in which a job would be reserved now: never one before the last entry's."""
        return max(self._period, self.budget.period_of(now))

    def periods(self) -> tuple[str, ...]:
        """The periods in which something is charged, in order."""
        return tuple(sorted(self._charged))

    def spending(self, period: str | None = None) -> dict[Event, int]:
        """How often each event is charged, in one period (else in all of them together)."""
        total: Counter[Event] = Counter()
        for each in self.periods() if period is None else (period,):
            total.update(dict(self._charged.get(each, {})))
        return dict(total)

    def spending_by_job(self) -> dict[str, JobSpending]:
        """What each job has promised and drawn, in the order in which they were reserved."""
        return dict(self._jobs)

    def job(self, name: str) -> JobSpending | None:
        """What one job has promised and drawn, or ``None`` where it was never reserved."""
        return self._jobs.get(name)

    def open_jobs(self) -> tuple[str, ...]:
        """Jobs that were reserved and not cancelled, in the order in which they were reserved."""
        return tuple(self._open)

    def epsilon(self, delta: float | None = None, period: str | None = None) -> float:
        """ε of all that is charged in one period (else ever), at ``delta`` (else the budget's)."""
        return self._accountant.epsilon(self.spending(period), delta or self.budget.delta)

    def epsilon_of(self, spending: Spending, delta: float) -> float:
        """ε of any spending."""
        return accountant.epsilon(spending, delta)

    def remaining(self, now: datetime) -> float:
        """The budget's ε less what is charged in this period; two jobs cost less than their sum."""
        return max(0.0, self.budget.epsilon - self.epsilon(period=self.period(now)))

    def would_fit(self, event: Event, count: int, now: datetime) -> bool:
        """Whether the budget covers ``count`` of ``event`` besides all that is charged now."""
        return self._covers(self.period(now), event, count)

    def fits_alone(self, event: Event, count: int, epsilon: float) -> bool:
        """Whether ``count`` of ``event`` by themselves cost at most ``epsilon``."""
        return accountant.fits({event: count}, self.budget.delta, epsilon)

    def decide_reserve(
        self, job: str, request_digest: str, event: Event, count: int, now: datetime
    ) -> Entry:
        """Promise ``count`` of ``event`` to ``job``.

        Raises:
            PolicyError: rule ``budget``; it would not fit.
            LedgerError: the job was reserved before, or the clock went backwards.
        """
        place = self._length + 1, self._head, time_of(now)
        entry = Entry(*place, "reserve", job, None, request_digest, event, count)
        return self._decide(entry)

    def decide_begin(self, job: str, round_number: int, count: int, now: datetime) -> Entry:
        """Draw ``count`` for one attempt at a round, before its rows are read.

        Raises:
            PolicyError: rule ``budget``; attempts were repeated, and this would not fit.
            LedgerError: the job is not open or its reservation too small, the round was committed
                before, or begun with another count, the attempts would draw more than
                :data:`MOST_DRAWN` times what was reserved, or the clock went backwards.
        """
        place = self._length + 1, self._head, time_of(now)
        return self._decide(Entry(*place, "begin", job, round=round_number, count=count))

    def decide_commit(self, job: str, round_number: int, now: datetime) -> Entry:
        """Record that a round's contribution leaves, before its first byte does.

        Raises:
            LedgerError: the job is not open, the round not begun or already committed, or the
                clock went backwards.
        """
        place = self._length + 1, self._head, time_of(now)
        return self._decide(Entry(*place, "commit", job, round=round_number))

    def decide_cancel(self, job: str, now: datetime) -> Entry:
        """Give back what the job never began; it accepts nothing more.

        Raises:
            LedgerError: the job is not open, or the clock went backwards.
        """
        place = self._length + 1, self._head, time_of(now)
        return self._decide(Entry(*place, "cancel", job))

    def apply(self, entry: Entry) -> None:
        """Add an entry, after checking its place in the chain and every rule but the limits.

        Budget, clock and :data:`MOST_DRAWN` are checked when an entry is decided: terms may since
        have lowered the budget or divided time anew, and a history that was allowed then must still
        be readable.

        Raises:
            LedgerError: the entry cannot stand here; the message names its place, and nothing
                has changed.
        """
        try:
            require(entry.sequence == self._length + 1, "is out of order")
            require(entry.previous == self._head, "does not follow from the entry before it")
            after, digest = self._after(entry), entry.digest
        except DovetailError as error:
            raise LedgerError(f"ledger entry {self._length + 1}: {error}") from None
        if charge := self._charge(entry.job, after):
            self._add(after, charge)
        self._jobs[entry.job] = after
        self._open[entry.job] = None
        if after.cancelled:
            del self._open[entry.job]
        self._apply_round(entry)
        self._period = self.period(entry.moment)
        self._head, self._length = digest, entry.sequence

    def _add(self, job: JobSpending, count: int) -> None:
        charged = self._charged.setdefault(job.period, {})
        charged[job.event] = charged.get(job.event, 0) + count
        if not charged[job.event]:
            del charged[job.event]
        if not charged:
            del self._charged[job.period]

    def _apply_round(self, entry: Entry) -> None:
        if entry.round is None:
            return
        known = self._rounds.get((entry.job, entry.round))
        count = entry.count or (known.count if known else 0)
        self._rounds[entry.job, entry.round] = _Round(count, entry.kind == "commit")

    def _decide(self, entry: Entry) -> Entry:
        forwards = self.budget.period_of(entry.moment) >= self._period
        _require(forwards, "the clock went backwards, to before a period that has begun")
        after = self._after(entry)
        _require(
            entry.kind != "begin" or after.drawn <= MOST_DRAWN * after.reserved,
            f"the job's rounds were begun too often: {MOST_DRAWN} times what it reserved is drawn",
        )
        charged = self._charge(entry.job, after)
        if charged > 0 and not self._covers(after.period, after.event, charged):
            raise PolicyError("budget", "what is left of the privacy budget does not cover this")
        return entry

    def _covers(self, period: str, event: Event, count: int) -> bool:
        charged, budget = self.spending(period), self.budget
        return self._accountant.fits(charged, {event: count}, budget.delta, budget.epsilon)

    def _charge(self, job: str, after: JobSpending) -> int:
        return after.charged - (self._jobs[job].charged if job in self._jobs else 0)

    def _after(self, entry: Entry) -> JobSpending:
        """What the entry makes of its job; raises where a rule forbids it."""
        before = self._jobs.get(entry.job)
        if entry.event is not None:
            _require(before is None, "this job was reserved before; a job takes place once")
            period, digest = self.period(entry.moment), entry.request_digest or ""
            return JobSpending(digest, entry.event, entry.count or 0, entry.time, period)
        if before is None or before.cancelled:
            raise LedgerError("this job is not open: never reserved, or cancelled")
        if entry.round is None:
            return replace(before, cancelled=True)
        known = self._rounds.get((entry.job, entry.round))
        if known is not None and known.committed:
            raise LedgerError("this round was committed before; it is never answered again")
        if entry.count is None:
            _require(known is not None, "this round was never begun")
            return replace(before, rounds_committed=before.rounds_committed + 1)
        return _after_begin(before, known, entry.count)


def _after_begin(before: JobSpending, known: _Round | None, count: int) -> JobSpending:
    if known is not None:
        _require(known.count == count, "this round was begun before, with another count")
        return replace(before, drawn=before.drawn + count)
    _require(before.drawn_once + count <= before.reserved, "the job's reservation is used up")
    return replace(
        before,
        drawn=before.drawn + count,
        drawn_once=before.drawn_once + count,
        rounds_begun=before.rounds_begun + 1,
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LedgerError(message)
