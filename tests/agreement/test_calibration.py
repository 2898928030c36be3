from __future__ import annotations

from dataclasses import replace

import pytest

from dovetail.agreement.calibration import enough_noise
from dovetail.agreement.cost import cost_of
from dovetail.privacy.accountant import epsilon
from tests.samples import SHARED_TASK, TASK, sharing_terms


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("task", [TASK, SHARED_TASK, replace(SHARED_TASK, local_steps=3)])
def test_the_least_noise_that_is_enough(task: object, overlap: bool) -> None:
    agreed = sharing_terms(customers_overlap=overlap)
    noise = enough_noise(task, agreed, 2.0, 1e-3)  # type: ignore[arg-type]

    def cost(multiplier: float) -> float:
        noisy = replace(task, noise_multiplier=multiplier)  # type: ignore[type-var]
        return epsilon(cost_of(noisy, agreed).spending, 1e-3)  # type: ignore[arg-type]

    assert cost(noise) <= 2.0
    assert cost(noise * 0.98) > 2.0
