"""An analyst who asks a real coordinator for more than an analyst may: refused, noted, no job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, request_record
from dovetail.errors import (
    AgreementError,
    DovetailError,
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
    SettingError,
    TransportError,
)
from dovetail.privacy import pld
from dovetail.wire.control import METHODS
from dovetail.wire.peers import DOCUMENT_BYTES
from dovetail.wire.tls import channel_credentials, client_options
from tests.intruders.house import ANALYST, COORDINATOR, PARTNERS, House, amended, with_task
from tests.intruders.offices import Office, office, refused_calls
from tests.intruders.rogues import PATIENCE, eventually
from tests.samples import TASK

SECOND = "second-analyst"


class TwoAnalysts(House):
    """A house with two analysts."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        super().__init__(folder, **changes)
        self.enrol(SECOND, "analyst")
        both = (self.party(ANALYST), self.party(SECOND))
        self.terms = replace(self.terms, analysts=both)
        self.versions = [self.terms]
        self.sign(self.terms)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A coordinator whose jobs wait for its operator; one analyst has handed one in."""
    house = TwoAnalysts(tmp_path_factory.mktemp("house"), approval="manual")
    with office(house, "retailer") as made:
        made.submit(house.asked(Request("mine", TASK)))
        yield made


@pytest.fixture
def desk(opened: Office, caplog: pytest.LogCaptureFixture) -> Iterator[Office]:
    """The same, for a test after which there is no other job and nothing was charged."""
    heads, before = opened.heads(), opened.call("Show", job="mine")
    yield opened
    assert opened.jobs() == ["mine"]
    assert opened.call("Show", job="mine") == before
    assert opened.heads() == heads
    assert not [r for r in caplog.records if r.exc_info], "nothing was unforeseen"


Sign = Callable[[House], SignedRequest]


@pytest.mark.parametrize(
    ("rule", "sign"),
    [
        ("party", lambda h: h.asked(by=COORDINATOR)),
        ("party", lambda h: h.asked(by=ANALYST)),
        ("party", lambda h: replace(h.asked(by=ANALYST), asked_by=SECOND)),
        ("party", lambda h: h.asked(by=SECOND, key=ANALYST)),
        ("party", lambda h: replace(h.asked(by=SECOND), signature="")),
        ("party", lambda h: replace(h.asked(by=SECOND), signature="0" * 128)),
        ("party", lambda h: replace(h.asked(by=SECOND), request=with_task(rounds=1))),
        ("terms", lambda h: h.asked(by=SECOND, under=amended(h.terms, minimum_cohort=60))),
        ("terms", lambda h: replace(h.asked(by=SECOND), terms_digest="f" * 64)),
    ],
)
def test_a_job_in_anothers_name_or_under_other_terms(
    rule: str, sign: Sign, desk: Office, caplog: pytest.LogCaptureFixture
) -> None:
    signed = request_record(sign(desk.house))
    for method, more in (("Submit", {"quorum": 0, "deadline": 60}), ("Preview", {})):
        with pytest.raises((PolicyError, SettingError)) as caught:
            desk.call(method, SECOND, signed=signed, **more)
        if signed["signature"]:
            assert getattr(caught.value, "rule", "") == rule
            said = f"refused {method} to analyst {SECOND!r}: {rule}: "
            assert any(line.startswith(said) for line in refused_calls(caplog))


def test_another_analysts_job_is_neither_cancelled_nor_approved(
    desk: Office, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PolicyError) as caught:
        desk.call("Cancel", SECOND, job="mine")
    assert caught.value.rule == "role"
    for name in (ANALYST, SECOND):
        with pytest.raises(PolicyError) as caught:
            desk.call("Approve", name, job="mine")
        assert caught.value.rule == "role"
    assert [line.partition(": ")[0] for line in refused_calls(caplog)] == [
        f"refused Cancel to analyst {SECOND!r}",
        f"refused Approve to analyst {ANALYST!r}",
        f"refused Approve to analyst {SECOND!r}",
    ]


def test_the_same_name_for_another_job(desk: Office) -> None:
    for by in (ANALYST, SECOND):
        signed = desk.house.asked(with_task("mine", noise_multiplier=2.0), by=by)
        with pytest.raises(SettingError, match="another job is named 'mine'"):
            desk.submit(signed, by)
    with pytest.raises(SettingError, match="another job is named 'mine'"):
        desk.submit(desk.house.asked(Request("mine", TASK), by=SECOND), SECOND)
    assert desk.submit(desk.house.asked(Request("mine", TASK)))["asked_by"] == ANALYST


NAMES = [
    "",
    "..",
    ".",
    "../../coordinator/keys/signing",
    "../mine",
    "mine/../mine",
    "/etc/passwd",
    "mine\0",
    "mine\n",
    "mine ",
    "MINE",
    "m" * 65,
    "ｍine",
    "%2e%2e",
    "mine' OR '1'='1",
    "*",
    "ghost",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_jobs_that_do_not_exist_and_tricks_with_names(name: str, desk: Office) -> None:
    for method in ("Show", "Permits", "Cancel", "Approve"):
        with pytest.raises((SettingError, PolicyError)):
            desk.call(method, SECOND, job=name)
        with pytest.raises(SettingError):
            desk.call(method, COORDINATOR, job=name)
    pieces: list[bytes] = []
    with desk.client(desk.house.keys[SECOND]) as client:
        with pytest.raises(SettingError):
            client.fetch({"job": name}, pieces.append)
        if name:
            with pytest.raises(SettingError):
                list(client.watch({"job": name, "after": 0}))
    assert pieces == []


def test_no_file_is_named_by_who_asks(desk: Office) -> None:
    """A job's name becomes part of paths: the request itself cannot have another."""
    good: Any = request_record(desk.house.asked(by=SECOND))
    for name in [*NAMES[:-2], None, 7, ["mine"], {"a": 1}]:
        record = good | {"request": good["request"] | {"job": name}}
        with pytest.raises((SettingError, PolicyError)):
            desk.call("Submit", SECOND, signed=record, quorum=0, deadline=60)


