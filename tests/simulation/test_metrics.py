"""Metrics of scores, against their definitions and scikit-learn's ranks."""

import itertools
import math
from random import Random

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


@given(rows, st.integers(1, 12))
def test_calibration_bins_hold_all_rows_in_ascending_order(
    drawn: list[tuple[bool, int]], bins: int
) -> None:
    labels, scores = arrays(drawn)
    found = metrics.calibration(labels, scores, bins)
    assert sum(b.rows for b in found) == len(labels)
    assert sum(b.rows * b.positive_share for b in found) == pytest.approx(labels.sum(), abs=1e-4)
    assert max(b.rows for b in found) - min(b.rows for b in found) <= 1
    means = [b.mean_score for b in found]
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(means))


def test_calibrated_scores_lie_on_the_diagonal() -> None:
    random = np.random.default_rng(0)
    scores = random.random(100_000)
    labels = (random.random(100_000) < scores).astype(float)
    for found in metrics.calibration(labels, scores):
        assert found.mean_score == pytest.approx(found.positive_share, abs=0.03)


@given(rows, st.integers(1, 12), st.randoms())
def test_lift_does_not_depend_on_the_order_of_rows(
    drawn: list[tuple[bool, int]], slices: int, random: Random
) -> None:
    labels, scores = arrays(drawn)
    found = metrics.lift(labels, scores, slices)
    if labels.sum() == 0:
        assert found == []
        return
    random.shuffle(drawn)
    again = metrics.lift(*arrays(drawn), slices)
    assert [b.lift for b in again] == pytest.approx([b.lift for b in found])
    assert found[-1].captured == pytest.approx(1)
    weighted = sum(b.rows * b.lift for b in found) / len(labels)
    assert weighted == pytest.approx(1)


def test_lift_of_a_perfect_ranking() -> None:
    labels = np.repeat([1.0, 0.0], [10, 90])
    found = metrics.lift(labels, np.linspace(1, 0, 100))
    assert [b.lift for b in found] == pytest.approx([10] + [0] * 9)
    assert [b.captured for b in found] == pytest.approx([1] * 10)


def share(labels: metrics.Floats, scores: metrics.Floats) -> float:
    return float(labels.mean())


def test_bootstrap_error_knows_the_error_of_a_mean() -> None:
    labels = np.repeat([0.0, 1.0], 500)
    error = metrics.bootstrap_error(share, labels, labels, np.arange(1000), 0, 2000)
    assert error == pytest.approx(0.5 / np.sqrt(1000), rel=0.1)


def test_bootstrap_error_grows_when_rows_of_a_customer_agree() -> None:
    """Ten equal rows per customer carry the information of one."""
    labels = np.tile(np.repeat([0.0, 1.0], 50), 10)
    customers = np.tile(np.arange(100), 10)
    error = metrics.bootstrap_error(share, labels, labels, customers, 0, 2000)
    assert error == pytest.approx(0.5 / np.sqrt(100), rel=0.1)


def test_bootstrap_error_is_undefined_with_one_class() -> None:
    zeros = np.zeros(20)
    assert math.isnan(metrics.bootstrap_error(metrics.auc, zeros, zeros, np.arange(20), 0))


def test_paired_error_is_smaller_than_either_alone() -> None:
    random = np.random.default_rng(1)
    labels = (random.random(600) < 0.2).astype(float)
    scores = labels + random.normal(size=600)
    near = scores + 0.05 * random.normal(size=600)
    customers = np.arange(600) // 4
    alone = metrics.bootstrap_error(metrics.auc, labels, scores, customers, 0, 60)
    paired = metrics.paired_bootstrap_error(metrics.auc, labels, (scores, near), customers, 0, 60)
    assert 0 < paired < 0.3 * alone
    same = metrics.paired_bootstrap_error(metrics.auc, labels, (scores, scores), customers, 0, 60)
    assert same == 0
