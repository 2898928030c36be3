"""How much noise a job needs to stay within an ε."""

from __future__ import annotations

from dataclasses import replace

from dovetail.agreement.cost import cost_of
from dovetail.agreement.request import TrainingTask
from dovetail.agreement.terms import Terms
from dovetail.errors import PrivacyError
from dovetail.privacy import accountant
from dovetail.privacy.accountant import calibrate_noise_multiplier, round_up

_ATTEMPTS = 20
_LITTLE = 1.0005


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
    found = round_up(least * task.noise_multiplier / cost.event.noise_multiplier)
    for _ in range(_ATTEMPTS):  # what a grid adds to the sensitivity depends on the noise
        cost = cost_of(replace(task, noise_multiplier=found), terms)
        if accountant.epsilon(cost.spending, delta) <= epsilon:
            return found
        found = round_up(max(found * least / cost.event.noise_multiplier, found * _LITTLE))
    raise PrivacyError("no noise was found that is enough for this epsilon")
