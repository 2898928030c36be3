"""What a job costs at a partner: the event, and how often it happens."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.agreement.request import TrainingTask
from dovetail.agreement.sharing import sharing_of
from dovetail.agreement.terms import Terms
from dovetail.privacy.event import SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.overlap import joint_parts


@dataclass(frozen=True)
class Cost:
    """What a job is charged at each partner.

    Attributes:
        event: what happens again and again.
        per_round: how often in a round.
        rounds: of the job.
        shared_sum: where :attr:`event` is a part of a sum's cost to somebody who is a customer of
            every partner, what the whole sum, once a round, costs a customer of one partner.
    """

    event: SampledGaussian | SharedGaussian
    per_round: int
    rounds: int
    shared_sum: SharedGaussian | None = None

    @property
    def count(self) -> int:
        """How often :attr:`event` happens in the whole job."""
        return self.per_round * self.rounds

    @property
    def spending(self) -> Spending:
        """All of it."""
        return {self.event: self.count}

    def alone(self, count: int | None = None) -> Spending:
        """What a customer of one partner, and of no other, pays: no more than is charged.

        Args:
            count: how often :attr:`event` was charged; by default for the whole job.
        """
        charged = self.count if count is None else count
        if self.shared_sum is None:
            return {self.event: charged}
        return {self.shared_sum: -(-charged // self.per_round)}


def cost_of(task: TrainingTask, terms: Terms) -> Cost:
    """What a task costs at each partner under these terms, before anything runs.

    Of a shared sum that is what it costs somebody who is a customer of every partner, where the
    terms say that there may be such.

    Raises:
        SettingError: its noise cannot be shared as the terms say.
        SchemaError: the task names columns that the terms do not have.
    """
    if task.protection == "distributed":
        event = sharing_of(task, terms).event
        if not terms.customers_overlap:
            return Cost(event, 1, task.rounds)
        part, parts = joint_parts(event, len(terms.partners))
        return Cost(part, parts, task.rounds, shared_sum=event)
    return Cost(task.event, task.local_steps, task.rounds)
