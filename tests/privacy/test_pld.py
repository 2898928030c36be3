from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.privacy import pld
from dovetail.privacy.history import History, Step

CELL = 2.0**-9
DELTA = 1e-5
STEPS: list[Step] = [(1.0, 0.01), (2.0, 0.1), (4.0, 0.3)]
COUNTS = st.dictionaries(st.sampled_from(STEPS), st.integers(1, 40), min_size=1)


def history(counts: dict[Step, int], unsampled: float = 0.0) -> History:
    return (*sorted(counts.items()), *([((unsampled, 1.0), 1)] if unsampled else []))


@given(st.lists(COUNTS, min_size=1, max_size=8), st.sampled_from([0.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_composing_what_is_new_gives_what_composing_anew_gives(
    asked: list[dict[Step, int]], unsampled: float
) -> None:
    """Whatever is asked in whatever order: also less than before, as after a cancelled job."""
    growing = pld.Compositions()
    for counts in asked:
        found = growing.of(history(counts, unsampled), CELL)
        anew = pld.Compositions().of(history(counts, unsampled), CELL)
        for epsilon in (0.1, 1.0, 4.0):
            expected = anew.get_delta_for_epsilon(epsilon)
            assert found.get_delta_for_epsilon(epsilon) == pytest.approx(expected, abs=1e-13)


def test_a_thousand_small_steps_are_as_good_as_one_large_one() -> None:
    growing = pld.Compositions()
    for count in range(1, 1001):
        found = growing.of(history({STEPS[0]: count}), CELL)
    anew = pld.composed(history({STEPS[0]: 1000}), CELL)
    assert found.get_epsilon_for_delta(DELTA) == pytest.approx(
        anew.get_epsilon_for_delta(DELTA), rel=1e-6
    )


def test_grids_of_different_width_are_not_mixed() -> None:
    growing = pld.Compositions()
    growing.of(history({STEPS[0]: 10}), CELL)
    finer = growing.of(history({STEPS[0]: 11}), CELL / 4)
    anew = pld.composed(history({STEPS[0]: 11}), CELL / 4)
    assert finer.get_epsilon_for_delta(DELTA) == anew.get_epsilon_for_delta(DELTA)
