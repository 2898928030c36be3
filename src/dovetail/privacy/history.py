"""A spending as the numbers that its cost depends on: what every accountant begins with."""

from __future__ import annotations

from collections import defaultdict

from dovetail.errors import PrivacyError
from dovetail.privacy.event import Gaussian, SampledGaussian, SharedGaussian, Spending
from dovetail.privacy.shared_noise import twin

Step = tuple[float, float]
"""Noise multiplier and sampling probability of one step; probability 1 is no sampling."""
History = tuple[tuple[Step, int], ...]
"""Steps, and how often each was taken: sampled ones by kind and in order, then at most one more
that stands for all unsampled ones together."""

NOISE_MULTIPLIERS = (0.01, 1e6)
"""Noise multipliers for which the accounting is numerically sound; others are refused."""


def history_of(spending: Spending) -> History:
    """What happened, with equal steps counted together; a shared sum as its twin.

    ``k`` Gaussian mechanisms with noise multipliers ``s_i`` compose exactly to one with
    ``(Σ s_i⁻²)^(-1/2)`` (Dong, Roth and Su 2022, "Gaussian differential privacy", Cor. 3.3).

    Raises:
        PrivacyError: a count is no whole number >= 0, an event is unknown, its noise multiplier
            lies outside :data:`NOISE_MULTIPLIERS`, or a shared sum has no twin.
    """
    counts: defaultdict[Step, int] = defaultdict(int)
    precision = 0.0
    for event, count in spending.items():
        step = _step(event)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise PrivacyError("an event is counted by a whole number >= 0")
        if step[1] == 1:
            precision += count / step[0] ** 2
        elif count:
            counts[step] += count
    steps = sorted(counts.items())
    return (*steps, *([((precision**-0.5, 1.0), 1)] if precision else []))


def _step(event: object) -> Step:
    if isinstance(event, SharedGaussian):
        event = twin(event)
    if not isinstance(event, Gaussian | SampledGaussian):
        raise PrivacyError("an event of unknown kind cannot be accounted for")
    low, high = NOISE_MULTIPLIERS
    if not low <= event.noise_multiplier <= high:
        raise PrivacyError(f"noise multipliers from {low:g} to {high:g} can be accounted for")
    prob = event.sampling_prob if isinstance(event, SampledGaussian) else 1.0
    return event.noise_multiplier, prob
