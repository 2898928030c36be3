"""What a job costs at a partner: the event, and how often it happens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dovetail.agreement.request import TrainingTask
from dovetail.agreement.sharing import sharing_of
from dovetail.agreement.terms import Terms
from dovetail.errors import PrivacyError
from dovetail.privacy import accountant
from dovetail.privacy.accountant import calibrate_noise_multiplier
from dovetail.privacy.event import SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.overlap import joint_parts

_ATTEMPTS = 20
_LITTLE = 1.0005


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


def enough_noise(task: TrainingTask, terms: Terms, epsilon: float, delta: float) -> float:
    """The least noise multiplier with which a whole job costs at most ``epsilon`` at ``delta``.

    Args:
        task: the task, with any noise multiplier.
        terms: under which it is asked.
        epsilon: > 0.
        delta: in (0, 1).

    Returns:
        Four significant digits, rounded up; its cost was computed and does not exceed the budget.

    Raises:
        PrivacyError: an argument is out of range, or no noise is enough.
        SettingError: the noise cannot be shared as the terms say.
    """
    if task.protection != "distributed":
        steps = task.rounds * task.local_steps
        return calibrate_noise_multiplier(epsilon, delta, task.sampling_prob, steps)
    cost = cost_of(task, terms)
    least = calibrate_noise_multiplier(epsilon, delta, cost.event.sampling_prob, cost.count)
    found = _rounded_up(least * task.noise_multiplier / cost.event.noise_multiplier)
    for _ in range(_ATTEMPTS):  # what a grid adds to the sensitivity depends on the noise
        cost = cost_of(replace(task, noise_multiplier=found), terms)
        if accountant.epsilon(cost.spending, delta) <= epsilon:
            return found
        found = _rounded_up(max(found * least / cost.event.noise_multiplier, found * _LITTLE))
    raise PrivacyError("no noise was found that is enough for this epsilon")


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


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / unit) * unit:.4g}")
