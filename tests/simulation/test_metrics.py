"""Metrics of scores, against their definitions and scikit-learn's ranks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.simulation import metrics

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40)


def arrays(drawn: list[tuple[bool, int]]) -> tuple[metrics.Floats, metrics.Floats]:
    return (
        np.array([label for label, _ in drawn], dtype=np.float32),
        np.array([score / 8 for _, score in drawn], dtype=np.float32),
    )


@given(rows)
def test_auc_is_the_chance_that_a_one_outranks_a_zero(drawn: list[tuple[bool, int]]) -> None:
    labels, scores = arrays(drawn)
    ones, zeros = scores[labels == 1], scores[labels == 0]
    if not len(ones) or not len(zeros):
        assert math.isnan(metrics.auc(labels, scores))
        return
    wins = (ones[:, None] > zeros) + (ones[:, None] == zeros) / 2
    assert metrics.auc(labels, scores) == pytest.approx(wins.mean())


def test_log_loss_of_a_coin_is_one_bit_even_with_one_class() -> None:
    half = np.full(3, 0.5, dtype=np.float32)
    assert metrics.log_loss(np.zeros(3), half) == pytest.approx(math.log(2))
    assert metrics.log_loss(np.array([1.0, 0, 1]), half) == pytest.approx(math.log(2))
    assert math.isnan(metrics.log_loss(np.zeros(0), np.zeros(0)))
