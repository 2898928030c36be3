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
    """

    event: SampledGaussian | SharedGaussian
    per_round: int
    rounds: int

    @property
    def count(self) -> int:
        """How often :attr:`event` happens in the whole job."""
        return self.per_round * self.rounds

    @property
    def spending(self) -> Spending:
        """All of it."""
        return {self.event: self.count}


def cost_of(task: TrainingTask, terms: Terms) -> Cost:
    """What a task costs at each partner under these terms, before anything runs.

    Of a shared sum that is what it costs somebody who is a customer of every partner, where the
    terms say that there may be such.

    Raises:
        SettingError: its noise cannot be shared as the terms say.
        SchemaError: the task names columns that the terms do not have.
    """
    if task.protection == "distributed":
        event, parts = sharing_of(task, terms).event, 1
        if terms.customers_overlap:
            event, parts = joint_parts(event, len(terms.partners))
        return Cost(event, parts, task.rounds)
    return Cost(task.event, task.local_steps, task.rounds)
