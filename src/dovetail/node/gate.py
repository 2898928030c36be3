"""The one gate: what is asked is judged here, and paid for here, before any row is read."""

from __future__ import annotations

from dovetail.agreement.policy import NodePolicy, Permit, judge, require_allowed
from dovetail.agreement.request import Request, digest
from dovetail.agreement.terms import Terms
from dovetail.errors import PolicyError
from dovetail.store.ledger import LedgerStore


class Gate:
    """Admits requests at one partner, on its own terms and its own ledger.

    Guarantees: nothing passes that the terms, the node's stricter policy or the budget refuse;
    a job's whole cost is reserved before its first row is read; a round is charged before its
    rows are read and committed before its contribution leaves; no round is answered twice.
    """

    def __init__(
        self, terms: Terms, partner: str, ledger: LedgerStore, cohort: int, policy: NodePolicy
    ) -> None:
        """Opens the gate.

        Args:
            terms: what the partners agreed.
            partner: whose gate this is.
            ledger: this partner's ledger.
            cohort: the partner's number of customers; private, only ever compared.
            policy: the partner's own, stricter rules.
        """
        self._terms = terms
        self._partner = partner
        self._ledger = ledger
        self._cohort = cohort
        self._policy = policy

    def admit(self, request: Request) -> Permit:
        """Judges a request and reserves the cost of the whole job.

        Raises:
            PolicyError: names the rule that refused it; nothing was charged.
            LedgerError: the ledger cannot be read or written; nothing was charged.
        """
        permit = judge(
            request,
            self._terms,
            self._partner,
            self._cohort,
            self._ledger.refresh(),
            self._policy,
        )
        self._ledger.reserve(permit.job, permit.request_digest, permit.event, permit.steps)
        return permit

    def begin(self, request: Request, number: int) -> None:
        """Charges round ``number`` (1 for the first) of an admitted job.

        Raises:
            PolicyError: the round does not belong to the job, the request is not the one that was
                admitted under this name, or this node's terms or policy no longer allow it.
            LedgerError: the round was answered before, or the job is closed or unknown.
        """
        if not 1 <= number <= request.task.rounds:
            raise PolicyError("rounds", f"job {request.job!r} has {request.task.rounds} rounds")
        admitted = self._ledger.refresh().job(request.job)
        if admitted is None or admitted.request_digest != digest(request):
            raise PolicyError("request", f"job {request.job!r} was not admitted as asked here")
        require_allowed(request, self._terms, self._partner, self._cohort, self._policy)
        self._ledger.begin(request.job, number, request.task.local_steps)

    def commit(self, request: Request, number: int) -> None:
        """Records that the contribution to round ``number`` is about to leave."""
        self._ledger.commit(request.job, number)

    def close(self, job: str) -> None:
        """Ends a job; what it reserved and never began is free again."""
        self._ledger.cancel(job)
