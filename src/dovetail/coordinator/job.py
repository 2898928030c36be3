"""A job's life, as a table.

::

    proposed ──▶ approved ──▶ running ──▶ released
        │            │           ├──────▶ failed
        ├──▶ refused ├──▶ failed └──────▶ cancelled
        └──▶ cancelled └▶ cancelled

Rules: a job starts only after every partner permitted it; what ended stays ended; every end but
``released`` has a reason that may be shown to all partners.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from dovetail.agreement.request import Request
from dovetail.errors import LocalProtocolError


class State(StrEnum):
    """Where a job stands."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    RUNNING = "running"
    RELEASED = "released"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.PROPOSED: frozenset({State.APPROVED, State.REFUSED, State.FAILED, State.CANCELLED}),
    State.APPROVED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.RELEASED, State.FAILED, State.CANCELLED}),
    State.RELEASED: frozenset(),
    State.REFUSED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

ENDS_WITH_REASON = frozenset({State.REFUSED, State.FAILED, State.CANCELLED})


@dataclass(frozen=True)
class Job:
    """One request on its way through the partners.

    Attributes:
        request: what is asked; its ``job`` names this job.
        state: where it stands.
        rounds_done: finished rounds, each counted once.
        reason: why it ended, for every end but ``released``.
    """

    request: Request
    state: State = State.PROPOSED
    rounds_done: int = 0
    reason: str = ""

    def move(self, state: State, reason: str = "") -> Job:
        """The job in its next state.

        Raises:
            LocalProtocolError: the table does not allow it, or a reason is missing.
        """
        if state not in TRANSITIONS[self.state]:
            raise LocalProtocolError(f"a job that is {self.state} cannot become {state}")
        if state in ENDS_WITH_REASON and not reason:
            raise LocalProtocolError(f"a job cannot become {state} without a reason")
        return replace(self, state=state, reason=reason)

    def finish_round(self, number: int) -> Job:
        """The job after round ``number`` (1 for the first).

        Raises:
            LocalProtocolError: the job is not running, or this is not its next round.
        """
        if self.state is not State.RUNNING or number != self.rounds_done + 1:
            raise LocalProtocolError("only a running job's next round can be finished")
        return replace(self, rounds_done=number)

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to this job any more."""
        return not TRANSITIONS[self.state]
