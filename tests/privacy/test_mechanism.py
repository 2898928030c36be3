import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import PrivacyError
from dovetail.privacy.discrete_gaussian import DiscreteGaussian, DiscreteSampler
from dovetail.privacy.event import Gaussian, SampledGaussian, SharedGaussian
from dovetail.privacy.mechanism import (
    add_delayed_noise,
    add_noise,
    add_noise_share,
    grid_of,
    noised_sum,
    to_grid,
)
from dovetail.privacy.sampler import SecureSampler

KEY = bytes(range(16))
EVENT = SampledGaussian(0.1, 1.0, 1.5)


@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_every_output_lies_on_the_events_grid(std: float, shift: float, size: int) -> None:
    event = Gaussian(1.0, std)
    grid = grid_of(event)
    assert std / 32 < grid <= std / 16
    total = np.linspace(-shift, shift, size, dtype=np.float32) * np.float32(std)
    cells = noised_sum(total, event, SecureSampler(KEY)).astype(np.float64) / grid
    assert np.array_equal(cells, np.rint(cells))


def test_large_sums_keep_all_digits_of_the_noise() -> None:
    """65,536 swallows the noise's low digits in float32; on the grid they stay."""
    small = noised_sum(np.zeros(10_000, np.float32), EVENT, SecureSampler(KEY))
    large = noised_sum(np.full(10_000, 65_536, np.float32), EVENT, SecureSampler(KEY))
    assert np.array_equal(large - np.float32(65_536), small)


def test_outputs_are_the_sum_and_the_noise_up_to_half_a_cell() -> None:
    total = np.linspace(-3, 3, 5_001, dtype=np.float32).reshape(3, -1)
    noised = noised_sum(total, EVENT, SecureSampler(KEY))
    exact = total + 1.5 * SecureSampler(KEY).normal(total.size).astype(np.float64).reshape(3, -1)
    assert np.abs(noised - exact).max() <= grid_of(EVENT) * 0.50001


def test_the_sum_given_stays_and_the_result_is_new() -> None:
    total = np.zeros((4, 2), dtype=np.float32)
    noised = noised_sum(total, EVENT, SecureSampler(KEY))
    assert not total.any()
    assert noised.shape == (4, 2)
    assert noised.dtype == np.float32


def test_a_tensor_is_noised_where_it_lies() -> None:
    tensor = torch.zeros(7, 5)
    add_noise(tensor.numpy(), EVENT, SecureSampler(KEY))
    expected = noised_sum(np.zeros((7, 5), np.float32), EVENT, SecureSampler(KEY))
    assert np.array_equal(tensor.numpy(), expected)


def test_a_transposed_sum_is_noised_in_its_own_shape() -> None:
    total = np.arange(6, dtype=np.float32).reshape(2, 3).T
    noised = noised_sum(total, Gaussian(1.0, 1e-6), SecureSampler(KEY))
    assert np.allclose(noised, total, atol=1e-4)


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40_000])
def test_sums_that_are_not_finite_are_refused(entry: float, place: int) -> None:
    total = np.zeros(50_000, dtype=np.float32)
    total[place] = entry
    with pytest.raises(PrivacyError, match="not finite"):
        noised_sum(total, EVENT, SecureSampler(KEY))


def test_sums_that_would_overflow_are_refused() -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        noised_sum(np.full(3, 3e38, np.float32), Gaussian(1.0, 2.0**-20), SecureSampler(KEY))


@pytest.mark.parametrize("std", [1e-20, 1e20])
def test_noise_out_of_range_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="noise_std"):
        noised_sum(np.zeros(3, np.float32), Gaussian(1.0, std), SecureSampler(KEY))


def test_other_arrays_and_events_are_refused() -> None:
    sampler = SecureSampler(KEY)
    with pytest.raises(PrivacyError, match="float32"):
        add_noise(np.zeros(3), EVENT, sampler)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="contiguous"):
        add_noise(np.zeros((4, 4), np.float32)[:, :2], EVENT, sampler)
    with pytest.raises(PrivacyError, match="Gaussian"):
        noised_sum(np.zeros(3, np.float32), "gaussian", sampler)  # type: ignore[arg-type]


def test_an_empty_sum_stays_empty() -> None:
    assert noised_sum(np.zeros((0, 3), np.float32), EVENT, SecureSampler(KEY)).shape == (0, 3)


def test_totals_of_delayed_noise_lie_on_one_grid_however_often_they_were_read() -> None:
    """Else a released row would show how often it was read, which is private."""
    steps = np.array([1, 2, 3, 7, 50], dtype=np.int64)
    sampler = SecureSampler(KEY)
    total = np.zeros((5, 400), np.float32)
    for _ in range(3):
        rows = np.full((5, 400), 0.3, np.float32)
        add_delayed_noise(rows, steps, EVENT, sampler)
        total += rows
    before = total.copy()
    to_grid(total, EVENT)
    cells = total.astype(np.float64) / grid_of(EVENT)
    assert np.array_equal(cells, np.rint(cells))
    assert np.abs(total - before).max() <= grid_of(EVENT) * 0.5001


def test_delayed_noise_is_that_of_the_steps() -> None:
    sums = np.linspace(-5, 5, 12, dtype=np.float32).reshape(4, 3)
    steps = np.array([1, 4, 9, 16], dtype=np.int64)
    noised = sums.copy()
    add_delayed_noise(noised, steps, EVENT, SecureSampler(KEY))
    drawn = SecureSampler(KEY).normal(12).reshape(4, 3).astype(np.float64)
    np.testing.assert_allclose(noised, sums + 1.5 * np.sqrt(steps)[:, None] * drawn, rtol=1e-5)


def test_rows_without_steps_or_of_other_shapes_are_refused() -> None:
    rows, sampler = np.zeros((2, 3), np.float32), SecureSampler(KEY)
    for steps in ([1], [1, 0], [[1, 1]]):
        with pytest.raises(PrivacyError, match="rows"):
            add_delayed_noise(rows, np.array(steps, dtype=np.int64), EVENT, sampler)
    with pytest.raises(PrivacyError, match="not finite"):
        to_grid(rows + np.float32(np.nan), EVENT)


SHARED = SharedGaussian(0.1, 100.0, 400.0, nodes=3, tolerated=1, size=12)


def test_a_share_is_drawn_with_its_own_std_and_added() -> None:
    units = np.arange(12, dtype=np.int64).reshape(3, 4)
    add_noise_share(units, SHARED, DiscreteSampler(bytes(16)))
    drawn = DiscreteSampler(bytes(16)).draw(DiscreteGaussian(SHARED.share_std), 12)
    assert np.array_equal(units.ravel(), np.arange(12) + drawn)


@pytest.mark.parametrize("size", [0, 11, 13])
def test_a_share_for_another_size_than_was_charged_is_refused(size: int) -> None:
    with pytest.raises(PrivacyError, match="size"):
        add_noise_share(np.zeros(size, dtype=np.int64), SHARED, DiscreteSampler(bytes(16)))


def test_a_share_that_cannot_be_drawn_is_refused() -> None:
    coarse = SharedGaussian(0.1, 1.0, 12.0, nodes=3, tolerated=1, size=4)
    with pytest.raises(PrivacyError, match="std"):
        add_noise_share(np.zeros(4, dtype=np.int64), coarse, DiscreteSampler(bytes(16)))


def test_the_whole_noise_of_a_shared_sum_is_never_added_by_one_node() -> None:
    with pytest.raises(PrivacyError, match="Gaussian"):
        noised_sum(np.zeros(12, dtype=np.float32), SHARED, SecureSampler(bytes(16)))
