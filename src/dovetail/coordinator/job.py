"""A job's life, as a table.

::

    proposed ──▶ approved ──▶ running ──▶ released
        │            │           ├──────▶ failed
        ├──▶ refused ├──▶ failed └──────▶ cancelled
        └──▶ cancelled └▶ cancelled

Rules: a job starts only after every partner permitted it; what ended stays ended; every end but
``released`` has a reason that may be shown to all partners. A round's number is asked once: a round
that did not finish, because too few answered or the coordinator died, is *lost*, and the model
goes on from the last finished one.
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
        round_asked: the last round that nodes may have been asked for; 0 before the first.
        rounds_done: finished rounds, each counted once.
        rounds_lost: rounds that were asked and did not finish.
        reason: why it ended, for every end but ``released``.
    """

    request: Request
    state: State = State.PROPOSED
    round_asked: int = 0
    rounds_done: int = 0
    rounds_lost: int = 0
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

    def ask_round(self) -> Job:
        """The job once its next round may have reached a node.

        Raises:
            LocalProtocolError: the job is not running, a round is open, or none is left.
        """
        self._require_running(not self.round_open and self.round_asked < self.rounds)
        return replace(self, round_asked=self.round_asked + 1)

    def finish_round(self) -> Job:
        """The job after its open round.

        Raises:
            LocalProtocolError: the job is not running, or no round is open.
        """
        self._require_running(self.round_open)
        return replace(self, rounds_done=self.rounds_done + 1)

    def lose_round(self) -> Job:
        """The job without its open round.

        Raises:
            LocalProtocolError: the job is not running, or no round is open.
        """
        self._require_running(self.round_open)
        return replace(self, rounds_lost=self.rounds_lost + 1)

    @property
    def rounds(self) -> int:
        """Rounds of the whole job."""
        return self.request.task.rounds

    @property
    def round_open(self) -> bool:
        """Whether the last round that was asked has neither finished nor been lost."""
        return self.round_asked > self.rounds_done + self.rounds_lost

    @property
    def too_many_lost(self) -> bool:
        """Whether more rounds are lost than a job may lose: a tenth of them, or one."""
        return self.rounds_lost > max(1, self.rounds // 10)

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to this job any more."""
        return not TRANSITIONS[self.state]

    def _require_running(self, allowed: bool) -> None:
        if self.state is not State.RUNNING or not allowed:
            raise LocalProtocolError("this round of the job cannot be asked, finished or lost")
