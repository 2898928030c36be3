"""The clustered bootstrap against brute force, and against truth that is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.simulation import findings, metrics, uncertainty
from dovetail.simulation.results import ALL, Comparison, Estimate, Measurement, Predictions
from dovetail.simulation.uncertainty import RESAMPLES, Resamples, spread

Floats = npt.NDArray[np.float64]


def model_of(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    customer: npt.ArrayLike,
    partner: npt.ArrayLike | None = None,
    comparison: Comparison = "joint",
    trained_by: str = ALL,
    seed: int = 0,
) -> Predictions:
    customers = np.asarray(customer, np.int64)
    return Predictions(
        comparison=comparison,
        trained_by=trained_by,
        epsilon=3.0,
        seed=seed,
        scores=np.asarray(scores, np.float32),
        labels=np.asarray(labels, np.float32),
        partner=np.zeros_like(customers) if partner is None else np.asarray(partner, np.int64),
        customer=customers,
    )


def clustered(dice: np.random.Generator, customers: int, rows: int = 4) -> Predictions:
    """Rows of one customer share a tendency, and some scores are tied."""
    customer = np.repeat(np.arange(customers), rows)
    tendency = dice.normal(size=customers)[customer]
    labels = dice.random(len(customer)) < 1 / (1 + np.exp(1.5 - 2 * tendency))
    scores = np.round(tendency + dice.normal(size=len(customer)), 1)
    return model_of(scores, labels, customer)


def everyone(model: Predictions) -> npt.NDArray[np.bool_]:
    return np.ones(len(model.labels), bool)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_each_draw_is_the_auc_of_the_rows_that_it_repeats(seed: int) -> None:
    model = clustered(np.random.default_rng(seed), customers=15)
    resamples = Resamples(model)
    drawn = resamples.auc(everyone(model))
    (counts,) = resamples._draws()
    for number in range(5):
        rows = np.repeat(np.arange(60), counts[model.customer, number].astype(int))
        wanted = metrics.auc(model.labels[rows], model.scores[rows])
        assert drawn[number] == pytest.approx(wanted, nan_ok=True)


def test_the_spread_is_that_of_a_brute_force_bootstrap() -> None:
    """Both are known to 3 % and 4 %: the tolerance is four standard errors of their ratio."""
    dice = np.random.default_rng(3)
    model = clustered(dice, customers=80)
    rows_of = np.arange(320).reshape(80, 4)
    brute = [
        metrics.auc(model.labels[rows], model.scores[rows])
        for rows in (rows_of[dice.integers(80, size=80)].ravel() for _ in range(300))
    ]
    found = spread(Resamples(model).auc(everyone(model)))
    assert found == pytest.approx(np.std(brute, ddof=1), rel=0.2)


def test_rows_of_one_customer_are_drawn_together() -> None:
    """Four equal rows of each customer say no more than one, and are not taken for more."""
    once = clustered(np.random.default_rng(8), customers=100, rows=1)
    scores, labels, customer = (np.repeat(a, 4) for a in (once.scores, once.labels, once.customer))
    alike, apart = model_of(scores, labels, customer), model_of(scores, labels, np.arange(400))
    found = [spread(Resamples(m).auc(everyone(m))) for m in (once, alike, apart)]
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0] / 2, rel=0.2)


def test_every_draw_has_as_many_customers_of_each_partner() -> None:
    partner = np.repeat([0, 1], [30, 10])
    model = model_of(np.arange(40), np.arange(40) % 2, np.arange(40), partner)
    sizes = np.stack([partner == 0, partner == 1], axis=1).astype(float)
    totals = Resamples(model).totals(sizes)
    np.testing.assert_array_equal(totals, np.tile([30.0, 10.0], (RESAMPLES, 1)))


def test_draws_repeat_themselves_and_do_not_depend_on_the_model() -> None:
    dice = np.random.default_rng(4)
    model = clustered(dice, customers=50)
    other = model_of(dice.normal(size=200), model.labels, model.customer)
    rows = everyone(model)
    np.testing.assert_array_equal(Resamples(model).auc(rows), Resamples(model).auc(rows))
    ones = model.labels[:, None].astype(np.float64)
    np.testing.assert_array_equal(Resamples(model).totals(ones), Resamples(other).totals(ones))


def test_memory_is_bounded_and_all_draws_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "_AT_ONCE", 60 * 7)
    model = clustered(np.random.default_rng(5), customers=15)
    parts = [counts.shape[1] for counts in Resamples(model)._draws()]
    assert max(parts) == 7
    assert sum(parts) == RESAMPLES == len(Resamples(model).auc(everyone(model)))


def test_one_class_has_no_spread() -> None:
    model = model_of(np.arange(20), np.zeros(20), np.arange(20))
    assert np.isnan(spread(Resamples(model).auc(everyone(model))))


def measured(model: Predictions) -> Measurement:
    value = metrics.auc(model.labels, model.scores)
    return Measurement(
        model.comparison, model.trained_by, "shop", 3.0, 1e-4, model.seed, 1, True, "auc", value
    )


def one_study(dice: np.random.Generator, customers: int, seeds: int) -> findings.Evidence:
    """A test set, and models whose score is the truth blurred by their seed's own fixed error."""
    customer = np.repeat(np.arange(customers), 2)
    columns = dice.normal(size=(len(customer), 3))
    columns += dice.normal(size=(customers, 3))[customer]
    labels = dice.random(len(customer)) < 1 / (1 + np.exp(1 - columns[:, 0]))
    models = []
    for seed in range(seeds):
        pairs: tuple[tuple[Comparison, str, float], ...] = (
            ("joint", ALL, 0.3),
            ("alone", "shop", 0.5),
        )
        for comparison, trained_by, offset in pairs:
            weights = np.array([1.0, offset + 0.1 * dice.normal(), 0.1 * dice.normal()])
            models.append(
                model_of(columns @ weights, labels, customer, None, comparison, trained_by, seed)
            )
    return findings.Evidence([measured(m) for m in models], models, {"shop": customers})


