"""What must hold after any fault, read from the files that the parties keep.

A privacy officer looks at her ledger and at nothing else; the coordinator's database and what the
processes noted on their way (:mod:`tests.faults.points`) are here to prove that the ledger tells
all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.agreement import request as requests
from dovetail.agreement.cost import cost_of
from dovetail.agreement.entry import GENESIS, Entry
from dovetail.agreement.ledger import JobSpending
from dovetail.agreement.request import Request
from dovetail.coordinator.docket import OPEN_STATES
from dovetail.coordinator.parties import node_number
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.card import card_from_record
from dovetail.store.ledger import LedgerStore
from dovetail.store.model import load_model
from dovetail.store.records import JobRecord
from tests.faults.points import notes
from tests.faults.trial import Trial, utc_now


@dataclass(frozen=True)
class Ledger:
    """A partner's ledger, every entry checked against the chain and the rules."""

    entries: tuple[Entry, ...]
    jobs: dict[str, JobSpending]

    @property
    def digests(self) -> set[str]:
        return {entry.digest for entry in self.entries} | {GENESIS}

    def rounds(self, job: str, kind: str) -> Counter[int]:
        """How often each round of a job has an entry of a kind."""
        found = (entry for entry in self.entries if (entry.job, entry.kind) == (job, kind))
        return Counter(entry.round for entry in found if entry.round is not None)


def ledger_of(trial: Trial, partner: str) -> Ledger:
    """A partner's ledger as it stands; raises where it does not verify."""
    path = trial.home(partner) / f"{partner}.ledger"
    with LedgerStore(path, trial.terms.budget, utc_now) as store:
        return Ledger(store.entries(), store.refresh().spending_by_job())


class Books:
    """What all parties have written down by now."""

    def __init__(self, trial: Trial) -> None:
        """Reads it; the ledgers last, so that they know of all that was noted."""
        self.trial = trial
        self._notes = {
            party: _by_job(notes(trial.notes(party))) for party in (COORDINATOR, *trial.partners)
        }
        self._added = Counter(n["digest"] for n in notes(trial.notes(COORDINATOR), "added"))
        self.ledgers = {partner: ledger_of(trial, partner) for partner in trial.partners}

    def check(self, request: Request) -> None:
        """Asserts all that must hold of a job that has ended and is settled."""
        job = self.trial.store.get(request.job)
        _check_end(job)
        self._check_permits(job)
        for partner in self.ledgers:
            self.check_partner(partner, request)
            self._check_settled(partner, job)
        self._check_sums(job)
        if job.state == "released":
            self._check_release(request)

    def check_partner(self, partner: str, request: Request) -> None:
        """Rows were read once charged and left once committed, and all of it is charged.

        This holds at any moment.
        """
        job, ledger = request.job, self.ledgers[partner]
        cost = cost_of(request.task, self.trial.terms)
        steps = cost.per_round
        begun, committed = ledger.rounds(job, "begin"), ledger.rounds(job, "commit")
        read, left = (self._rounds(partner, job, kind) for kind in ("read", "left"))
        came = self._rounds(COORDINATOR, job, "came", node_number(partner))
        assert read <= begun, "rows were read that were not charged"
        assert left <= committed, "something was let go that was not committed"
        assert came <= committed, "something came that was not committed"
        assert self._rounds(partner, job, "unmasked") <= left, "a sum is unmasked once, by its own"
        assert committed <= begun
        assert max([*committed.values(), *left.values(), *came.values(), 0]) <= 1
        spent = ledger.jobs.get(job)
        if spent is None:
            assert not begun
        else:
            assert spent.request_digest == requests.digest(request)
            assert spent.event == cost.event
            assert spent.drawn == steps * begun.total()
            assert spent.charged >= spent.drawn >= steps * came.total()

    def _check_settled(self, partner: str, job: JobRecord) -> None:
        """What never began is free again, and nothing is held for the job any more."""
        spent = self.ledgers[partner].jobs.get(job.job)
        assert spent is None or spent.cancelled, f"{partner} still holds a reservation"
        assert spent is None or spent.charged == spent.drawn

    def _check_permits(self, job: JobRecord) -> None:
        """What ran was permitted by all; every permit names a moment of its partner's ledger."""
        permits = self.trial.store.permits(job.job)
        if job.round_asked:
            assert set(permits) == set(self.ledgers)
        for partner, permit in permits.items():
            assert permit.record["ledger_head"] in self.ledgers[partner].digests, partner
            assert permit.settled, partner

    def _check_sums(self, job: JobRecord) -> None:
        """No round is asked twice at a node, and no reply is added up twice or unasked."""
        asked = [(n["round"], n["node"]) for n in self._noted(COORDINATOR, job.job, "asked")]
        assert len(asked) == len(set(asked)), "a round was asked twice"
        assert max((number for number, _ in asked), default=0) <= job.round_asked
        came = {n["digest"]: n for n in self._noted(COORDINATOR, job.job, "came")}
        for partner in self.ledgers:
            ours = {n["digest"] for n in self._noted(partner, job.job, "left")}
            theirs = {d for d, n in came.items() if n["node"] == node_number(partner)}
            assert theirs <= ours, "something came from a partner that it never let go"
        assert max((self._added[digest] for digest in came), default=0) <= 1, "added up twice"
        assert len({came[d]["round"] for d in came if self._added[d]}) >= job.rounds_done

    def _check_release(self, request: Request) -> None:
        """What was released is whole, is at every partner, and states no less than was charged."""
        kept = self.trial.store.release(request.job)
        assert kept is not None
        arrays, card = load_model(self.trial.home(COORDINATOR) / kept.folder)
        assert card_from_record(kept.record)[0] == card
        for partner, ledger in self.ledgers.items():
            assert card.charged[partner] >= ledger.jobs[request.job].charged
            received, their_card = load_model(self.trial.home(partner) / "models" / request.job)
            assert their_card == card
            assert all((received[name] == array).all() for name, array in arrays.items())
            assert all(np.isfinite(array).all() for array in received.values())

    def _rounds(self, party: str, job: str, what: str, node: int | None = None) -> Counter[int]:
        noted = self._noted(party, job, what)
        return Counter(n["round"] for n in noted if node is None or n["node"] == node)

    def _noted(self, party: str, job: str, what: str) -> list[dict[str, Any]]:
        return [note for note in self._notes[party].get(job, ()) if note["what"] == what]


def check(trial: Trial, *asked: Request) -> None:
    """Asserts all that must hold of jobs that have ended and are settled."""
    books = Books(trial)
    for request in asked:
        books.check(request)


def _check_end(job: JobRecord) -> None:
    """It has ended, with a reason unless it was released, and every round is accounted for."""
    assert job.state not in OPEN_STATES, job
    assert bool(job.reason) == (job.state != "released"), job
    assert job.round_asked <= job.rounds
    assert job.rounds_done + job.lost_rounds <= job.round_asked
    if job.state == "released":
        assert job.rounds_done + job.lost_rounds == job.round_asked == job.rounds
        assert job.lost_rounds <= max(1, job.rounds // 10)


def _by_job(noted: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for note in noted:
        found.setdefault(note.get("job", ""), []).append(note)
    return found
