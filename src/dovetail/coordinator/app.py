"""Runs a job over a channel: propose to all, round by round, release.

All that decides stands in :mod:`~dovetail.coordinator.job` and
:mod:`~dovetail.coordinator.round`; this file only carries messages between them and the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.coordinator.job import Job, State
from dovetail.coordinator.round import Arrays, Round, calibrated, initial_arrays
from dovetail.errors import (
    DovetailError,
    PolicyError,
    RemoteProtocolError,
    SettingError,
    TooManyDropouts,
)
from dovetail.flower import actions
from dovetail.flower.grid import CheckedGrid, Expected, ask
from dovetail.flower.strategies import apply_mean, server_optimizer
from dovetail.privacy.release import Provenance, Release, release
from dovetail.wire.channel import Channel

Kind = Literal["permitted", "refused", "round", "dropped", "released", "failed"]


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, for people who watch it.

    Attributes:
        job: its name.
        kind: what happened.
        round: the round it happened in; 0 before the first.
        rounds: of the whole job.
        partner: whom it concerns; empty where all.
        text: why, where there is a reason; safe to show to every partner.
    """

    job: str
    kind: Kind
    round: int
    rounds: int
    partner: str = ""
    text: str = ""


@dataclass
class Run:
    """One job on its way over one channel.

    Attributes:
        request: what is asked.
        terms: under which terms.
        channel: where the nodes are.
        partners: the partner behind each node that takes part.
        quorum: partners without which a round does not count; by default more than half.
        deadline: seconds in which a node answers.
        on_event: told what happens.
        on_round: given the model after each round; a researcher's view in a simulation.
        job: where the job stands.
    """

    request: Request
    terms: Terms
    channel: Channel
    partners: Mapping[int, str]
    quorum: int = 0
    deadline: float = 600.0
    on_event: Callable[[JobEvent], None] = lambda _: None
    on_round: Callable[[int, Arrays], None] = lambda _number, _arrays: None
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        if not self.partners:
            raise SettingError("a job needs at least one partner")
        self.job = Job(self.request)
        self.quorum = self.quorum or len(self.partners) // 2 + 1

    def run(self) -> Release:
        """Takes the job to its end.

        Returns:
            The released model: its value holds the arrays by name.

        Raises:
            PolicyError: a partner refused; nothing ran, and nothing stays charged anywhere.
            TooManyDropouts: fewer partners than the quorum answered a round.
            DovetailError: whatever else ended it; ``job`` says where it stood.
        """
        try:
            self._propose()
            arrays = self._train()
        except DovetailError as error:
            if not self.job.ended:
                self.job = self.job.move(State.FAILED, str(error))
            self._tell("failed", text=str(error))
            raise
        except BaseException:
            self.job = self.job.move(State.CANCELLED, "stopped by its operator")
            raise
        finally:
            self._close()
        self.job = self.job.move(State.RELEASED)
        self._tell("released")
        return self._release(arrays)

    def _propose(self) -> None:
        """Asks every partner's permit; the job starts only with all of them."""
        record, terms = requests.to_record(self.request), agreed.digest(self.terms)
        messages = [actions.propose_message(node, record, terms) for node in self.partners]
        refusals: list[tuple[str, DovetailError]] = []
        for node, reply in ask(self.channel, messages, self.deadline):
            partner = self.partners[node]
            try:
                if isinstance(reply, DovetailError):
                    raise reply
                self._check_permit(partner, actions.permit_of(reply))
            except DovetailError as error:
                refusals.append((partner, error))
                self._tell("refused", partner, str(error))
            else:
                self._tell("permitted", partner)
        if refusals:
            self._refuse(refusals)
        self.job = self.job.move(State.APPROVED)

    def _check_permit(self, partner: str, permit: actions.Record) -> None:
        expected = {
            "job": self.request.job,
            "partner": partner,
            "request_digest": requests.digest(self.request),
            "terms_digest": agreed.digest(self.terms),
        }
        if {name: permit.get(name) for name in expected} != expected:
            raise RemoteProtocolError("the permit is for something else than was asked")

    def _refuse(self, refusals: list[tuple[str, DovetailError]]) -> None:
        reason = "; ".join(f"{partner}: {error}" for partner, error in refusals)
        partner, first = refusals[0]
        if isinstance(first, PolicyError):
            self.job = self.job.move(State.REFUSED, reason)
            text = str(first).removeprefix(f"{first.rule}: ")
            raise PolicyError(first.rule, f"{partner} refused: {text}")
        self.job = self.job.move(State.FAILED, reason)
        raise type(first)(f"{partner}: {first}")

    def _train(self) -> Arrays:
        task = self.request.task
        schema = self.terms.schema.select(task.features)
        arrays: Arrays = initial_arrays(task, schema)
        weights = self._weights()
        shapes = {name: array.shape for name, array in arrays.items()}
        grid = CheckedGrid(
            self.channel, Expected(shapes, weights), quorum=self.quorum, deadline=self.deadline
        )
        strategy = server_optimizer(
            task.server_optimizer,
            nodes=len(weights),
            learning_rate=task.server_learning_rate,
            proximal_mu=task.proximal_mu,
        )
        self.job = self.job.move(State.RUNNING)
        for number in range(1, task.rounds + 1):
            collected = self._collect(grid, weights, number, arrays)
            mean = collected.close()
            arrays = apply_mean(strategy, number, arrays, mean.arrays, mean.weight)
            self.job = self.job.finish_round(number)
            self._tell("round")
            self.on_round(number, calibrated(arrays, task.positive_weight))
        return calibrated(arrays, task.positive_weight)

    def _collect(
        self, grid: CheckedGrid, weights: Mapping[int, float], number: int, arrays: Arrays
    ) -> Round:
        record = requests.to_record(self.request)
        collected = Round(weights, self.quorum)
        messages = actions.train_messages(weights, number, record, arrays)
        try:
            for reply in grid.send_and_receive(messages):
                collected.add(reply.metadata.src_node_id, actions.arrays_of(reply))
        except TooManyDropouts as error:
            raise TooManyDropouts(f"round {number}: {error}{self._reasons(grid)}") from None
        finally:
            for node, reason in grid.faults.items():
                self._tell("dropped", self.partners[node], reason)
        return collected

    def _reasons(self, grid: CheckedGrid) -> str:
        return "".join(f"; {self.partners[node]}: {why}" for node, why in grid.faults.items())

    def _close(self) -> None:
        """Tells every node that the job is over, so that it frees what was never begun."""
        messages = [actions.close_message(node, self.request.job) for node in self.partners]
        for _ in ask(self.channel, messages, self.deadline):
            pass

    def _weights(self) -> dict[int, float]:
        declared = {partner.name: partner.customers for partner in self.terms.partners}
        return {node: float(declared[partner]) for node, partner in self.partners.items()}

    def _release(self, arrays: Arrays) -> Release:
        task = self.request.task
        return release(
            arrays,
            {partner: {task.event: task.steps} for partner in self.partners.values()},
            self.terms.budget.delta,
            Provenance(
                job=self.request.job,
                request_digest=requests.digest(self.request),
                terms_digest=agreed.digest(self.terms),
                rounds=self.job.rounds_done,
            ),
            customers_overlap=self.terms.customers_overlap,
        )

    def _tell(self, kind: Kind, partner: str = "", text: str = "") -> None:
        self.on_event(
            JobEvent(
                self.request.job,
                kind,
                self.job.rounds_done,
                self.request.task.rounds,
                partner,
                text,
            )
        )