STUDIES = 100


@pytest.fixture(scope="module")
def repeated() -> dict[str, list[Estimate]]:
    """AUC and gain of many studies, each with test customers and seeds of its own."""
    dice, found = np.random.default_rng(6), dict[str, list[Estimate]](auc=[], gain=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "RESAMPLES", 150)
        for _ in range(STUDIES):
            evidence = one_study(dice, customers=100, seeds=3)
            auc = findings.auc(evidence, "joint", 3.0, "shop")
            gain = findings.gain(evidence, "shop", 3.0)
            assert auc is not None
            assert gain is not None
            found["auc"].append(auc)
            found["gain"].append(gain)
    return found


@pytest.mark.parametrize("what", ["auc", "gain"])
def test_the_stated_error_is_the_error_over_repeated_studies(
    what: str, repeated: dict[str, list[Estimate]]
) -> None:
    """The spread of what the studies found is the truth, known to 7 %: four times that is let."""
    found = repeated[what]
    truth = float(np.std([e.mean for e in found], ddof=1))
    assert _typical([e.standard_error for e in found]) == pytest.approx(truth, rel=0.28)
    assert _typical([e.seeds_error for e in found]) < 0.9 * truth


def _typical(errors: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def test_a_paired_gain_is_surer_than_either_side() -> None:
    evidence = one_study(np.random.default_rng(7), customers=100, seeds=4)
    gain = findings.gain(evidence, "shop", 3.0)
    joint = findings.mean_own_auc(evidence, "joint", 3.0)
    assert gain is not None
    assert joint is not None
    assert 0 < gain.customers_error < 0.7 * joint.customers_error
    assert findings.mean_gain(evidence, 3.0) == gain
