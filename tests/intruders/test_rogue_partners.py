"""A partner whose node answers a real coordinator with what it should not: dropped, and noted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, MetricRecord

from dovetail.agreement.request import Request
from dovetail.agreement.signing import PERMIT, request_record
from dovetail.crypto.keyring import Keyring
from dovetail.errors import PolicyError, TransportError
from dovetail.flower import codec
from dovetail.flower._compat import new_message
from dovetail.flower.records import array_record, named_arrays
from dovetail.store.model import load_model
from dovetail.wire.peers import Limits
from tests.intruders.house import COORDINATOR, House, with_task
from tests.intruders.offices import Office, office
from tests.intruders.rogues import BIAS as B
from tests.intruders.rogues import WEIGHT as W
from tests.intruders.rogues import RoguePartner, Twist, eventually
from tests.samples import TASK

HONEST, ROGUE = ("retailer", "platform"), "brand"
ROUNDS = 30


@dataclass
class Scene:
    """A coordinator, two honest nodes and a rogue one."""

    desk: Office
    rogue: RoguePartner

    @property
    def house(self) -> House:
        return self.desk.house


@contextmanager
def scene(folder: Path, limits: Limits | None = None) -> Iterator[Scene]:
    house = House(folder)
    with office(house, *HONEST, limits=limits) as desk:
        rogue = RoguePartner(house, ROGUE)
        try:
            desk.until_there(ROGUE)
            eventually((house.home(ROGUE) / f"{ROGUE}.ledger").exists)
            yield Scene(desk, rogue)
        finally:
            rogue.leave()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("house")) as made:
        yield made


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    """What happens to jobs is logged as information."""
    caplog.set_level(logging.INFO, "dovetail.coordinator.app")


@pytest.fixture
def here(stage: Scene) -> Iterator[Scene]:
    yield stage
    stage.rogue.twist = lambda _, reply: reply


Edit = Callable[[Scene, dict[str, Any]], object]
JOBS = iter(range(1000))


def signed_by(record: dict[str, Any], keyring: Keyring) -> None:
    record["signature"] = keyring.signing.sign(PERMIT, record["permit"])


def altered(**changes: Any) -> Edit:
    """Some fields of the permit changed, and signed again with the partner's own key."""

    def edit(scene: Scene, record: dict[str, Any]) -> None:
        record["permit"] |= changes
        signed_by(record, scene.house.keys[ROGUE])

    return edit


def forged(name: str) -> Edit:
    return lambda scene, record: signed_by(record, scene.house.keys[name])


def unsigned(value: Any) -> Edit:
    return lambda _, record: record.update(signature=value)


def emptied(_: Scene, record: dict[str, Any]) -> None:
    record.clear()


