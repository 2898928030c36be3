"""The one gate: what is asked is judged here, and paid for here, before any row is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Literal

from dovetail.agreement.cost import cost_of
from dovetail.agreement.ledger import JobSpending
from dovetail.agreement.permit import Permit, permit_end, permit_of
from dovetail.agreement.policy import (
    COST_RULES,
    NodePolicy,
    judge,
    needs_approval,
    require_allowed,
)
from dovetail.agreement.request import Request, digest
from dovetail.agreement.signing import PREVIEW, SignedRequest, require_asked, require_asker
from dovetail.agreement.terms import Terms
from dovetail.errors import PolicyError, PrivacyError, SchemaError, SettingError
from dovetail.privacy import accountant
from dovetail.store.admissions import Admissions, Admitted, schema_digest
from dovetail.store.ledger import LedgerStore

Clock = Callable[[], datetime]
Decision = Literal["approved", "refused"]
Decisions = Callable[[SignedRequest], Decision | None]
"""What a person at this partner said to a request, as it was asked, and what still counts;
``None`` where nobody has said anything."""


@dataclass(frozen=True)
class Preview:
    """What a partner would say to a request, and what it would cost there.

    Attributes:
        refused_by: the rule that would refuse it; empty where none would.
        text: why, where it would.
        needs_approval: whether a person would have to say yes.
        epsilon: of the job alone, at the budget's δ, for somebody who is a customer of this partner
            only; an upper bound where a rule refuses it that is not about cost.
        charged: ε of what the ledger would be charged: for somebody who is a customer of every
            partner, where the terms say that there may be such and the noise is shared; else the
            same.
        remaining: of the period's budget, before the job.
    """

    refused_by: str
    text: str
    needs_approval: bool
    epsilon: float
    charged: float
    remaining: float


class Gate:
    """Admits requests at one partner, on its own terms and its own ledger.

    Guarantees: nothing passes that the terms, the node's stricter policy or the budget refuse;
    a job's whole cost is reserved before its first row is read; a round is charged before its
    rows are read and committed before its contribution leaves; no round is answered twice. Each
    round is judged by the terms now in force, whichever admitted its job: who asked may still ask,
    nothing that it uses is declared otherwise, every rule but those on cost still holds.
    """

    def __init__(
        self,
        terms: Terms,
        partner: str,
        ledger: LedgerStore,
        cohort: int,
        policy: NodePolicy,
        clock: Clock,
        decisions: Decisions,
        admissions: Admissions,
    ) -> None:
        """Opens the gate.

        Args:
            terms: what the partners agreed.
            partner: whose gate this is.
            ledger: this partner's ledger.
            cohort: the partner's number of customers; private, only ever compared.
            policy: the partner's own, stricter rules.
            clock: the time, with its zone.
            decisions: what people here said to requests.
            admissions: who asked for the jobs that are admitted here.
        """
        self._terms = terms
        self._partner = partner
        self._ledger = ledger
        self._cohort = cohort
        self._policy = policy
        self._clock = clock
        self._decisions = decisions
        self._admissions = admissions
        self._turn = Lock()
        """Held from judging a job until it is reserved, or two could be judged by one ledger."""

    def preview(self, signed: SignedRequest) -> Preview:
        """Judges a request, and charges nothing.

        Raises:
            PolicyError: rule ``terms``, ``party`` or ``role``: who may not ask, or did not, learns
                nothing of what is left of a budget. Or rule ``epsilon``: no ε can be stated for
                what is asked.
            LedgerError: the ledger cannot be read.
        """
        require_asked(signed, self._terms, PREVIEW)
        refused_by, text = "", ""
        try:
            self._judge(signed)
        except PolicyError as error:
            refused_by, text = error.rule, str(error).removeprefix(f"{error.rule}: ")
        ledger, task = self._ledger.refresh(), signed.request.task
        # Beyond the terms' limits an exact answer could take minutes.
        within = refused_by in ("", *COST_RULES)
        epsilon_of = accountant.epsilon if within else accountant.epsilon_rdp
        try:
            cost, delta = cost_of(task, self._terms), self._terms.budget.delta
            epsilon = epsilon_of(cost.alone(), delta)
            charged = epsilon_of(cost.spending, delta) if cost.shared_sum else epsilon
        except PrivacyError as error:
            raise PolicyError("epsilon", str(error)) from None
        except (SettingError, SchemaError):  # it has no cost; some rule has refused it already
            raise PolicyError(refused_by, text) from None
        return Preview(
            refused_by=refused_by,
            text=text,
            needs_approval=needs_approval(self._terms, self._policy),
            epsilon=epsilon,
            charged=charged,
            remaining=ledger.remaining(self._clock()),
        )

    def admit(self, signed: SignedRequest) -> Permit:
        """Judges a request and reserves the cost of the whole job.

        Asked again for a job that it admitted and that is still open, it judges the job again by
        all but the room for it and the budget, gives the permit again and charges nothing. Where
        somebody else asks, or under other terms, a person has to approve it again too.

        Raises:
            PolicyError: names the rule that refused it, or ``approval`` where a person has yet to
                say yes; nothing was charged.
            LedgerError: the ledger cannot be read or written; nothing was charged.
        """
        request, terms = signed.request, self._terms
        require_asked(signed, terms)
        with self._turn:
            known = self._ledger.refresh().job(request.job)
            if known is None:
                known = self._reserve(signed)
            else:
                self._admit_again(signed, known)
        reserved_at = datetime.fromisoformat(known.reserved_at)
        return permit_of(request, terms, self._partner, reserved_at, self._ledger.refresh().head)

    def require_open(self, request: Request) -> None:
        """Do nothing if this request was admitted here and its job has not ended.

        Raises:
            PolicyError: rule ``request``.
        """
        self._require_same(request, self._ledger.refresh().job(request.job))

    def open_jobs(self) -> frozenset[str]:
        """The jobs that were admitted here and have not ended."""
        return frozenset(self._ledger.refresh().open_jobs())

    def begin(self, request: Request, number: int, fits: Callable[[], None]) -> None:
        """Judges an admitted job again, and charges its round ``number`` (1 for the first).

        Args:
            request: as the job was admitted.
            number: of the round.
            fits: raises where what came with an allowed round cannot be used; nothing is charged.

        Raises:
            PolicyError: the round does not belong to the job, the request is not the one that was
                admitted under this name, its permit has expired, or who asked may no longer ask,
                or this node's terms or policy no longer allow it.
            LedgerError: the round was answered before, the job is closed or unknown, or its rounds
                were begun too often.
        """
        if not 1 <= number <= request.task.rounds:
            raise PolicyError("rounds", f"job {request.job!r} has {request.task.rounds} rounds")
        known, now = self._ledger.refresh().job(request.job), self._clock()
        self._require_same(request, known)
        assert known is not None  # noqa: S101 - checked in the line above
        if now > permit_end(self._terms, datetime.fromisoformat(known.reserved_at)):
            raise PolicyError("permit", f"the permit of job {request.job!r} has expired")
        admitted = self._admissions.admitted(request.job)
        if admitted is None or admitted.signed.request != request:
            raise PolicyError("request", f"who asked for job {request.job!r} is not known here")
        if self._decisions(admitted.signed) == "refused":
            raise PolicyError("refusal", "a person at this partner refused this job")
        require_asker(admitted.signed, self._terms)
        require_allowed(request, self._terms, self._partner, self._cohort, self._policy, now)
        self._require_declared(admitted)
        cost = cost_of(request.task, self._terms)
        if cost.event != known.event:
            raise PolicyError("permit", "the terms now share noise otherwise than was permitted")
        fits()
        self._ledger.begin(request.job, number, cost.per_round)

    def commit(self, request: Request, number: int) -> None:
        """Records that the contribution to round ``number`` is about to leave."""
        self._ledger.commit(request.job, number)

    def close(self, job: str) -> None:
        """Ends a job; what it reserved and never began is free again."""
        self._ledger.cancel(job)
        self._admissions.forget(job)

    def _reserve(self, signed: SignedRequest) -> JobSpending:
        self._close_expired()
        self._judge(signed)
        request, cost = signed.request, cost_of(signed.request.task, self._terms)
        self._require_approved(signed)
        self._admissions.note(Admitted(signed, schema_digest(request, self._terms)))
        self._ledger.reserve(request.job, digest(request), cost.event, cost.count)
        return self._ledger.refresh().spending_by_job()[request.job]

    def _admit_again(self, signed: SignedRequest, known: JobSpending) -> None:
        request = signed.request
        self._require_same(request, known)
        self._judge(signed, reserved=True)
        before = self._admissions.admitted(request.job)
        if before is not None:
            self._require_declared(before)
            if before.signed == signed:
                return
        self._require_approved(signed)
        self._admissions.note(Admitted(signed, schema_digest(request, self._terms)))

    def _close_expired(self) -> None:
        """Ends jobs of which no round can begin any more, though nobody said that they ended."""
        known, now = self._ledger.refresh(), self._clock()
        spending = known.spending_by_job()
        for job in known.open_jobs():
            if now > permit_end(self._terms, datetime.fromisoformat(spending[job].reserved_at)):
                self.close(job)

    def _judge(self, signed: SignedRequest, *, reserved: bool = False) -> None:
        judge(
            signed.request,
            self._terms,
            self._partner,
            self._cohort,
            self._ledger.refresh(),
            self._policy,
            self._clock(),
            reserved=reserved,
        )

    def _require_declared(self, admitted: Admitted) -> None:
        """The columns mean what they meant when the job was admitted."""
        if schema_digest(admitted.signed.request, self._terms) != admitted.schema_digest:
            raise PolicyError("column", "the terms declare otherwise what this job was admitted on")

    def _require_approved(self, signed: SignedRequest) -> None:
        decision = self._decisions(signed)
        if decision == "refused":
            raise PolicyError("refusal", "a person at this partner refused this job")
        if decision is None and needs_approval(self._terms, self._policy):
            raise PolicyError("approval", "waits for a person at this partner to approve it")

    def _require_same(self, request: Request, known: JobSpending | None) -> None:
        if known is None or known.request_digest != digest(request):
            raise PolicyError("request", f"job {request.job!r} was not admitted as asked here")
        if known.cancelled:
            raise PolicyError("request", f"job {request.job!r} has ended here")
