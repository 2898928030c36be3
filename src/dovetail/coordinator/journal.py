"""A job's journal in the coordinator's database and folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dovetail.agreement.permit import permit_to_record
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedPermit
from dovetail.agreement.terms import Terms
from dovetail.coordinator.job import Job, State
from dovetail.coordinator.run import Checkpoint, Suspended
from dovetail.errors import DataError, TransportError
from dovetail.privacy.release import Release
from dovetail.store import checkpoints
from dovetail.store.card import ModelCard
from dovetail.store.jobs import JobStore
from dovetail.store.model import card_for, save_model
from dovetail.store.records import JobRecord

_logger = logging.getLogger(__name__)


@dataclass
class StoreJournal:
    """Implements :class:`dovetail.coordinator.run.Journal`.

    Where the database does not answer, the job is left as it is (:class:`Suspended`), to go on from
    what the database knows.

    Attributes:
        store: the database.
        folder: the coordinator's, for checkpoints and releases.
        terms: under which the job runs.
        job: as the database knows it.
        clock: the time.
    """

    store: JobStore
    folder: Path
    terms: Terms
    job: Job
    clock: Callable[[], datetime]

    def moved(self, job: Job) -> None:
        """Notes a new state, or that a round was asked or lost."""
        name, before = job.request.job, self.job
        with _remembering(name):
            if job.state is not before.state:
                self.store.change(name, before.state, state=job.state, reason=job.reason)
            elif job.round_asked > before.round_asked:
                self.store.begin_round(name, job.round_asked)
            elif job.rounds_lost > before.rounds_lost:
                self.store.lose_round(name)
        self.job = job
        if job.ended:
            forget_checkpoints(self.folder, name)

    def finished(self, job: Job, checkpoint: Checkpoint) -> None:
        """Keeps the model after a round."""
        name, number = job.request.job, job.round_asked
        arrays, state = checkpoint.arrays, checkpoint.optimizer
        digest = checkpoints.save(self.folder, name, number, arrays, state)
        with _remembering(name):
            self.store.finish_round(name, number, digest)
        self.job = job
        checkpoints.keep(self.folder, name, number)

    def permitted(self, partner: str, permit: SignedPermit) -> None:
        """Keeps a partner's permit."""
        name, record = permit.permit.job, permit_to_record(permit.permit)
        with _remembering(name):
            self.store.put_permit(name, partner, record, permit.signature)

    def released(self, released: Release) -> None:
        """Keeps the released model with its card."""
        name, card = self.job.request.job, self._card(released)
        save_model(self.folder / "releases" / name, released, card)
        with _remembering(name):
            self.store.put_release(name, card_for(released, card), f"releases/{name}")

    def settled(self, partner: str) -> None:
        """Notes that a partner knows the job's end."""
        with _remembering(self.job.request.job):
            self.store.settle_permit(self.job.request.job, partner)

    def card_record(self, released: Release) -> dict[str, object]:
        """What the released model is and what it cost, for the partners."""
        return card_for(released, self._card(released))

    def _card(self, released: Release) -> ModelCard:
        charged = {name: sum(spent.values()) for name, spent in released.spending.items()}
        return ModelCard(self.job.request, self.terms, charged, self.clock().date())


@contextmanager
def _remembering(job: str) -> Iterator[None]:
    try:
        yield
    except TransportError as error:
        _logger.warning("job %s: %s", job, error)
        raise Suspended from None


def forget_checkpoints(folder: Path, job: str) -> None:
    """Removes the checkpoints of a job that has ended, if they can be removed."""
    try:
        checkpoints.forget(folder, job)
    except DataError as error:  # the job has ended all the same
        _logger.warning("%s", error)


def job_of(record: JobRecord, request: Request) -> Job:
    """Where the database says that a job stands."""
    return Job(
        request=request,
        state=State(record.state),
        round_asked=record.round_asked,
        rounds_done=record.rounds_done,
        rounds_lost=record.lost_rounds,
        reason=record.reason,
    )


def checkpoint_of(record: JobRecord, folder: Path) -> Checkpoint | None:
    """What a job goes on from; ``None`` before its first finished round.

    Raises:
        DataError: the checkpoint is missing or damaged.
    """
    if not record.checkpoint_round:
        return None
    kept = checkpoints.load(folder, record.job, record.checkpoint_round, record.checkpoint)
    return Checkpoint(kept.model, kept.state)
