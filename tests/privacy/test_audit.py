import math

import numpy as np
import pytest

from dovetail.errors import PrivacyError
from dovetail.privacy.accountant import epsilon
from dovetail.privacy.audit import epsilon_lower_bound, projections
from dovetail.privacy.event import Gaussian
from dovetail.privacy.mechanism import noised_sum
from dovetail.privacy.sampler import SecureSampler

DELTA = 1e-2
CONFIDENCE = 1 - 1e-6
RUNS = 150_000
CANARY = np.array([0.6, 0.0, -0.8], dtype=np.float32)  # of norm 1, the sensitivity


def _attacked(noise: float, key: int) -> float:
    """The bound that the attack shows for the real mechanism with this noise multiplier."""
    sampler, event = SecureSampler(bytes([key]) * 16), Gaussian(1.0, noise)
    base = np.tile(np.array([5.0, -2.0, 100.0], dtype=np.float32), (RUNS, 1))
    without = projections(noised_sum(base, event, sampler), CANARY)
    with_canary = projections(noised_sum(base + CANARY, event, sampler), CANARY)
    return epsilon_lower_bound(without, with_canary, DELTA, CONFIDENCE)


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0])
def test_the_mechanism_is_consistent_with_its_epsilon_and_the_audit_is_tight(noise: float) -> None:
    claimed = epsilon({Gaussian(1.0, noise): 1}, DELTA)
    assert 0.7 * claimed < _attacked(noise, key=1) <= claimed


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0])
def test_too_little_noise_is_caught(noise: float) -> None:
    claimed = epsilon({Gaussian(1.0, noise): 1}, DELTA)
    assert _attacked(0.7 * noise, key=2) > claimed


def test_a_leak_without_noise_is_unbounded_in_the_number_of_runs() -> None:
    found = epsilon_lower_bound(np.zeros(10_000), np.ones(10_000), 0.0, 0.99)
    assert found == pytest.approx(math.log(5_000 / -math.log(0.0025)), rel=0.01)


def test_runs_that_look_alike_show_nothing() -> None:
    same = SecureSampler(bytes(16))
    assert epsilon_lower_bound(same.normal(20_000), same.normal(20_000), 0.0, 0.999) == 0


def test_an_audit_needs_runs_and_ranges() -> None:
    few, many = np.zeros(3), np.zeros(10)
    for arguments in ((few, many, 0.0, 0.9), (many, few, 0.0, 0.9), (many, many, 1.0, 0.9)):
        with pytest.raises(PrivacyError):
            epsilon_lower_bound(*arguments)
    with pytest.raises(PrivacyError, match="confidence"):
        epsilon_lower_bound(many, many, 0.0, 1.0)
