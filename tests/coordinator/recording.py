"""A journal in memory, which may die at any of its entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedPermit
from dovetail.coordinator.job import Job
from dovetail.coordinator.run import Checkpoint, Run
from dovetail.privacy.release import Release
from dovetail.simulation.identities import asked
from tests.coordinator.nodes import PARTNERS, Nodes
from tests.samples import TASK

REQUEST = Request("job-1", TASK)


class Killed(BaseException):
    """The coordinator is gone; nothing more of it happens."""


@dataclass
class Recording:
    """Implements :class:`dovetail.coordinator.run.Journal`; outlives the coordinator.

    Attributes:
        dies_at: at which entry (1 for the first) the coordinator dies; 0 for never.
        remembered: whether that entry is still remembered.
        job, checkpoint, permits, releases, told: what is remembered.
        entries: what was noted, in order.
    """

    dies_at: int = 0
    remembered: bool = True
    job: Job | None = None
    checkpoint: Checkpoint | None = None
    permits: dict[str, SignedPermit] = field(default_factory=dict)
    releases: list[Release] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)

    def moved(self, job: Job) -> None:
        self._note(f"{job.state} {job.round_asked}", lambda: self._remember(job, self.checkpoint))

    def finished(self, job: Job, checkpoint: Checkpoint) -> None:
        self._note(f"finished {job.round_asked}", lambda: self._remember(job, checkpoint))

    def permitted(self, partner: str, permit: SignedPermit) -> None:
        self._note(f"permit of {partner}", lambda: self.permits.__setitem__(partner, permit))

    def released(self, released: Release) -> None:
        self._note("model", lambda: self.releases.append(released))

    def settled(self, partner: str) -> None:
        self._note(f"settled {partner}", lambda: self.told.append(partner))

    def _remember(self, job: Job, checkpoint: Checkpoint | None) -> None:
        self.job, self.checkpoint = job, checkpoint

    def _note(self, entry: str, remember: Callable[[], object]) -> None:
        self.entries.append(entry)
        dies = len(self.entries) == self.dies_at
        if not dies or self.remembered:
            remember()
        if dies:
            raise Killed


def a_run(nodes: Nodes, journal: Recording, request: Request = REQUEST, **settings: object) -> Run:
    """The job, from wherever the journal says that it stands."""
    return Run(
        asked(request, nodes.terms),
        nodes.terms,
        nodes,
        PARTNERS,
        journal=journal,
        wait=nodes.wait,
        standing=journal.job,
        checkpoint=journal.checkpoint,
        **settings,  # type: ignore[arg-type]
    )