ELSE = "the permit is for something else than was asked"
OTHER_SIGNATURE = "the signature of the permit does not fit it"
EVENT = {"kind": "sampled_gaussian", "sampling_prob": 0.1, "l2_sensitivity": 1.0, "noise_std": 1.0}


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (altered(job="another"), ELSE),
        (altered(partner="retailer"), ELSE),
        (altered(request_digest="0" * 64), ELSE),
        (altered(terms_digest="0" * 64), ELSE),
        (altered(steps=1), ELSE),
        (altered(steps=2**53 - 1), ELSE),
        (altered(event=EVENT | {"noise_std": 0.5}), ELSE),
        (altered(event={"kind": "gaussian", "l2_sensitivity": 1.0, "noise_std": 1.0}), ELSE),
        (altered(event=EVENT | {"kind": "laplace"}), "unknown kind of privacy event"),
        (altered(event=EVENT | {"noise_std": -1.0}), "must be positive and finite"),
        (forged("retailer"), OTHER_SIGNATURE),
        (forged(COORDINATOR), OTHER_SIGNATURE),
        (unsigned("0" * 128), OTHER_SIGNATURE),
        (unsigned("no hex"), OTHER_SIGNATURE),
        (unsigned(""), "must be text, and not empty"),
        (unsigned(None), "must be text, and not empty"),
        (lambda _, record: record["permit"].update(event=EVENT | {"noise_std": 10**400}), "finite"),
        (lambda _, record: record["permit"].update(steps=10**400), "is too large"),
        (lambda _, record: record["permit"].update(steps=True), "whole number"),
        (lambda _, record: record["permit"].update(job="\x1b[2J"), "must be printable"),
        (lambda _, record: record["permit"].update(job="x" * 100_000), "at most 500 characters"),
        (lambda _, record: record["permit"].update(more=1), "unknown field 'more'"),
        (lambda _, record: record.update(permit=[]), "expected a table"),
        (emptied, "is missing"),
    ],
)
def test_a_permit_that_is_none_ends_the_job_before_it_costs(
    edit: Edit, why: str, here: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def twist(kind: str, reply: Message) -> Message:
        if kind == "query.propose" and not reply.has_error():
            config = reply.content.config_records["config"]
            record = json.loads(str(config["permit"]))
            edit(here, record)
            config["permit"] = json.dumps(record)
        return reply

    spent = {name: here.house.spent(name) for name in (*HONEST, ROGUE)}
    here.rogue.twist, name = twist, f"job-{next(JOBS)}"
    here.desk.submit(here.house.asked(Request(name, TASK)))
    ended = here.desk.watch(name)[-1]
    assert ended["kind"] == "failed"
    assert ended["text"].startswith("brand: ")
    assert why in ended["text"]
    assert noted(caplog, "failed", name)
    for partner in (*HONEST, ROGUE):
        assert here.house.kinds(partner, name) == ["reserve", "cancel"]
        assert here.house.spent(partner) == spent[partner]


def noted(caplog: pytest.LogCaptureFixture, kind: str, job: str) -> list[str]:
    """What the coordinator's own log says of a kind of event."""
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [str(f["text"]) for f in fields if (f.get("kind"), f.get("job")) == (kind, job)]


def test_the_permit_of_an_earlier_job_is_not_taken_again(here: Scene) -> None:
    kept: list[str] = []

    def twist(kind: str, reply: Message) -> Message:
        if kind == "query.propose":
            config = reply.content.config_records["config"]
            kept.append(str(config["permit"]))
            config["permit"] = kept[0]
        return reply

    here.rogue.twist, first, second = twist, f"job-{next(JOBS)}", f"job-{next(JOBS)}"
    here.desk.submit(here.house.asked(Request(first, TASK)))
    assert here.desk.watch(first)[-1]["kind"] == "released"
    here.desk.submit(here.house.asked(Request(second, TASK)))
    assert here.desk.watch(second)[-1]["text"] == f"brand: {ELSE}"


Arrays = dict[str, npt.NDArray[Any]]


def with_arrays(**others: Any) -> Callable[[Message], Message]:
    """Some arrays of the update replaced; ``None`` leaves one out."""

    def change(reply: Message) -> Message:
        arrays = dict(named_arrays(reply.content.array_records["arrays"]))
        for name, array in others.items():
            arrays.pop(name.replace("_", "."))
            if array is not None:
                arrays[name.replace("_", ".")] = array
        reply.content["arrays"] = array_record(arrays)
        return reply

    return change


def with_metrics(**metrics: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    return change


def with_record(name: str, record: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        reply.content[name] = record
        return reply

    return change


def with_metadata(**changes: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        fields = {key.lstrip("_"): value for key, value in vars(reply.metadata).items()}
        fields.pop("delivered_at", None)
        return new_message(Metadata(**(fields | changes)), reply.content)

    return change


def with_error(code: int, reason: str) -> Callable[[Message], Message]:
    return lambda reply: new_message(reply.metadata, Error(code, reason))


def as_bytes(change: Callable[[bytes], bytes]) -> Callable[[Message], bytes]:
    return lambda reply: change(codec.encode(reply))


def only(kind: str, change: Callable[[Message], Message | bytes]) -> Twist:
    """Changes the answers to one kind of message."""
    return lambda answered, reply: change(reply) if answered == kind else reply


ONES = np.ones(W, np.float32)
ANSWERS: list[tuple[Callable[[Message], Message | bytes], str]] = [
    (with_arrays(output_weight=np.full(W, np.nan, np.float32)), "is not finite"),
    (with_arrays(output_bias=np.array([np.inf], np.float32)), "is not finite"),
    (with_arrays(output_bias=np.array([3e38], np.float32)), "too large to sum"),
    (with_arrays(output_weight=np.full(W, -1e36, np.float32)), "too large to sum"),
    (with_arrays(output_weight=ONES.T), "another shape or dtype"),
    (with_arrays(output_weight=np.ones((1, 8), np.float32)), "another shape or dtype"),
    (with_arrays(output_weight=np.ones((0, 7), np.float32)), "another shape or dtype"),
    (with_arrays(output_weight=np.ones((1000, 1000), np.float32)), "another shape or dtype"),
    (with_arrays(output_weight=np.ones(W, np.float64)), "another shape or dtype"),
    (with_arrays(output_bias=np.ones(B, np.int8)), "another shape or dtype"),
    (with_arrays(output_bias=None), "not hold the arrays of the model"),
    (with_record("arrays", array_record({"more": ONES})), "not hold the arrays of the model"),
    (with_record("arrays", MetricRecord({"output.bias": 1.0})), "of the wrong kind"),
    (with_record("rows", ConfigRecord({"rows": "47.618393"})), "just arrays and metrics"),
    (with_metrics(weight=200.0001), "above the node's public weight"),
    (with_metrics(weight=1e308), "above the node's public weight"),
    (with_metrics(weight=2**62), "above the node's public weight"),
    (with_metrics(weight=-200.0), "not a positive finite number"),
    (with_metrics(weight=0), "not a positive finite number"),
    (with_metrics(weight=float("nan")), "not a positive finite number"),
    (with_metrics(weight=[1.0, 2.0]), "not a positive finite number"),
    (with_metrics(weight=200.0, loss=0.25), "not just its weight"),
    (with_metrics(), "not just its weight"),
    (with_metadata(reply_to_message_id="0" * 32), "answered something else"),
    (with_metadata(src_node_id=1), "answered something else"),
    (with_metadata(message_type="query.propose"), "answered something else"),
    (as_bytes(lambda raw: raw[:-1]), "cut off"),
    (as_bytes(lambda raw: b""), "head of allowed length"),
    (with_error(1004, "budget: \x1b[31mred\x1b[0m " + "x" * 5000), "budget:  [31mred [0m xxx"),
    (with_error(7, "Traceback: row 47.618393"), "could not be run"),
]
assert len(ANSWERS) == ROUNDS


def test_updates_that_are_none_are_dropped_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scene(tmp_path) as here:
        asked: list[int] = []

        def twist(kind: str, reply: Message) -> Message | bytes:
            if kind != "train":
                return reply
            asked.append(len(asked))
            return ANSWERS[asked[-1]][0](reply)

        here.rogue.twist = twist
        request = with_task(rounds=ROUNDS, noise_multiplier=2.0)
        here.desk.submit(here.house.asked(request))
        events = here.desk.watch()
        assert events[-1]["kind"] == "released"
        assert [event["kind"] for event in events].count("round") == ROUNDS
        dropped = [event for event in events if event["kind"] == "dropped"]
        assert {event["partner"] for event in dropped} == {ROGUE}
        assert len(dropped) == ROUNDS == len(noted(caplog, "dropped", "job-1"))
        for event, (_, why) in zip(dropped, ANSWERS, strict=True):
            assert why in event["text"]
            assert event["text"].isprintable()
            assert len(event["text"]) <= 600
        pieces: list[bytes] = []
        with here.desk.client(here.house.keys[COORDINATOR]) as client:
            client.fetch({"job": "job-1"}, pieces.append)
        model = here.house.home("retailer") / "models" / "job-1"
        eventually((model / "card.json").exists)
        arrays, _ = load_model(model)
        assert all(np.isfinite(array).all() for array in arrays.values())
        for name in HONEST:
            assert here.house.spent(name) == ROUNDS


def test_one_partner_alone_cannot_make_a_round(tmp_path: Path) -> None:
    """Below the quorum a round is lost, and after too many the job ends; nobody gets a model."""
    with scene(tmp_path) as here:
        here.rogue.twist = only("train", lambda _: b"")
        here.desk.submit(here.house.asked(), quorum=3)
        events = here.desk.watch()
        assert events[-1]["kind"] == "failed"
        assert [event["kind"] for event in events].count("lost") == 2
        assert not (here.house.home("retailer") / "models").exists()
        for name in HONEST:
            assert here.house.spent(name) == 2, "what was answered stays charged, and no more"


def test_an_answer_that_is_too_long(tmp_path: Path) -> None:
    with scene(tmp_path, Limits(max_message_bytes=1 << 20)) as here:
        long = np.ones((1000, 1000), np.float32)
        here.rogue.twist = only("train", with_arrays(output_weight=long))
        here.desk.submit(here.house.asked())
        events = here.desk.watch()
        texts = {event["text"] for event in events if event["kind"] == "dropped"}
        assert texts == {"the node's answer is longer than allowed"}
        assert events[-1]["kind"] == "released"


def preview_with(**changes: Any) -> Callable[[str, Message], Message]:
    def twist(kind: str, reply: Message) -> Message:
        if kind == "query.preview":
            config = reply.content.config_records["config"]
            record = json.loads(str(config["preview"])) | changes
            config["preview"] = json.dumps(record)
        return reply

    return twist


@pytest.mark.parametrize("name", ["epsilon", "charged", "remaining"])
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), -1.0, 10**400, -(10**400), True, None, "1", [1.0]],
    ids=lambda value: str(value)[:8],
)
def test_a_preview_with_no_cost_harms_nobody_elses(name: str, value: Any, here: Scene) -> None:
    here.rogue.twist = preview_with(**{name: value})
    signed = request_record(here.house.asked(Request("previewed", TASK)))
    found = here.desk.call("Preview", signed=signed)["partners"]
    assert found[ROGUE] == {
        "refused_by": "unreachable",
        "text": "the node's preview holds no cost",
    }
    assert found["retailer"]["refused_by"] == ""


@pytest.mark.parametrize("value", ["\x1b[2J\x07", "\ud800", "x" * 10_000, ["a", {"b": 1}], 7])
def test_what_a_preview_says_is_cut_to_what_can_be_shown(value: Any, here: Scene) -> None:
    here.rogue.twist = preview_with(refused_by=value, text=value, needs_approval=value)
    signed = request_record(here.house.asked(Request("previewed", TASK)))
    said = here.desk.call("Preview", signed=signed)["partners"][ROGUE]
    for name in ("refused_by", "text"):
        assert said[name].isprintable()
        assert len(said[name]) <= 500
    assert said["needs_approval"] is False


def test_a_refusal_for_every_reason_there_is(here: Scene) -> None:
    """Errors that a node can name end a job as refused or failed, and never the coordinator."""
    for code in (0, 1000, 1001, 1002, 1004, 1007, 1011, 1012, 1099, 2**31 - 1):
        here.rogue.twist = only("query.propose", with_error(code, "budget: no"))
        name = f"job-{next(JOBS)}"
        here.desk.submit(here.house.asked(Request(name, TASK)), deadline=0.5)
        assert here.desk.watch(name)[-1]["kind"] in ("refused", "failed")
    here.rogue.twist = lambda _, reply: reply
    name = f"job-{next(JOBS)}"
    here.desk.submit(here.house.asked(Request(name, TASK)))
    assert here.desk.watch(name)[-1]["kind"] == "released"


def test_a_node_that_asks_in_the_name_of_its_partner(here: Scene) -> None:
    signed = here.house.asked(by=ROGUE)
    with pytest.raises(TransportError, match="may not use Control"):
        here.desk.submit(signed, ROGUE)
    with pytest.raises(PolicyError) as caught:
        here.desk.submit(signed, COORDINATOR)
    assert caught.value.rule == "party"
