from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement.request import ModelSpec
from dovetail.agreement.rounding import rounding_slack
from dovetail.agreement.secure_aggregation import SecureAggregation
from dovetail.agreement.sharing import LARGEST_ROUNDING, sharing_of
from dovetail.errors import SettingError
from dovetail.privacy.discrete_gaussian import DiscreteGaussian
from tests.samples import SHARED_TASK, sharing_terms, terms

SIZE = 7  # two numbers, four codes of a category, a bias


def test_the_event_says_what_is_released() -> None:
    sharing = sharing_of(SHARED_TASK, sharing_terms())
    event, encoding = sharing.event, sharing.encoding
    assert (event.nodes, event.tolerated, event.size) == (3, 1, encoding.size)
    assert event.sampling_prob == SHARED_TASK.sampling_prob
    slack = rounding_slack(SIZE, sharing_terms().schema.max_rows_per_customer)
    assert event.l2_sensitivity == pytest.approx(
        encoding.scale * SHARED_TASK.l2_clip_norm * (1 + slack) + math.sqrt(encoding.size),
        rel=1e-9,
    )
    assert event.noise_std / encoding.scale == pytest.approx(
        SHARED_TASK.noise_multiplier * SHARED_TASK.l2_clip_norm
    )
    assert sharing.group.members == ("brand", "platform", "retailer")


def test_an_update_of_several_steps_counts_twice_and_unsampled() -> None:
    event = sharing_of(replace(SHARED_TASK, local_steps=4), sharing_terms()).event
    once = sharing_of(SHARED_TASK, sharing_terms()).event
    assert event.sampling_prob == 1
    assert event.noise_multiplier == pytest.approx(once.noise_multiplier / 2, rel=1e-3)


def test_more_who_may_fail_make_each_add_more() -> None:
    partners = sharing_terms().partners
    four = (*partners, replace(partners[0], name="cinema", key="ab" * 32, certificate="cd" * 32))
    stds = []
    for assumed in (SecureAggregation(0, 1), SecureAggregation(0, 2), SecureAggregation(1, 1)):
        agreed = sharing_terms(partners=four, secure_aggregation=assumed)
        sharing = sharing_of(SHARED_TASK, agreed)
        stds.append(sharing.event.share_std / sharing.encoding.scale)
    assert stds == pytest.approx([1 / math.sqrt(3), 1 / math.sqrt(2), 1 / math.sqrt(2)])


@given(
    noise=st.floats(0.3, 50),
    clip=st.floats(1e-3, 1e6),
    prob=st.floats(0.001, 1),
    width=st.integers(1, 200),
)
def test_no_sum_overflows_and_rounding_asks_for_little(
    noise: float, clip: float, prob: float, width: int
) -> None:
    task = replace(
        SHARED_TASK,
        noise_multiplier=noise,
        l2_clip_norm=clip,
        sampling_prob=prob,
        model=ModelSpec("mlp", (width,)),
    )
    sharing = sharing_of(task, sharing_terms())
    encoding = sharing.encoding
    largest = (
        math.ceil(encoding.bound * encoding.scale)
        + 1
        + DiscreteGaussian(sharing.event.share_std).bound
    )
    assert 3 * largest < 2 ** (encoding.bits - 1)
    assert math.sqrt(encoding.size) <= LARGEST_ROUNDING * encoding.scale * clip


def test_what_does_not_fit_takes_64_bits() -> None:
    agreed = sharing_terms()
    many = tuple(replace(p, customers=p.customers * 10**5) for p in agreed.partners)
    task = replace(SHARED_TASK, model=ModelSpec("mlp", (64, 64)))
    assert sharing_of(task, agreed).encoding.bits == 32
    budget = replace(agreed.budget, delta=1e-9)
    assert sharing_of(task, sharing_terms(partners=many, budget=budget)).encoding.bits == 64


def test_terms_that_share_nothing() -> None:
    with pytest.raises(SettingError, match="do not say how noise is shared"):
        sharing_of(SHARED_TASK, terms())
