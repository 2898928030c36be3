"""Every call of analysts and operators, with what it answers and whom it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail import errors
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    PREVIEW,
    chain_from_record,
    request_from_record,
    request_record,
    require_permitted,
    sign_request,
    signed_permit_from_record,
)
from dovetail.agreement.terms import Terms
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.service import Service
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.privacy import accountant
from dovetail.simulation.identities import COORDINATOR, signing_key
from dovetail.store.model import load_model, save_fetched
from dovetail.wire.control import METHODS
from dovetail.wire.peers import NodeLink, Peer
from tests.agreement.conftest import changed
from tests.coordinator.nodes import NAMES, Nodes
from tests.coordinator.office import (
    ANALYST,
    PATIENCE,
    Office,
    asked_by,
    office,
    trusting,
    with_analyst,
)
from tests.coordinator.test_parties import fresh_keyring, invited
from tests.samples import SHARED_TASK, TASK, sharing_terms, terms

BAD = json.loads((Path(__file__).parents[1] / "vectors" / "control.json").read_text())["bad"]
TERMS = with_analyst()
PEERS = {ANALYST: Peer(ANALYST, "analyst"), COORDINATOR: Peer(COORDINATOR, "operator")}
LINK = NodeLink("retailer", 7, "ipv4:127.0.0.1:9", 100.0, 200.0, 0.5)
REQUEST = Request("job-1", TASK)


@dataclass
class Desk:
    """A service over an office."""

    office: Office
    service: Service
    parties: Parties

    def call(self, method: str, by: str = ANALYST, **record: Any) -> dict[str, Any]:
        answer = self.service.call(method, PEERS[by], record)
        json.dumps(answer, allow_nan=False)
        return answer

    def submit(self, by: str = ANALYST, request: Request = REQUEST) -> dict[str, Any]:
        signed = request_record(asked_by(by, self.office.nodes.terms, request))
        return self.call("Submit", by, signed=signed, quorum=0, deadline=PATIENCE)

    def watch(self, job: str, after: int = 0) -> Iterator[dict[str, Any]]:
        record = {"job": job, "after": after}
        return self.service.watch(PEERS[ANALYST], record, threading.Event())

    def released(self) -> None:
        self.submit()
        self.office.heard.until("released")
        self.office.done()


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    with_them: list[Any] = []

    def opened(nodes: Nodes | None = None) -> Desk:
        context = office(tmp_path, nodes or Nodes(TERMS))
        one = context.__enter__()
        with_them.append(context)
        parties = Parties(tmp_path / "parties", fresh_keyring(COORDINATOR))
        links = lambda: [LINK]  # noqa: E731
        service = Service(one.docket, one.store, one.trusted, parties, links, tmp_path)
        return Desk(one, service, parties)

    yield opened
    for context in with_them:
        context.__exit__(None, None, None)


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def test_a_preview_states_every_partners_cost_and_all_together(desk: Desk) -> None:
    signed = request_record(asked_by(ANALYST, TERMS))
    found = desk.call("Preview", signed=signed)
    epsilon = accountant.epsilon({TASK.event: TASK.steps}, 1e-3)
    assert found["joint_epsilon"] == pytest.approx(epsilon)
    assert list(found["partners"]) == [partner.name for partner in TERMS.partners]
    for said in found["partners"].values():
        assert said["epsilon"] == pytest.approx(epsilon)
        assert said["refused_by"] == said["text"] == ""
    assert (found["delta"], found["approval"]) == (1e-3, "automatic")
    assert desk.office.nodes.told("query.propose") == []


def test_where_customers_overlap_a_preview_adds_all_partners_up(
    open_desk: Callable[..., Desk],
) -> None:
    overlapping = with_analyst(customers_overlap=True)
    desk = open_desk(Nodes(overlapping))
    found = desk.call("Preview", signed=request_record(asked_by(ANALYST, overlapping)))
    joint = accountant.epsilon({TASK.event: 3 * TASK.steps}, 1e-3)
    assert found["joint_epsilon"] == pytest.approx(joint)
    assert found["customers_overlap"] is True


def test_where_they_share_noise_too_it_states_what_one_partners_customer_pays(
    open_desk: Callable[..., Desk],
) -> None:
    shared = sharing_terms(analysts=with_analyst().analysts, customers_overlap=True)
    desk, asked = open_desk(Nodes(shared)), Request("job-1", SHARED_TASK)
    found = desk.call("Preview", signed=request_record(asked_by(ANALYST, shared, asked)))
    cost, said = cost_of(SHARED_TASK, shared), found["partners"]["brand"]
    assert said["epsilon"] == pytest.approx(accountant.epsilon(cost.alone(), 1e-3))
    assert said["charged"] == found["joint_epsilon"] > said["epsilon"]


@pytest.mark.parametrize("noise", [1e-3, 0.2])
def test_a_preview_says_who_would_refuse_and_why(noise: float, desk: Desk) -> None:
    loud = Request("job-1", replace(TASK, noise_multiplier=noise))
    partners = desk.office.docket.preview(asked_by(ANALYST, TERMS, loud))
    assert {said["refused_by"] for said in partners.values()} == {"epsilon"}
    assert all(said["text"] for said in partners.values())


def test_a_job_from_its_submission_to_its_model(desk: Desk, tmp_path: Path) -> None:
    assert desk.submit()["job"] == "job-1"
    events = list(desk.watch("job-1"))
    kinds = [event["kind"] for event in events]
    assert kinds == ["submitted", *["permitted"] * 3, *["round"] * 3, "released"]
    assert list(desk.watch("job-1", events[-3]["sequence"])) == events[-2:]
    assert list(desk.watch("job-1", events[-1]["sequence"])) == []
    desk.office.done()
    shown = desk.call("Show", job="job-1")
    assert (shown["state"], shown["permitted"], shown["awaited"]) == (
        "released",
        sorted(NAMES),
        [],
    )
    assert shown["settled"] == sorted(NAMES)
    assert shown["request"]["task"]["rounds"] == TASK.rounds
    card, pieces = desk.service.fetch(PEERS[ANALYST], {"job": "job-1"})
    save_fetched(tmp_path / "fetched", card, b"".join(pieces))
    arrays, _ = load_model(tmp_path / "fetched")
    kept, _ = load_model(tmp_path / "releases" / "job-1")
    for name, array in kept.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_nothing_shows_signatures_requests_of_all_or_where_files_lie(desk: Desk) -> None:
    desk.released()
    (listed,) = desk.call("List", states=[], limit=9, before="")["jobs"]
    for hidden in ("request", "signature", "owner", "checkpoint"):
        assert hidden not in listed
        assert hidden == "request" or hidden not in desk.call("Show", job="job-1")


def test_permits_are_handed_out_as_their_partners_signed_them(desk: Desk) -> None:
    desk.released()
    permits = desk.call("Permits", job="job-1")["permits"]
    for record in permits:
        signed = signed_permit_from_record({k: record[k] for k in ("permit", "signature")})
        require_permitted(signed, TERMS.partner(signed.permit.partner))
    assert len(permits) == 3


def test_jobs_are_listed_newest_first_by_state_and_page(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(Nodes(with_analyst(approval="manual")))
    for number in (1, 2, 3):
        desk.submit(request=Request(f"job-{number}", TASK))
    desk.call("Cancel", job="job-2")

    def listed(**changes: Any) -> list[str]:
        record = {"states": [], "limit": 100, "before": "", **changes}
        return [job["job"] for job in desk.call("List", **record)["jobs"]]

    assert listed() == ["job-3", "job-2", "job-1"]
    assert listed(states=["cancelled"]) == ["job-2"]
    assert listed(states=["cancelled", "proposed"], limit=2) == ["job-3", "job-2"]
    assert listed(before="job-2") == ["job-1"]
    assert listed(limit=-5) == ["job-3"]
    assert listed(states=["nothing such"]) == []


def test_who_is_awaited(open_desk: Callable[..., Desk]) -> None:
    nodes = Nodes(with_analyst(approval="manual"), decisions={"retailer": "approved"})
    desk = open_desk(nodes)
    desk.submit(COORDINATOR)
    desk.office.heard.until("awaiting", times=2)
    shown = desk.call("Show", job="job-1")
    assert shown["permitted"] == ["retailer"]
    assert shown["awaited"] == ["platform", "brand"]


def test_only_the_operator_approves(open_desk: Callable[..., Desk]) -> None:
    manual = with_analyst(approval="manual")
    desk = open_desk(Nodes(manual, decisions=dict.fromkeys(NAMES, "approved")))
    desk.submit()
    with pytest.raises(PolicyError) as caught:
        desk.call("Approve", job="job-1")
    assert caught.value.rule == "role"
    desk.call("Approve", COORDINATOR, job="job-1")
    desk.office.heard.until("released")


def test_a_job_is_cancelled_by_who_asked_or_by_the_operator(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(Nodes(with_analyst(approval="manual")))
    desk.submit(COORDINATOR)
    desk.office.heard.until("awaiting", times=3)
    with pytest.raises(PolicyError) as caught:
        desk.call("Cancel", job="job-1")
    assert caught.value.rule == "role"
    desk.call("Cancel", COORDINATOR, job="job-1")
    desk.office.nodes.nudge()
    desk.office.heard.until("cancelled")
    desk.submit(request=Request("job-2", TASK))
    assert desk.call("Cancel", job="job-2")["state"] == "cancelled"


def test_nobody_hands_in_what_another_signed(desk: Desk) -> None:
    signed = request_record(asked_by(ANALYST, TERMS))
    for method, more in (("Submit", {"quorum": 0, "deadline": 60}), ("Preview", {})):
        with pytest.raises(PolicyError, match="handed in by whoever signed it"):
            desk.call(method, COORDINATOR, signed=signed, **more)


def test_what_was_signed_to_be_priced_is_not_submitted(desk: Desk) -> None:
    key = signing_key(ANALYST)
    priced = request_record(sign_request(REQUEST, agreed.digest(TERMS), ANALYST, key, PREVIEW))
    assert desk.call("Preview", signed=priced)["partners"].keys() == set(NAMES)
    with pytest.raises(PolicyError, match="to be priced, not to run"):
        desk.call("Submit", signed=priced, quorum=0, deadline=60)
    with pytest.raises(PolicyError, match="to be priced, not to run"):
        desk.office.docket.submit(request_from_record(priced), 0, 60)
    assert desk.office.nodes.told("query.propose") == []


@pytest.mark.parametrize("known", [None, terms(), TERMS], ids=["none", "unnamed", "other"])
def test_whom_the_terms_do_not_name_reads_the_agreement_and_nothing_else(
    known: Terms | None, desk: Desk, tmp_path: Path
) -> None:
    desk.released()
    one, trusted = desk.office, trusting(known) if known else trusting()
    links = lambda: [LINK]  # noqa: E731
    service = Service(one.docket, one.store, trusted, desk.parties, links, tmp_path)
    stranger = Peer("stranger" if known == TERMS else ANALYST, "analyst")
    assert len(service.call("Agreement", stranger, {})["agreements"]) == (1 if known else 0)
    calls: list[Callable[[], object]] = [
        lambda: list(service.watch(stranger, {"job": "job-1", "after": 0}, threading.Event())),
        lambda: service.fetch(stranger, {"job": "job-1"}),
    ]
    others = [method for method in METHODS if method != "Agreement"]
    calls += [partial(service.call, method, stranger, {"job": "job-1"}) for method in others]
    for call in calls:
        with pytest.raises(PolicyError, match="no agreement that all signed names") as caught:
            call()
        assert caught.value.rule == "party"
    assert service.call("Nodes", PEERS[COORDINATOR], {})["parties"] == []


def test_parties_are_listed_with_their_connections(desk: Desk) -> None:
    for name in ("retailer", "brand", "platform"):
        _, request = invited(desk.parties, name)
        desk.parties.enrol(request)
    desk.parties.revoke("brand")
    found = desk.call("Nodes")
    assert found["revoked"] == ["brand"]
    by_name = {party["name"]: party for party in found["parties"]}
    assert by_name["platform"] == {"name": "platform", "duty": "partner", "connected": False}
    assert by_name["retailer"]["connected"] is True
    assert by_name["retailer"]["clock_ahead"] == 0.5
    assert by_name["retailer"]["heard"] == 200.0


def test_the_agreement_is_handed_out_with_all_signatures(desk: Desk) -> None:
    (signed,) = chain_from_record(desk.call("Agreement"))
    assert agreed.digest(signed.terms) == agreed.digest(TERMS)
    assert signed.missing() == ()


def test_watching_everything_ends_only_when_cancelled(desk: Desk) -> None:
    cancelled = threading.Event()
    stream = desk.service.watch(PEERS[ANALYST], {"job": "", "after": 0}, cancelled)
    desk.submit()
    kinds = []
    for event in stream:
        kinds.append(event["kind"])
        if event["kind"] == "released":
            cancelled.set()
    assert kinds[0] == "submitted"
    assert kinds[-1] == "released"


def test_the_watcher_of_a_refused_job_hears_the_end_and_not_only_the_first_refusal(
    desk: Desk,
) -> None:
    desk.submit(request=Request("job-1", replace(TASK, purpose="resale")))
    events = list(desk.watch("job-1"))
    assert [event["kind"] for event in events] == ["submitted", *["refused"] * 4]
    assert events[-1]["partner"] == ""


def test_what_was_not_released_is_not_fetched(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(Nodes(with_analyst(approval="manual")))
    desk.submit()
    with pytest.raises(SettingError, match="'job-1' has released nothing"):
        desk.service.fetch(PEERS[ANALYST], {"job": "job-1"})


def test_a_model_that_is_missing_is_said_to_be(desk: Desk, tmp_path: Path) -> None:
    desk.released()
    (tmp_path / "releases" / "job-1" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="is missing at the coordinator"):
        desk.service.fetch(PEERS[ANALYST], {"job": "job-1"})


@pytest.mark.parametrize("vector", BAD, ids=lambda v: f"{v['call']}: {v['why']}")
def test_records_that_cannot_be_used(vector: dict[str, Any], desk: Desk) -> None:
    signed = request_record(asked_by(ANALYST, TERMS))
    good = {"signed": signed, "quorum": 0, "deadline": 60.0}
    record = vector.get("record", changed(good, vector))
    calls: dict[str, Callable[[], object]] = {
        "Watch": lambda: list(desk.service.watch(PEERS[ANALYST], record, threading.Event())),
        "Fetch": lambda: desk.service.fetch(PEERS[ANALYST], record),
    }
    with pytest.raises(getattr(errors, vector["error"])) as caught:
        calls.get(
            vector["call"], lambda: desk.service.call(vector["call"], PEERS[ANALYST], record)
        )()
    assert str(caught.value).startswith(vector["text"]) or vector["text"] in str(caught.value)
    assert desk.office.store.list() == ()
    assert desk.office.nodes.sent == []


def test_every_method_of_the_wire_is_answered(desk: Desk) -> None:
    assert set(desk.service._calls) == set(METHODS)
