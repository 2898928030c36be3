from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dovetail.simulation import findings
from dovetail.simulation.results import ALL, Estimate, Measurement, Predictions


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


def evidence(found: list[Measurement], **held_out: int) -> findings.Evidence:
    return findings.Evidence(found, (), held_out)


def ranked(models: list[Predictions], *partners: str) -> findings.Evidence:
    return findings.Evidence((), models, dict.fromkeys(partners, 1))


def test_gain_is_paired_by_seed_with_the_error_of_the_differences() -> None:
    found = findings.gain(evidence(TWO_SEEDS, shop=7, bank=7), "shop", 3.0)
    assert found is not None
    assert found.mean == pytest.approx(0.08)
    assert found.standard_error == pytest.approx(0.02)  # differences .10 and .06
    assert findings.gain(evidence(TWO_SEEDS, shop=7, bank=7), "bank", 3.0) is None
    mean = findings.mean_gain(evidence(TWO_SEEDS, shop=7), 3.0)
    assert mean is not None
    assert (mean.mean, mean.seeds_error) == (found.mean, found.seeds_error)
    assert findings.mean_gain(evidence(TWO_SEEDS, shop=7, bank=7), 3.0) is None


def test_another_partners_model_does_not_count_as_alone() -> None:
    foreign = measured("alone", "bank", "shop", 0, 0.1)
    found = findings.auc(evidence([*TWO_SEEDS, foreign], shop=7), "alone", 3.0, "shop", "shop")
    assert found is not None
    assert found.mean == pytest.approx(0.73)
    assert found.seeds == 2


def test_the_mean_over_partners_is_weighted_by_their_customers() -> None:
    found = findings.mean_own_auc(evidence(TWO_SEEDS, shop=30, bank=10), "joint", 3.0)
    assert found is not None
    assert found.mean == pytest.approx((3 * 0.81 + 0.90) / 4)
    assert findings.mean_own_auc(evidence(TWO_SEEDS, shop=30), "pooled", None) is None


def test_a_seed_that_one_partner_lacks_is_left_out() -> None:
    found = findings.mean_own_auc(evidence(TWO_SEEDS[:-1], shop=1, bank=1), "joint", 3.0)
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
    best = findings.lift(ranked([predicted(np.arange(100), labels)], "shop"), "joint", 3.0)
    worst = findings.lift(ranked([predicted(-np.arange(100), labels)], "shop"), "joint", 3.0)
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
    found = findings.lift(ranked(models, "shop", "bank"), "alone", 3.0)
    assert found is not None
    assert found[0].mean == 10
    assert findings.lift(ranked(models, "shop", "bank"), "joint", 3.0) is None


def test_lift_knows_its_error_over_customers() -> None:
    """In a tenth of n rows of which a share p responds, the share's error is √(p(1-p)/n)."""
    dice = np.random.default_rng(0)
    labels = dice.random(4000) < np.repeat([0.2, 0.4], 2000)
    found = findings.lift(ranked([predicted(np.arange(4000), labels)], "shop"), "joint", 3.0)
    assert found is not None
    assert found[0].customers_error == pytest.approx(np.sqrt(0.24 / 400) / 0.3, rel=0.2)
    assert found[9].customers_error == pytest.approx(np.sqrt(0.16 / 400) / 0.3, rel=0.2)


@pytest.mark.parametrize(
    ("mean", "seeds_error", "customers_error", "clear"),
    [(0.03, 0.01, 0.0, 1), (-0.03, 0.01, 0.0, -1), (0.03, 0.01, 0.012, 0), (0.0, 0.0, 0.0, 0)],
)
def test_only_what_lies_beyond_two_errors_is_clear(
    mean: float, seeds_error: float, customers_error: float, clear: int
) -> None:
    assert Estimate(mean, seeds_error, 3, customers_error).clear == clear
    assert Estimate(mean, np.nan, 1).clear == 0


def test_one_seed_has_the_error_over_customers_and_no_scores_that_over_seeds() -> None:
    assert Estimate(0.8, np.nan, 1, 0.02).standard_error == 0.02
    assert Estimate(0.8, 0.01, 3).standard_error == 0.01
    assert Estimate(0.8, 0.03, 3, 0.04).standard_error == pytest.approx(0.05)
    assert np.isnan(Estimate(0.8, np.nan, 1).standard_error)