def test_nothing_is_fetched_before_it_is_released(desk: Office) -> None:
    with (
        desk.client(desk.house.keys[ANALYST]) as client,
        pytest.raises(SettingError, match="has released nothing"),
    ):
        client.fetch({"job": "mine"}, lambda _: None)


@pytest.mark.parametrize("quorum", [-1, 4, 2**53 - 1, 2**63, 1.0, True, None, "1", [1]], ids=str)
def test_a_quorum_that_cannot_be(quorum: Any, desk: Office) -> None:
    signed = request_record(desk.house.asked(by=SECOND))
    with pytest.raises(SettingError, match="quorum"):
        desk.call("Submit", SECOND, signed=signed, quorum=quorum, deadline=60)


@pytest.mark.parametrize("deadline", [0, -1, 86_401, 1e308, True, None, "60", 10**400], ids=str)
def test_a_deadline_that_cannot_be(deadline: Any, desk: Office) -> None:
    signed = request_record(desk.house.asked(by=SECOND))
    with pytest.raises(SettingError, match="deadline"):
        desk.call("Submit", SECOND, signed=signed, quorum=0, deadline=deadline)


def raw_call(desk: Office, method: str, document: bytes) -> grpc.StatusCode:
    """What becomes of a call with these bytes."""
    access = desk.house.access(desk.house.keys[SECOND])
    options = client_options(8 * DOCUMENT_BYTES)
    with grpc.secure_channel(access.address, channel_credentials(access), options) as channel:
        call = channel.unary_stream(f"/dovetail.v1.Control/{method}")
        try:
            list(call(document, timeout=PATIENCE))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def document(text: str | bytes) -> bytes:
    """A document on the wire, by hand: protobuf itself would refuse what is no text."""
    raw = text.encode() if isinstance(text, str) else text
    size, length = len(raw), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return b"\x0a" + length + bytes([size]) + raw


BAD = {
    "no protobuf": b"\xff\xff\xff",
    "cut off": document("{}")[:-1],
    "no text": document(b"\xff\xfe"),
    "no JSON": document("{"),
    "no object": document("[]"),
    "a constant": document('{"job": NaN}'),
    "deep": document("[" * 1_000_000),
    "deep objects": document('{"job":' * 100_000 + "1" + "}" * 100_000),
    "deep in a request": document('{"signed":' + "[" * 200_000 + "}"),
    "a number of a million digits": document('{"job": ' + "9" * 1_000_000 + "}"),
    "many fields": document(json.dumps({f"x{n}": n for n in range(200_000)})),
    "a long name": document(json.dumps({"x" * 4_000_000: 1})),
    "8 MiB": document('{"job": "' + "x" * (DOCUMENT_BYTES - 20) + '"}'),
    "more than 8 MiB": document('{"job": "' + "x" * DOCUMENT_BYTES + '"}'),
    "much more than 8 MiB": document('{"job": "' + "x" * 3 * DOCUMENT_BYTES + '"}'),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_documents_that_cannot_be_read(raw: bytes, desk: Office) -> None:
    refused = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED}
    for method in ("Submit", "Preview", "Show", "Watch", "Fetch"):
        assert raw_call(desk, method, raw) in refused
    assert desk.call("Show", SECOND, job="mine")["state"] == "proposed"


