"""A coordinator that gives a node models nobody trained, and people something else to approve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.terms import Terms
from dovetail.errors import DataError, DovetailError, PolicyError
from dovetail.privacy.event import Event
from dovetail.privacy.release import Provenance, release
from dovetail.store.card import ModelCard
from dovetail.store.desk import Desk
from dovetail.store.model import card_for, load_model
from tests.intruders.house import ANALYST, COORDINATOR, PARTNERS, REQUEST, House, now, with_task
from tests.intruders.rogues import RogueCoordinator, good_arrays, rogue_coordinator
from tests.samples import TASK

Model = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RogueCoordinator]:
    """A node that takes part in job-1."""
    house = House(tmp_path_factory.mktemp("house"))
    with rogue_coordinator(house) as rogue:
        rogue.propose(house.asked())
        rogue.train(1)
        yield rogue


def made(known: Terms, request: Request = REQUEST) -> Model:
    """A card and a model, as an honest coordinator would release them."""
    task, names = request.task, PARTNERS
    origin = Provenance(request.job, requests.digest(request), agreed.digest(known), task.rounds)
    charged: dict[str, dict[Event, int]] = {name: {task.event: task.steps} for name in names}
    overlap = known.customers_overlap
    arrays = good_arrays(known, request)
    released = release(arrays, charged, known.budget.delta, origin, customers_overlap=overlap)
    card = ModelCard(request, known, dict.fromkeys(names, task.steps), date(2026, 5, 1))
    return dict(card_for(released, card)), dict(arrays)


def other_arrays(known: Terms, **others: Any) -> Model:
    card, arrays = made(known)
    return card, arrays | {name.replace("_", "."): array for name, array in others.items()}


def other_card(known: Terms, **changes: Any) -> Model:
    card, arrays = made(known)
    return card | changes, arrays


def without(known: Terms, field: str) -> Model:
    card, arrays = made(known)
    return {name: value for name, value in card.items() if name != field}, arrays


def with_epsilon_of_nothing(known: Terms) -> Model:
    """A card under terms that make the same job look cheap."""
    return made(replace(known, budget=replace(known.budget, delta=1e-3), minimum_cohort=60))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda t: made(t, Request("job-9", TASK)), "request: "),
        (lambda t: made(t, with_task(rounds=2)), "request: "),
        (lambda t: made(t, with_task(model=ModelSpec("mlp", (4,)))), "request: "),
        (with_epsilon_of_nothing, "terms: "),
        (lambda t: made(replace(t, name="other club")), "terms: "),
        (lambda t: other_card(t, terms_digest="0" * 64), "terms: "),
        (lambda t: other_card(t, terms_digest=[]), "terms: "),
        (lambda t: other_card(t, terms={}), "terms: field 'name' is missing"),
        (lambda t: other_card(t, request_digest="0" * 64), "request changed"),
        (lambda t: other_card(t, arrays_sha256="0" * 64), "not the ones that the card describes"),
        (lambda t: other_card(t, format=2), "format"),
        (lambda t: other_card(t, notes=["x"] * 10_001), "notes"),
        (lambda t: other_card(t, charged={}), "charged"),
        (lambda t: other_card(t, charged={"stranger": 1}), "stranger"),
        (lambda t: other_card(t, charged={"retailer": -1}), "charged"),
        (lambda t: other_card(t, more=1), "unknown field 'more'"),
        (lambda t: without(t, "charged"), "'charged' is missing"),
        (lambda t: ({}, good_arrays(t)), "terms: "),
        (lambda t: other_arrays(t, output_bias=np.ones(1, np.float32)), "not the ones"),
        (lambda t: other_arrays(t, output_bias=np.ones(2, np.float32)), "not those of the model"),
        (lambda t: other_arrays(t, output_bias=np.ones(1, np.float64)), "not float32"),
        (lambda t: other_arrays(t, output_bias=np.array([np.nan], np.float32)), "not finite"),
        (lambda t: other_arrays(t, more=np.ones(1, np.float32)), "not those of the model"),
        (lambda t: (made(t)[0], {}), "not those of the model"),
    ],
)
def test_a_model_that_nobody_trained(
    model: Callable[[Terms], Model],
    why: str,
    stage: RogueCoordinator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = stage.house
    head = house.head("retailer")
    with pytest.raises(DovetailError) as caught:
        stage.keep(*model(house.terms))
    assert why in str(caught.value)
    assert f"refused a released model: {caught.value}" in caplog.text
    assert house.head("retailer") == head
    assert not (house.home("retailer") / "models").exists()
    assert stage.leaked() == []


def test_a_model_of_an_earlier_version_of_the_terms_is_kept(tmp_path: Path) -> None:
    house = House(tmp_path)
    with rogue_coordinator(house) as rogue:
        rogue.propose(house.asked())
        card, arrays = made(house.terms)
        rogue.show(house.document(house.terms, house.amend(max_rounds=40)))
        rogue.keep(card, arrays)
    kept, _ = load_model(house.home("retailer") / "models" / "job-1")
    assert set(kept) == set(arrays)


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[RogueCoordinator]:
    """A node where a person says yes to each job."""
    with rogue_coordinator(House(tmp_path, approval="manual")) as rogue:
        yield rogue


def refusal(call: Callable[[], object]) -> str:
    """The rule that refuses."""
    with pytest.raises(PolicyError) as caught:
        call()
    return caught.value.rule


def test_what_a_person_has_read_cannot_be_swapped_before_the_yes(
    manual: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    house = manual.house
    head, desk = house.head("retailer"), Desk(house.home("retailer") / "desk")
    mild, loud = house.asked(), house.asked(with_task(noise_multiplier=0.6))
    by_another = house.asked(by=COORDINATOR)
    assert refusal(lambda: manual.propose(mild)) == "approval"
    assert refusal(lambda: manual.propose(loud)) == "request"
    assert refusal(lambda: manual.propose(by_another)) == "request"
    assert "refused a proposal: request: another job of this name" in caplog.text
    assert desk.waiting() == (mild,)
    assert house.head("retailer") == head
    desk.decide("job-1", "approved", now())
    assert refusal(lambda: manual.propose(loud)) == "request"
    assert manual.propose(mild) == "job-1"
    assert refusal(lambda: manual.propose(loud)) == "request"
    assert refusal(lambda: manual.train(1, loud.request)) == "request"
    assert house.kinds("retailer") == ["reserve"]


def test_nothing_but_a_person_says_yes(manual: RogueCoordinator) -> None:
    house = manual.house
    for number in range(5):
        signed = house.asked(with_task(f"job-{number}"))
        assert refusal(partial(manual.propose, signed)) == "approval"
    for _ in range(3):
        assert refusal(lambda: manual.propose(house.asked(with_task("job-0")))) == "approval"
    assert refusal(lambda: manual.train(1, with_task("job-0"))) == "request"
    assert len(Desk(house.home("retailer") / "desk").waiting()) == 5
    assert house.spent("retailer") == 0


def test_a_full_desk_refuses_and_has_room_again_once_people_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dovetail.store.desk._MOST_WAITING", 3)
    house, desk = House(tmp_path), Desk(tmp_path / "desk")
    for number in range(3):
        desk.wait_for_decision(house.asked(with_task(f"job-{number}")), now())
    desk.wait_for_decision(house.asked(with_task("job-0")), now())
    with pytest.raises(DataError, match="too many requests wait"):
        desk.wait_for_decision(house.asked(with_task("job-3")), now())
    desk.decide("job-0", "refused", now())
    desk.wait_for_decision(house.asked(with_task("job-3")), now())
    assert [s.request.job for s in desk.waiting()] == ["job-1", "job-2", "job-3"]
    assert desk.waiting()[0].asked_by == ANALYST
