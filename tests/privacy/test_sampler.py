import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.errors import PrivacyError
from dovetail.privacy.sampler import TAIL, SecureSampler, _uniform_into

KEY = bytes(range(16))


@given(st.integers(0, 70_000))
@settings(max_examples=20, deadline=None)
def test_every_size_is_filled_with_finite_numbers(n: int) -> None:
    numbers = SecureSampler(KEY).normal(n)
    assert numbers.shape == (n,)
    assert numbers.dtype == np.float32
    assert np.isfinite(numbers).all()
    assert n < 100 or numbers.std() > 0.5


def test_equal_keys_give_equal_draws_and_others_do_not() -> None:
    first = SecureSampler(KEY).normal(1_000)
    assert np.array_equal(first, SecureSampler(KEY).normal(1_000))
    assert not np.isin(SecureSampler(bytes(16)).normal(1_000), first).any()


def test_normal_numbers_and_samples_come_from_separate_streams() -> None:
    alone, mixed = SecureSampler(KEY), SecureSampler(KEY)
    mixed.poisson_sample(1_000, 0.3)
    assert np.array_equal(alone.normal(500), mixed.normal(500))


def test_normal_into_writes_where_a_tensor_lies() -> None:
    tensor = torch.zeros(3, 7)
    SecureSampler(KEY).normal_into(tensor.numpy())
    assert np.array_equal(tensor.numpy().ravel(), SecureSampler(KEY).normal(21))


def test_arrays_that_cannot_take_noise_are_refused() -> None:
    frozen = np.zeros(4, np.float32)
    frozen.setflags(write=False)
    for array in (np.zeros(4), np.zeros((4, 4), np.float32).T[:2], frozen):
        with pytest.raises(PrivacyError, match="float32"):
            SecureSampler(KEY).normal_into(array)  # type: ignore[arg-type]


def test_the_extreme_words_give_the_stated_tail_and_never_infinity() -> None:
    high = np.array([0, 0, 2**32 - 1, 2**32 - 1], dtype=np.uint32)
    low = np.array([0, 2**32 - 1, 0, 2**32 - 1], dtype=np.uint32)
    out, scratch = np.empty(4, np.float32), np.empty(4, np.float32)
    _uniform_into(high, low, out, scratch)
    assert out.min() == np.float32(2.0**-63)
    assert out.max() == 1
    assert np.sqrt(-2 * np.log(out)).max() <= np.float32(TAIL) * 1.000001


@given(st.integers(0, 3_000), st.floats(1e-9, 1.0))
@settings(max_examples=60, deadline=None)
def test_samples_are_increasing_indices_within_range(n: int, prob: float) -> None:
    members = SecureSampler(KEY).poisson_sample(n, prob)
    assert members.dtype == np.int64
    assert (np.diff(members) > 0).all()
    assert not len(members) or (members[0] >= 0 and members[-1] < n)


def test_probability_one_takes_everybody() -> None:
    assert np.array_equal(SecureSampler(KEY).poisson_sample(7, 1.0), np.arange(7))


def test_tiny_probabilities_take_nobody_and_end() -> None:
    assert not len(SecureSampler(KEY).poisson_sample(1_000, 5e-324))
    assert not len(SecureSampler(KEY).poisson_sample(10**15, 1e-30))


@pytest.mark.parametrize(("n", "prob"), [(5, 0.0), (5, -0.1), (5, 1.1), (5, np.nan), (-1, 0.5)])
def test_samples_out_of_range_are_refused(n: int, prob: float) -> None:
    with pytest.raises(PrivacyError, match="Poisson"):
        SecureSampler(KEY).poisson_sample(n, prob)


def test_short_keys_are_refused() -> None:
    with pytest.raises(PrivacyError):
        SecureSampler(bytes(15))
