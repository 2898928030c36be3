from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dovetail.simulation import findings
from dovetail.simulation.results import ALL, Measurement, Predictions


def measured(comparison: str, trainer: str, tested: str, seed: int, value: float) -> Measurement:
    return Measurement(
        comparison=comparison,  # type: ignore[arg-type]
        trained_by=trainer,
        tested_on=tested,
        epsilon=3.0,
        delta=1e-4,
        seed=seed,
        round=5,
        final=True,
        metric="auc",
        value=value,
    )


TWO_SEEDS = [
    measured("joint", ALL, "shop", 0, 0.80),
    measured("joint", ALL, "shop", 1, 0.82),
    measured("alone", "shop", "shop", 0, 0.70),
    measured("alone", "shop", "shop", 1, 0.76),
    measured("joint", ALL, "bank", 0, 0.90),
    measured("joint", ALL, "bank", 1, 0.90),
]


def test_gain_is_paired_by_seed_with_the_error_of_the_differences() -> None:
    found = findings.gain(TWO_SEEDS, "shop", 3.0)
    assert found is not None
    assert found.mean == pytest.approx(0.08)
    assert found.standard_error == pytest.approx(0.02)  # differences .10 and .06
    assert findings.gain(TWO_SEEDS, "bank", 3.0) is None
    assert findings.mean_gain(TWO_SEEDS, {"shop": 7}, 3.0) == found
    assert findings.mean_gain(TWO_SEEDS, {"shop": 7, "bank": 7}, 3.0) is None


def test_another_partners_model_does_not_count_as_alone() -> None:
    foreign = measured("alone", "bank", "shop", 0, 0.1)
    assert findings.own_auc([*TWO_SEEDS, foreign], "shop", "alone", 3.0) == {0: 0.70, 1: 0.76}


def test_the_mean_over_partners_is_weighted_by_their_customers() -> None:
    found = findings.mean_own_auc(TWO_SEEDS, {"shop": 30, "bank": 10}, "joint", 3.0)
    assert found is not None
    assert found.mean == pytest.approx((3 * 0.81 + 0.90) / 4)
    assert findings.mean_own_auc(TWO_SEEDS, {"shop": 30}, "pooled", None) is None


def test_a_seed_that_one_partner_lacks_is_left_out() -> None:
    found = findings.mean_own_auc(TWO_SEEDS[:-1], {"shop": 1, "bank": 1}, "joint", 3.0)
    assert found is not None
    assert found.seeds == 1
    assert found.mean == pytest.approx(0.85)


def test_rounds_come_in_order_and_leave_out_other_test_sets() -> None:
    final = measured("joint", ALL, ALL, 0, 0.8)
    early = replace(final, round=2, final=False, value=0.6)
    foreign = replace(early, tested_on="shop", round=3)
    found = findings.by_round([final, foreign, early], "joint", 3.0)
    assert [(number, point.mean) for number, point in found.items()] == [(2, 0.6), (5, 0.8)]


def predicted(scores: np.ndarray, labels: np.ndarray, **changes: object) -> Predictions:
    rows = len(scores)
    made = Predictions(
        comparison="joint",
        trained_by=ALL,
        epsilon=3.0,
        seed=0,
        scores=scores.astype(np.float32),
        labels=labels.astype(np.float32),
        partner=np.zeros(rows, np.int64),
        customer=np.arange(rows),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_true_model_is_calibrated_within_its_errors() -> None:
    dice = np.random.default_rng(0)
    scores = dice.random(20_000)
    found = findings.calibration([predicted(scores, dice.random(20_000) < scores)], 3.0)
    assert found is not None
    assert np.all(np.abs(found.predicted - found.observed) < 4 * found.errors)
    assert found.predicted == pytest.approx(np.arange(0.05, 1, 0.1), abs=0.01)


def test_calibration_errors_take_customers_and_not_rows_as_the_unit() -> None:
    dice = np.random.default_rng(0)
    scores, labels = np.full(1000, 0.5), dice.random(1000) < 0.5
    once = findings.calibration([predicted(scores, labels)], 3.0)
    fourfold = predicted(np.repeat(scores, 4), np.repeat(labels, 4))
    repeated = findings.calibration([replace(fourfold, customer=np.arange(4000) // 4)], 3.0)
    assert once is not None
    assert repeated is not None
    expected = np.sqrt(0.25 / 100)
    assert once.errors == pytest.approx(np.full(10, expected), rel=0.15)
    assert repeated.errors == pytest.approx(np.full(10, expected), rel=0.15)


def test_lift_of_a_perfect_ranking_and_of_its_opposite() -> None:
    labels = np.arange(100) >= 80
    best = findings.lift([predicted(np.arange(100), labels)], ["shop"], "joint", 3.0)
    worst = findings.lift([predicted(-np.arange(100), labels)], ["shop"], "joint", 3.0)
    assert best is not None
    assert worst is not None
    assert [point.mean for point in best] == [5, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert [point.mean for point in worst] == [0, 0, 0, 0, 0, 0, 0, 0, 5, 5]


def test_lift_alone_takes_each_partners_own_model_and_rows() -> None:
    labels = np.tile(np.arange(100) >= 90, 2)
    partner = np.repeat([0, 1], 100)
    right, wrong = np.tile(np.arange(100), 2), np.tile(-np.arange(100), 2)
    shop = np.where(partner == 0, right, wrong)
    models = [
        predicted(shop, labels, comparison="alone", trained_by="shop", partner=partner),
        predicted(-shop, labels, comparison="alone", trained_by="bank", partner=partner),
    ]
    found = findings.lift(models, ["shop", "bank"], "alone", 3.0)
    assert found is not None
    assert found[0].mean == 10
    assert findings.lift(models, ["shop", "bank"], "joint", 3.0) is None