def test_methods_that_do_not_exist(desk: Office) -> None:
    for method in ("Delete", "submit", "", "Release"):
        assert raw_call(desk, method, document("{}")) is grpc.StatusCode.UNIMPLEMENTED


def test_records_with_fields_too_many_or_too_few(desk: Office) -> None:
    records: list[dict[str, Any]] = [
        {"job": "mine", "more": 1},
        {"job": None},
        {"job": {}},
        {"job": "x" * 501},
        {"": ""},
        {"x" * 10_000: 1},
    ]
    for method in METHODS:
        for record in records:
            with pytest.raises((SettingError, PolicyError)) as caught:
                desk.call(method, SECOND, **record)
            assert len(str(caught.value)) <= 500


def test_what_cannot_be_sent_is_not(desk: Office) -> None:
    with desk.client(desk.house.keys[SECOND]) as client:
        with pytest.raises(LocalProtocolError):
            client.call("Show", {"job": float("nan")})
        with pytest.raises(LocalProtocolError):
            client.call("Delete", {})


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("column", {"features": ("age", "income")}),
        ("purpose", {"purpose": "resale"}),
        ("label", {"label": "churned"}),
        ("epsilon", {"noise_multiplier": 0.2}),
        ("protection", {"protection": "none"}),
        ("rounds", {"rounds": 51}),
        ("steps", {"rounds": 50, "local_steps": 200_000}),
    ],
    ids=str,
)
def test_a_job_that_the_partners_refuse(
    rule: str,
    changes: dict[str, Any],
    refusing: Office,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heads = refusing.heads()
    signed = refusing.house.asked(with_task(f"breaks-{rule}", **changes))
    found = {said["refused_by"] for said in previews(refusing, signed).values()}
    assert found == {rule}
    refusing.submit(signed)
    events = refusing.watch(signed.request.job)
    assert [event["kind"] for event in events] == ["submitted", *["refused"] * 4]
    assert all(f"{rule}: " in event["text"] for event in events[1:])
    assert caplog.text.count(f"refused a proposal: {rule}: ") == 3
    assert refusing.heads() == heads


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A coordinator whose jobs go to all partners at once."""
    with office(House(tmp_path_factory.mktemp("refusing")), *PARTNERS) as made:
        yield made


def previews(desk: Office, signed: SignedRequest) -> dict[str, Any]:
    found: dict[str, Any] = desk.call("Preview", signed=request_record(signed))["partners"]
    return found


def test_a_preview_that_would_take_minutes_to_answer_exactly(
    refusing: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pld, "composed", lambda *_: pytest.fail("this would take minutes"))
    task = {"rounds": 7_839_188, "sampling_prob": 0.441, "noise_multiplier": 16_205.85}
    signed = refusing.house.asked(with_task("endless", **task))
    found = refusing.call("Preview", signed=request_record(signed))
    assert {said["refused_by"] for said in found["partners"].values()} == {"rounds"}
    assert 0 < found["joint_epsilon"] < 1


def test_a_request_under_terms_that_were_amended_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)
    with office(house, "brand") as desk:
        first, old = house.terms, house.asked()
        house.amend(max_rounds=2)
        eventually(lambda: len(desk.call("Agreement")["agreements"]) == 2)
        with pytest.raises(PolicyError) as caught:
            desk.submit(old)
        assert caught.value.rule == "terms"
        with pytest.raises(PolicyError) as caught:
            desk.call("Preview", signed=request_record(house.asked(under=first)))
        assert caught.value.rule == "terms"
        assert desk.jobs() == []
        assert len([line for line in refused_calls(caplog) if ": terms: " in line]) == 2
        with pytest.raises((AgreementError, SettingError, RemoteProtocolError, TransportError)):
            desk.call("Show", job="job-1")


def test_more_jobs_than_may_be_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.coordinator.docket.MOST_JOBS", 3)
    house = House(tmp_path, approval="manual")
    with office(house) as desk:
        for number in range(3):
            desk.submit(house.asked(with_task(f"job-{number}")))
        with pytest.raises(DovetailError, match="3 jobs are under way"):
            desk.submit(house.asked(with_task("job-3")))
        desk.submit(house.asked(with_task("job-0")))
        assert len(desk.jobs()) == 3
