from __future__ import annotations

import pytest

from dovetail.agreement.policy import LARGEST_SAMPLE
from dovetail.agreement.rounding import MOST_SUMMED, rounding_slack


def test_little_is_added_to_a_clip_norm() -> None:
    assert 0 < rounding_slack(10_000, 1) < 1e-6
    assert rounding_slack(1_000_000, 1) < 1e-4
    assert rounding_slack(10_000, 100) < 2e-3


@pytest.mark.parametrize("size", [1, 10_000])
def test_more_is_added_where_more_is_rounded(size: int) -> None:
    slacks = [rounding_slack(size, rows) for rows in (1, 2, 100, 4096, 100_000)]
    assert slacks == sorted(slacks)
    assert rounding_slack(size, 1) < rounding_slack(10 * size, 1)


def test_it_covers_every_sample_that_policy_allows() -> None:
    assert MOST_SUMMED > 2.5 * LARGEST_SAMPLE
