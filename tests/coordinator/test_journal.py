"""The journal in a real database and real files, under a coordinator that is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedPermit
from dovetail.coordinator.job import Job, State
from dovetail.coordinator.journal import StoreJournal, checkpoint_of, job_of
from dovetail.coordinator.run import Checkpoint, Run
from dovetail.errors import DataError, LocalProtocolError, TooManyDropouts
from dovetail.privacy.release import Release
from dovetail.simulation.identities import COORDINATOR, asked
from dovetail.store.jobs import JobStore
from dovetail.store.model import load_model
from dovetail.store.records import JobRecord
from tests.coordinator.nodes import NAMES, PARTNERS, Nodes, lost, now
from tests.coordinator.recording import Killed
from tests.samples import TASK

ADAPTIVE = replace(TASK, server_optimizer="fedadam", server_learning_rate=0.05)
REQUEST = Request("job-1", ADAPTIVE)


@dataclass
class Mortal(StoreJournal):
    """A journal whose coordinator dies right after one of its entries."""

    dies_at: int = 0
    entries: int = 0

    def _noted(self) -> None:
        self.entries += 1
        if self.entries == self.dies_at:
            raise Killed

    def moved(self, job: Job) -> None:
        super().moved(job)
        self._noted()

    def finished(self, job: Job, checkpoint: Checkpoint) -> None:
        super().finished(job, checkpoint)
        self._noted()

    def permitted(self, partner: str, permit: SignedPermit) -> None:
        super().permitted(partner, permit)
        self._noted()

    def released(self, released: Release) -> None:
        super().released(released)
        self._noted()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore.open(tmp_path / "jobs.sqlite", now) as opened:
        yield opened


def resumed(store: JobStore, folder: Path, nodes: Nodes, dies_at: int = 0) -> Run:
    """The job as a coordinator that was just started finds it in the database."""
    record = store.add(_record(nodes))
    standing = job_of(record, REQUEST)
    journal = Mortal(store, folder, nodes.terms, standing, now, dies_at=dies_at)
    return Run(
        asked(REQUEST, nodes.terms),
        nodes.terms,
        nodes,
        PARTNERS,
        journal=journal,
        wait=nodes.wait,
        card_of=journal.card_record,
        standing=standing,
        checkpoint=checkpoint_of(record, folder),
    )


def _record(nodes: Nodes) -> JobRecord:
    signed = asked(REQUEST, nodes.terms)
    return JobRecord(
        job="job-1",
        request=requests.to_record(REQUEST),
        request_digest=requests.digest(REQUEST),
        terms_digest=agreed.digest(nodes.terms),
        asked_by=COORDINATOR,
        signature=signed.signature,
        quorum=2,
        deadline=60.0,
        rounds=ADAPTIVE.rounds,
    )


def test_a_job_leaves_its_model_its_permits_and_no_checkpoint(
    store: JobStore, tmp_path: Path
) -> None:
    nodes = Nodes()
    released = resumed(store, tmp_path, nodes).run()
    record = store.get("job-1")
    assert (record.state, record.rounds_done, record.lost_rounds) == ("released", 3, 0)
    assert set(store.permits("job-1")) == set(NAMES)
    assert store.unsettled() == {}
    kept = store.release("job-1")
    assert kept is not None
    arrays, card = load_model(tmp_path / kept.folder)
    assert card.charged == dict.fromkeys(NAMES, TASK.steps)
    for name, array in released.value.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert nodes.kept == {name: [kept.record] for name in NAMES}
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("dies_at", [2, 4, 5, 6, 7, 8, 10, 11, 12, 13])
def test_what_the_database_holds_is_enough_to_go_on(
    dies_at: int, store: JobStore, tmp_path: Path
) -> None:
    nodes = Nodes()
    with suppress(Killed):
        resumed(store, tmp_path, nodes, dies_at).run()
    before = store.get("job-1")
    if before.state != "released":
        release = resumed(store, tmp_path, nodes).run()
        assert release.provenance.rounds == 3 - before.round_open
    after = store.get("job-1")
    assert after.state == "released"
    assert after.rounds_done + after.lost_rounds == 3
    assert all(nodes.rounds_sent(name) == sorted(set(nodes.rounds_sent(name))) for name in NAMES)


def test_only_the_newest_checkpoint_is_kept_and_holds_the_optimisers_state(
    store: JobStore, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        resumed(store, tmp_path, Nodes(), dies_at=9).run()
    record = store.get("job-1")
    assert (record.round_asked, record.checkpoint_round) == (2, 2)
    assert [p.name for p in (tmp_path / "checkpoints" / "job-1").iterdir()] == ["2.safetensors"]
    checkpoint = checkpoint_of(record, tmp_path)
    assert checkpoint is not None
    assert {name for name in checkpoint.optimizer if name.startswith("v_t")}
    assert job_of(record, REQUEST) == Job(REQUEST, State.RUNNING, 2, 2, 0)


def test_a_job_that_failed_leaves_no_checkpoint(store: JobStore, tmp_path: Path) -> None:
    nodes = Nodes(twist=lost("train", "retailer", "brand", rounds=[2, 3]))
    with pytest.raises(TooManyDropouts):
        resumed(store, tmp_path, nodes).run()
    record = store.get("job-1")
    assert record.state == "failed"
    assert record.reason.startswith("round 3: ")
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["missing", "damaged"],
)
def test_a_checkpoint_that_is_not_what_was_written_is_not_gone_on_from(
    harm: Callable[[Path], object], store: JobStore, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        resumed(store, tmp_path, Nodes(), dies_at=7).run()
    harm(tmp_path / "checkpoints" / "job-1" / "1.safetensors")
    with pytest.raises(DataError, match="checkpoint"):
        checkpoint_of(store.get("job-1"), tmp_path)


def test_two_coordinators_cannot_ask_the_same_round(store: JobStore, tmp_path: Path) -> None:
    nodes = Nodes()
    with pytest.raises(Killed):
        resumed(store, tmp_path, nodes, dies_at=7).run()
    one, other = (resumed(store, tmp_path, nodes) for _ in range(2))
    one.run()
    with pytest.raises(LocalProtocolError):
        other.run()
    assert store.get("job-1").state == "released"
    assert all(nodes.rounds_sent(name) == [1, 2, 3] for name in NAMES)
