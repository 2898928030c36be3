from __future__ import annotations

import math
from dataclasses import replace

from dovetail.agreement.cost import cost_of
from dovetail.agreement.sharing import sharing_of
from tests.samples import SHARED_TASK, TASK, sharing_terms, terms


def test_alone_every_step_is_charged_and_together_every_round() -> None:
    steps = replace(TASK, local_steps=2)
    alone = cost_of(steps, terms())
    assert (alone.event, alone.per_round, alone.count) == (TASK.event, 2, 6)
    together = cost_of(replace(SHARED_TASK, local_steps=2), sharing_terms())
    assert (together.per_round, together.count) == (1, 3)
    assert together.spending == {together.event: 3}


def test_a_person_who_may_be_everywhere_is_charged_for_every_partner() -> None:
    agreed = sharing_terms(customers_overlap=True)
    event, cost = sharing_of(SHARED_TASK, agreed).event, cost_of(SHARED_TASK, agreed)
    assert (cost.per_round, cost.count) == (3, 9)
    assert cost.event == replace(event, noise_std=event.noise_std / math.sqrt(3))
    assert cost.alone() == {event: 3}, "a customer of one partner is in each sum once"
    assert [list(cost.alone(count).values()) for count in (3, 4, 6)] == [[1], [2], [2]]


def test_elsewhere_a_customer_of_one_partner_pays_what_is_charged() -> None:
    for cost in (
        cost_of(TASK, terms(customers_overlap=True)),
        cost_of(SHARED_TASK, sharing_terms()),
    ):
        assert cost.alone() == cost.spending
