"""Runs one job over a channel: propose to all, round by round, release; from wherever it stands.

All that decides stands in :mod:`~dovetail.coordinator.job` and
:mod:`~dovetail.coordinator.round`; this file carries messages between them and the nodes, and tells
a :class:`Journal` what happened before it goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Protocol

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.request import TrainingTask
from dovetail.agreement.signing import SignedPermit, SignedRequest
from dovetail.agreement.terms import Terms
from dovetail.coordinator.aggregating import Aggregation, stepped
from dovetail.coordinator.job import Job, State
from dovetail.coordinator.progress import EventKind, JobEvent
from dovetail.coordinator.proposing import ask_permits
from dovetail.coordinator.round import Arrays, Round, calibrated, initial_arrays
from dovetail.coordinator.settling import settle
from dovetail.errors import (
    DovetailError,
    PolicyError,
    ProtocolError,
    RemoteProtocolError,
    SettingError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower import actions
from dovetail.flower.actions import Record
from dovetail.flower.grid import CheckedGrid, Expected
from dovetail.flower.strategies import (
    State as OptimizerState,
)
from dovetail.flower.strategies import (
    apply_mean,
    restore_strategy_state,
    server_optimizer,
    strategy_state,
)
from dovetail.privacy.release import Provenance, Release, release
from dovetail.wire.channel import Channel

LONGEST_WAIT = 5.0
"""Seconds after which a job that waits looks again, whether or not something changed."""
APPROVAL_SECONDS = 7 * 24 * 3600.0
"""How long a job waits for people to approve it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a job goes on from.

    Attributes:
        arrays: the model after the last finished round.
        optimizer: what the server optimiser carries on.
    """

    arrays: Arrays
    optimizer: OptimizerState


class Journal(Protocol):
    """Remembers a job's way; each call returns when it is remembered for good.

    A call raises :class:`Suspended` where nothing can be remembered for now.
    """

    def moved(self, job: Job) -> None:
        """The job changed its state, or asked or lost a round."""
        ...

    def finished(self, job: Job, checkpoint: Checkpoint) -> None:
        """The job finished a round."""
        ...

    def permitted(self, partner: str, permit: SignedPermit) -> None:
        """A partner gave its permit."""
        ...

    def released(self, released: Release) -> None:
        """The model was released; called again where a job resumes at its very end."""
        ...

    def settled(self, partner: str) -> None:
        """A partner knows that the job is over."""
        ...


class Forgetful:
    """The journal of a job that needs none: in a simulation a crash ends everything."""

    def moved(self, job: Job) -> None:
        """Nothing."""

    def finished(self, job: Job, checkpoint: Checkpoint) -> None:
        """Nothing."""

    def permitted(self, partner: str, permit: SignedPermit) -> None:
        """Nothing."""

    def released(self, released: Release) -> None:
        """Nothing."""

    def settled(self, partner: str) -> None:
        """Nothing."""


class Suspended(BaseException):
    """The job goes on from its journal another time: coordinator or database are stopping."""


@dataclass
class Run:
    """One job on its way over one channel.

    Attributes:
        signed: what is asked, and by whom.
        terms: under which terms.
        channel: where the nodes are.
        partners: the partner behind each node that takes part.
        quorum: partners without which a round does not count; by default more than half.
        deadline: seconds in which a node answers, and for which a missing quorum is awaited.
        journal: told what happens before anything further is done.
        on_event: told what happens, for people.
        on_round: given the model after each round; a researcher's view in a simulation.
        wait: waits up to so many seconds until a node came, went or changed its mind; ``None``
            where none ever will, so that nothing is waited for.
        card_of: the card with which every partner is given the released model; ``None`` gives it
            to nobody.
        cancelled: set to end the job.
        suspended: set to leave the job as it is.
        turn: entered while the partners are asked for their permits.
        standing: where an interrupted job stands; at its beginning where ``None``.
        checkpoint: of its last finished round, where it has one.
        job: where the job stands.
    """

    signed: SignedRequest
    terms: Terms
    channel: Channel
    partners: Mapping[int, str]
    quorum: int = 0
    deadline: float = 600.0
    journal: Journal = field(default_factory=Forgetful)
    on_event: Callable[[JobEvent], None] = lambda _: None
    on_round: Callable[[int, Arrays], None] = lambda _number, _arrays: None
    wait: Callable[[float], object] | None = None
    card_of: Callable[[Release], Record] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    suspended: threading.Event = field(default_factory=threading.Event)
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    standing: InitVar[Job | None] = None
    checkpoint: Checkpoint | None = None
    job: Job = field(init=False)

    def __post_init__(self, standing: Job | None) -> None:
        if not self.partners:
            raise SettingError("a job needs at least one partner")
        self.job = standing or Job(self.signed.request)
        self.quorum = self.quorum or len(self.partners) // 2 + 1
        assumed = self.terms.secure_aggregation
        if self.signed.request.task.protection == "distributed" and assumed is not None:
            self.quorum = max(self.quorum, len(self.terms.partners) - assumed.dropouts)
        self._awaited: set[int] = set()

    def run(self) -> Release:
        """Takes the job to its end, from wherever it stands.

        Returns:
            The released model: its value holds the arrays by name.

        Raises:
            PolicyError: a partner refused; nothing ran, and nothing stays charged anywhere.
            TooManyDropouts: too many rounds were lost, or the quorum did not come back in time.
            Suspended: ``suspended`` was set, or by the journal; the nodes were told nothing.
            DovetailError: whatever else ended it; ``job`` says where it stood.
        """
        try:
            if self.job.state is State.PROPOSED:
                self._propose()
            released = self._release(self._train())
            self.journal.released(released)
        except DovetailError as error:
            if not self.job.ended:
                self._move(State.FAILED, str(error))
                self._tell("failed", text=str(error))
            if self.job.state is not State.REFUSED:  # of that they know already
                self._settle()
            raise
        except Exception:
            self._break_off(State.FAILED, "internal error at the coordinator")
            raise
        except KeyboardInterrupt:
            self._break_off(State.CANCELLED, "stopped by its operator")
            raise
        self._move(State.RELEASED)
        self._tell("released")
        self._settle(released)
        return released

    def _break_off(self, state: State, reason: str) -> None:
        """Ends a job unless it has ended."""
        if self.job.ended:
            return
        self._move(state, reason)
        if state is State.FAILED:
            self._tell("failed", text=reason)
        self._settle()

    def _propose(self) -> None:
        """Asks every partner's permit; the job starts only with all of them.

        Where one refuses, the others let go what they reserved before another job has its turn:
        it would be refused for the sake of a job that does not take place.
        """
        waiting, began = set(self.partners), time.monotonic()
        until = began + self.deadline
        while waiting:
            with self.turn():
                refusals = self._ask_permits(waiting)
                if refusals:
                    self._refuse(refusals)
            if self._awaited:
                until = max(until, began + APPROVAL_SECONDS)
            if waiting and not self._wait_until(until):
                node = min(waiting)
                raise TooManyDropouts(f"{self.partners[node]} did not answer the proposal in time")
        self._move(State.APPROVED)

    def _ask_permits(self, waiting: set[int]) -> list[tuple[str, DovetailError]]:
        """Asks those that are waited for, who leave ``waiting`` when they permit."""
        nodes = {node: self.partners[node] for node in waiting}
        refusals: list[tuple[str, DovetailError]] = []
        for node, answer in ask_permits(
            self.channel, self.signed, self.terms, nodes, self.deadline
        ):
            partner = self.partners[node]
            answer = self._kept(partner, answer)
            if isinstance(answer, SignedPermit):
                waiting.discard(node)
                self._awaited.discard(node)
                self._tell("permitted", partner)
            elif not self._may_come(node, answer):
                refusals.append((partner, answer))
                self._tell("refused", partner, str(answer))
        return refusals

    def _kept(
        self, partner: str, answer: SignedPermit | DovetailError
    ) -> SignedPermit | DovetailError:
        """A permit once it is kept; or why there is none."""
        if isinstance(answer, SignedPermit):
            try:
                self.journal.permitted(partner, answer)
            except RemoteProtocolError as error:
                return error
        return answer

    def _may_come(self, node: int, answer: DovetailError) -> bool:
        """Whether a partner that did not permit may still do so."""
        if isinstance(answer, PolicyError) and answer.rule == "approval":
            if node not in self._awaited:
                self._awaited.add(node)
                self._tell("awaiting", self.partners[node], str(answer))
            return self.wait is not None
        return isinstance(answer, TransportError) and self.wait is not None

    def _refuse(self, refusals: list[tuple[str, DovetailError]]) -> None:
        reason = "; ".join(f"{partner}: {error}" for partner, error in refusals)
        partner, first = refusals[0]
        if isinstance(first, PolicyError):
            self._move(State.REFUSED, reason)
            self._tell("refused", text=reason)
            self._settle()
            text = str(first).removeprefix(f"{first.rule}: ")
            raise PolicyError(first.rule, f"{partner} refused: {text}")
        raise type(first)(f"{partner}: {first}")

    def _train(self) -> Arrays:
        task = self.signed.request.task
        schema = self.terms.schema.select(task.features)
        strategy = server_optimizer(
            task.server_optimizer,
            nodes=len(self.partners),
            learning_rate=task.server_learning_rate,
            proximal_mu=task.proximal_mu,
        )
        arrays: Arrays = initial_arrays(task, schema)
        if self.checkpoint is not None:
            arrays = self.checkpoint.arrays
            restore_strategy_state(strategy, self.checkpoint.optimizer)
            self.checkpoint = None
        self._start()
        shapes = {name: array.shape for name, array in arrays.items()}
        shared = task.protection == "distributed"
        while self.job.round_asked < self.job.rounds:
            self._await_quorum()
            mean = self._ask_shared_round(arrays) if shared else self._ask_round(shapes, arrays)
            if mean is None:
                continue
            arrays = apply_mean(strategy, self.job.round_asked, arrays, *mean)
            self.job = self.job.finish_round()
            self.journal.finished(self.job, Checkpoint(arrays, strategy_state(strategy)))
            self._tell("round")
            self.on_round(self.job.round_asked, calibrated(arrays, task.positive_weight))
        return calibrated(arrays, task.positive_weight)

    def _start(self) -> None:
        """Sets a new job running; gives up the round in which an interrupted one died."""
        if self.job.state is State.APPROVED:
            self._move(State.RUNNING)
        if self.job.round_open:
            self._lose("the coordinator was interrupted")

    def _ask_round(
        self, shapes: Mapping[str, tuple[int, ...]], arrays: Arrays
    ) -> tuple[Arrays, float] | None:
        """The mean of the next round and its weight; ``None`` where the round was lost."""
        self._record(self.job.ask_round())
        weights = self._weights()
        grid = CheckedGrid(
            self.channel, Expected(shapes, weights), quorum=self.quorum, deadline=self.deadline
        )
        collected = Round(weights, self.quorum)
        number, record = self.job.round_asked, requests.to_record(self.signed.request)
        for reply in grid.receive(actions.train_messages(weights, number, record, arrays)):
            collected.add(reply.metadata.src_node_id, actions.arrays_of(reply))
            del reply  # before the next is received
        for node, reason in grid.faults.items():
            self._tell("dropped", self.partners[node], reason)
        try:
            mean = collected.close()
        except TooManyDropouts as error:
            reasons = "".join(f"; {self.partners[n]}: {why}" for n, why in grid.faults.items())
            self._lose(f"round {number}: {error}{reasons}")
            return None
        return mean.arrays, mean.weight

    def _ask_shared_round(self, arrays: Arrays) -> tuple[Arrays, float] | None:
        """As :meth:`_ask_round`, of masked contributions."""
        self._record(self.job.ask_round())
        number = self.job.round_asked
        try:
            total = self._aggregation.round(number, arrays)
        except (ProtocolError, TransportError) as error:
            faults = self._aggregation.faults.items()
            reasons = "".join(f"; {partner}: {why}" for partner, why in faults)
            self._lose(f"round {number}: {error}{reasons}")
            return None
        for partner, reason in total.faults.items():
            self._tell("dropped", partner, reason)
        return stepped(self.signed.request, self.terms, arrays, total)

    @cached_property
    def _aggregation(self) -> Aggregation:
        request, terms = self.signed.request, self.terms
        return Aggregation(request, terms, self.channel, self.partners, self.deadline)

    def _lose(self, reason: str) -> None:
        self._record(self.job.lose_round())
        self._tell("lost", text=reason)
        if self.job.too_many_lost or self.wait is None:
            raise TooManyDropouts(reason)

    def _await_quorum(self) -> None:
        self._check_stopped()
        until = time.monotonic() + self.deadline
        while len(set(self.channel.nodes()) & set(self.partners)) < self.quorum:
            if not self._wait_until(until):
                raise TooManyDropouts(
                    f"fewer than {self.quorum} partners are connected, and the deadline has passed"
                )

    def _wait_until(self, until: float) -> bool:
        """Waits a while for a change; ``False`` once it is too late, or none will ever come."""
        self._check_stopped()
        left = until - time.monotonic()
        if left <= 0 or self.wait is None:
            return False
        self.wait(min(left, LONGEST_WAIT))
        return True

    def _check_stopped(self) -> None:
        if self.suspended.is_set():
            raise Suspended
        if self.cancelled.is_set():
            self._move(State.CANCELLED, "cancelled on request")
            self._tell("cancelled")
            raise TooManyDropouts("the job was cancelled")

    def _settle(self, released: Release | None = None) -> None:
        """Tells every partner that the job is over, and gives it what was released."""
        model = None
        if released is not None and self.card_of is not None:
            model = (self.card_of(released), released.value)
        name = self.signed.request.job
        for node in settle(self.channel, name, self.partners, self.deadline, model):
            self.journal.settled(self.partners[node])

    def _weights(self) -> dict[int, float]:
        declared = {partner.name: partner.customers for partner in self.terms.partners}
        return {node: float(declared[partner]) for node, partner in self.partners.items()}

    def _release(self, arrays: Arrays) -> Release:
        task: TrainingTask = self.signed.request.task
        if not self.job.rounds_done:
            raise TooManyDropouts("no round was finished, so there is nothing to release")
        cost, partners = cost_of(task, self.terms), self.partners.values()
        return release(
            arrays,
            dict.fromkeys(partners, cost.spending),
            self.terms.budget.delta,
            Provenance(
                job=self.signed.request.job,
                request_digest=requests.digest(self.signed.request),
                terms_digest=agreed.digest(self.terms),
                rounds=self.job.rounds_done,
            ),
            customers_overlap=self.terms.customers_overlap,
            alone=dict.fromkeys(partners, cost.alone()),
        )

    def _move(self, state: State, reason: str = "") -> None:
        self._record(self.job.move(state, reason))

    def _record(self, job: Job) -> None:
        self.journal.moved(job)
        self.job = job

    def _tell(self, kind: EventKind, partner: str = "", text: str = "") -> None:
        done, rounds = self.job.rounds_done, self.job.rounds
        self.on_event(JobEvent(self.job.request.job, kind, done, rounds, partner, text))
