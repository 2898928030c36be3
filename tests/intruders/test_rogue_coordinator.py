"""A coordinator that asks a real node for what it may not have: refused, logged, not charged."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from dovetail.agreement import request as requests
from dovetail.agreement.policy import NOTHING_MORE
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.signing import SignedRequest, request_record
from dovetail.data.arrays import CustomerArrays
from dovetail.errors import DovetailError, LedgerError, PolicyError, ProtocolError, SchemaError
from dovetail.flower import actions, codec
from dovetail.flower.grid import ask
from dovetail.flower.records import array_record
from dovetail.node.gate import Decision, Gate
from dovetail.node.opening import arrays_folder
from dovetail.node.settings import load_settings
from dovetail.privacy import pld
from dovetail.simulation.identities import asked
from dovetail.store.ledger import LedgerStore
from tests.intruders.house import (
    ANALYST,
    COHORT,
    COORDINATOR,
    REQUEST,
    House,
    amended,
    leaks,
    now,
    with_task,
)
from tests.intruders.rogues import (
    PATIENCE,
    RogueCoordinator,
    good_arrays,
    rogue_coordinator,
)
from tests.samples import TASK, terms


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RogueCoordinator]:
    """A node that admitted job-1, of which the first round is done."""
    house = House(tmp_path_factory.mktemp("house"))
    with rogue_coordinator(house) as rogue:
        assert rogue.propose(house.asked()) == "job-1"
        rogue.train(1)
        yield rogue


@pytest.fixture
def rogue(stage: RogueCoordinator, caplog: pytest.LogCaptureFixture) -> Iterator[RogueCoordinator]:
    """The rogue of a test that is to change nothing and to learn nothing."""
    before = stage.house.head("retailer")
    yield stage
    assert stage.house.head("retailer") == before
    assert stage.leaked() == []
    assert leaks(caplog.text.encode()) == []


def told(caplog: pytest.LogCaptureFixture, refusal: str) -> bool:
    """Whether the node noted a refusal in its own log."""
    return any(
        record.name == "dovetail.node.session" and refusal in record.getMessage()
        for record in caplog.records
    )


Sign = Callable[[House], SignedRequest]


def changed(signed: SignedRequest, **changes: Any) -> SignedRequest:
    """A signed request that was changed on its way."""
    task = replace(signed.request.task, **changes)
    return replace(signed, request=replace(signed.request, task=task))


@pytest.mark.parametrize(
    ("rule", "sign"),
    [
        ("terms", lambda h: h.asked(under=amended(h.terms, minimum_cohort=60))),
        ("terms", lambda h: replace(h.asked(), terms_digest="0" * 64)),
        ("party", lambda h: replace(h.asked(), signature="0" * 128)),
        ("party", lambda h: replace(h.asked(), signature="no hex")),
        ("party", lambda h: replace(h.asked(), asked_by="stranger")),
        ("party", lambda h: h.asked(key=COORDINATOR)),
        ("party", lambda h: h.asked(key="retailer")),
        ("party", lambda h: replace(h.asked(by=COORDINATOR), asked_by=ANALYST)),
        ("party", lambda h: changed(h.asked(), noise_multiplier=5.0)),
        ("party", lambda h: changed(h.asked(), features=("age",))),
        ("role", lambda h: h.asked(by="brand")),
        ("role", lambda h: h.asked(by="retailer")),
        ("purpose", lambda h: h.asked(with_task(purpose="resale"))),
        ("label", lambda h: h.asked(with_task(label="churned"))),
        ("column", lambda h: h.asked(with_task("job-2", features=("age", "income")))),
        ("column", lambda h: h.asked(with_task("job-2", features=("id",)))),
        ("column", lambda h: h.asked(with_task("job-2", features=("spend", "age")))),
        ("model", lambda h: h.asked(with_task("job-2", model=ModelSpec("mlp", (65_536,) * 16)))),
        ("protection", lambda h: h.asked(with_task("job-2", protection="none"))),
        ("rounds", lambda h: h.asked(with_task("job-2", rounds=51))),
        ("steps", lambda h: h.asked(with_task("job-2", rounds=50, local_steps=5))),
        ("epsilon", lambda h: h.asked(with_task("job-2", noise_multiplier=0.2))),
        ("epsilon", lambda h: h.asked(with_task("job-2", noise_multiplier=1e-300))),
        ("epsilon", lambda h: h.asked(with_task("job-2", noise_multiplier=1e300))),
        ("epsilon", lambda h: h.asked(with_task("job-2", sampling_prob=1.0, noise_multiplier=0.5))),
        ("request", lambda h: h.asked(with_task(noise_multiplier=2.0))),
        ("request", lambda h: h.asked(with_task(rounds=2))),
        ("request", lambda h: h.asked(with_task(seed=1))),
    ],
)
def test_a_proposal_that_breaks_a_rule(
    rule: str, sign: Sign, rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    signed = sign(rogue.house)
    if signed.request.job == "job-1" and rule not in ("request", "terms", "party", "role"):
        signed = rogue.house.asked(replace(signed.request, job="job-2"))
    with pytest.raises(PolicyError) as caught:
        rogue.propose(signed)
    assert caught.value.rule == rule
    assert told(caplog, f"refused a proposal: {rule}: ")
    if rule != "request":  # a preview does not ask what was admitted before
        assert previewed(rogue, signed) == rule


def previewed(rogue: RogueCoordinator, signed: SignedRequest) -> str:
    """The rule that a preview names."""
    try:
        return str(rogue.preview(signed)["refused_by"])
    except PolicyError as error:  # no cost can be stated
        return error.rule


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.5},
        {"noise_multiplier": 1.0000000000000002},
        {"l2_clip_norm": 2.0},
        {"sampling_prob": 1.0},
        {"local_steps": 2},
        {"rounds": 50},
        {"features": ("age",)},
        {"learning_rate": 1e9},
        {"seed": 7},
        {"protection": "none", "noise_multiplier": 0.0},
    ],
    ids=str,
)
def test_a_round_of_another_request_under_the_same_name(
    changes: dict[str, Any], rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    other = with_task(**changes)
    with pytest.raises(PolicyError) as caught:
        rogue.train(2, other, good_arrays(rogue.house.terms, other))
    assert caught.value.rule == "request"
    assert told(caplog, "refused round 2: request: ")


def test_a_round_over_an_undeclared_column(
    rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SchemaError, match="income"):
        rogue.train(2, with_task(features=("age", "spend", "income")))
    assert told(caplog, "refused round 2: ")


@pytest.mark.parametrize("number", [0, -1, 4, 2**62, -(2**62)])
def test_a_round_that_the_job_does_not_have(
    number: int, rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PolicyError) as caught:
        rogue.train(number)
    assert caught.value.rule == "rounds"
    assert told(caplog, "refused round ")


@pytest.mark.parametrize("number", [True, 2.0, "2", b"2", [2]])
def test_a_round_that_is_no_number(number: Any, rogue: RogueCoordinator) -> None:
    message = rogue.training(2)
    config = ConfigRecord({"request": json.dumps(requests.to_record(REQUEST))})
    config["server-round"] = number
    message.content["config"] = config
    with pytest.raises(ProtocolError, match="names its round"):
        rogue.ask(message)


def test_a_round_that_was_answered_before(
    rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with pytest.raises(LedgerError, match="never answered again"):
            rogue.train(1)
    assert told(caplog, "refused round 1: this round was committed before")


def test_a_round_of_a_job_that_was_never_proposed(
    rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PolicyError) as caught:
        rogue.train(1, Request("job-7", TASK))
    assert caught.value.rule == "request"
    assert told(caplog, "refused round 1: request: ")


def swapped(arrays: dict[str, npt.NDArray[Any]], **others: Any) -> dict[str, npt.NDArray[Any]]:
    return arrays | {name.replace("_", "."): array for name, array in others.items()}


WEIGHT, BIAS = (1, 7), (1,)


@pytest.mark.parametrize(
    "others",
    [
        {"output_weight": np.zeros((7, 1), np.float32)},
        {"output_weight": np.zeros((1, 8), np.float32)},
        {"output_weight": np.zeros((0, 7), np.float32)},
        {"output_weight": np.zeros((2**10, 2**10), np.float32)},
        {"output_weight": np.zeros(WEIGHT, np.float64)},
        {"output_weight": np.zeros(WEIGHT, np.float16)},
        {"output_weight": np.zeros(WEIGHT, np.int32)},
        {"output_weight": np.zeros(WEIGHT, np.bool_)},
        {"output_weight": np.full(WEIGHT, np.nan, np.float32)},
        {"output_bias": np.array([np.inf], np.float32)},
        {"output_bias": np.array([-np.inf], np.float32)},
        {"output_bias": np.float32(0)},
        {"hidden_0_weight": np.zeros(WEIGHT, np.float32)},
    ],
    ids=lambda others: " ".join(f"{a.dtype}{a.shape}" for a in others.values()),
)
def test_a_model_with_other_shapes_dtypes_or_values(
    others: dict[str, Any], rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    good = dict(good_arrays(rogue.house.terms))
    assert (good["output.weight"].shape, good["output.bias"].shape) == (WEIGHT, BIAS)
    with pytest.raises(ProtocolError):
        rogue.train(2, arrays=swapped(good, **others))
    assert told(caplog, "refused round 2: ")


def test_a_model_without_its_arrays(rogue: RogueCoordinator) -> None:
    messages = [rogue.training(2), rogue.training(2), rogue.training(2)]
    del messages[0].content["arrays"]
    messages[1].content["arrays"] = MetricRecord({"output.weight": 1.0})
    messages[2].content["arrays"] = array_record({})
    for message in messages:
        with pytest.raises(ProtocolError):
            rogue.ask(message)


@pytest.mark.parametrize("job", ["job-7", "", "..", "../../keys/signing", "job-1\0", "x" * 5000])
def test_the_end_of_a_job_that_nobody_admitted_charges_and_frees_nothing(
    job: str, rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DovetailError):
        rogue.close(job)
    assert told(caplog, "refused the end of a job: ")


def messages_of(rogue: RogueCoordinator, config: dict[str, Any]) -> Iterator[Message]:
    """Every kind of message, with the same settings."""
    for kind in (actions.PREVIEW, actions.PROPOSE, actions.TRAIN, actions.CLOSE, actions.KEEP):
        content = RecordDict({"config": ConfigRecord(config)})
        content["arrays"] = array_record(good_arrays(rogue.house.terms))
        yield Message(content, rogue.node, kind)


DEEP = "[" * 100_000
NESTED = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "17",
        '"x"',
        DEEP,
        NESTED,
        '{"job": "job-1"}',
        "{" + "9" * 5000,
        5,
        b"x",
    ],
    ids=lambda text: str(text)[:20],
)
def test_settings_that_are_no_record(text: Any, rogue: RogueCoordinator) -> None:
    config = {"signed": text, "request": text, "server-round": 1, "job": "job-9", "card": text}
    for message in messages_of(rogue, config):
        with pytest.raises(DovetailError) as caught:
            rogue.ask(message)
        assert "Traceback" not in str(caught.value)


def test_fields_that_hold_something_else(rogue: RogueCoordinator) -> None:
    good: Any = json.loads(json.dumps(request_record(rogue.house.asked(Request("job-8", TASK)))))
    strange: list[Any] = [
        None,
        True,
        1e400,
        10**400,
        "\ud800",
        "",
        [],
        {},
        ["x"] * 11_000,
        "x" * 900,
    ]
    for name in good:
        for value in strange:
            record = good | {name: value}
            message = actions.propose_message(rogue.node, record)
            with pytest.raises(DovetailError) as caught:
                rogue.ask(message)
            assert "internal" not in str(caught.value), (name, str(value)[:20])


def test_messages_of_no_known_kind(rogue: RogueCoordinator) -> None:
    for kind in ("query", "query.ledger", "evaluate", "train.more", "query.propose_all"):
        message = Message(RecordDict({"config": ConfigRecord({})}), rogue.node, kind)
        with pytest.raises(DovetailError):
            rogue.ask(message)


def test_bytes_that_are_no_message(rogue: RogueCoordinator) -> None:
    good = codec.encode(rogue.training(2))
    for raw in (b"", b"\xff" * 50, good[:-1], good[1:], good + b"x", b"[" * 10_000):
        assert "the node failed to answer" in str(rogue.raw(raw))


@pytest.mark.parametrize("times", [200, pytest.param(5_000, marks=pytest.mark.long)])
def test_previews_by_the_thousand_cost_nothing(times: int, rogue: RogueCoordinator) -> None:
    found = {rogue.preview(rogue.house.asked())["remaining"] for _ in range(times)}
    assert len(found) == 1


@pytest.mark.parametrize("forged", [True, False])
def test_a_preview_that_would_take_minutes_to_answer_exactly(
    forged: bool, rogue: RogueCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may keep a node busy with what it will not do anyway."""
    monkeypatch.setattr(pld, "composed", lambda *_: pytest.fail("this would take minutes"))
    endless: dict[str, Any] = {"rounds": 7_839_188, "sampling_prob": 0.441}
    task = {"noise_multiplier": 16_205.85} | ({"rounds": 200} if forged else endless)
    signed = rogue.house.asked(with_task("job-2", **task))
    if forged:
        signed = replace(signed, signature="0" * 128)
    found = rogue.preview(signed)
    assert found["refused_by"] == ("party" if forged else "rounds")
    assert found["epsilon"] > 0


def test_the_detector_of_leaks_finds_what_it_is_to_find(stage: RogueCoordinator) -> None:
    home = stage.house.home("retailer")
    settings = load_settings(home / "node.toml")
    folder = arrays_folder(settings, stage.house.terms.schema)
    prepared = b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(CustomerArrays.open(folder)) == COHORT
    assert leaks(prepared) != []
    assert leaks((home / "customers.csv").read_bytes())
    assert leaks(f"only {COHORT} customers".encode()) == ["the cohort"]
    assert leaks(f"only {COHORT:,} customers".encode()) == ["the cohort"]
    assert leaks(b"sha256 81207f, 1200 customers") == []


@pytest.fixture
def alone(tmp_path: Any) -> Iterator[RogueCoordinator]:
    """A rogue with a node of its own, which has admitted nothing yet."""
    with rogue_coordinator(House(tmp_path)) as rogue:
        yield rogue
        assert rogue.leaked() == []


def test_huge_weights_are_charged_and_never_trained_on(
    alone: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    alone.propose(alone.house.asked())
    good = dict(good_arrays(alone.house.terms))
    huge = swapped(good, output_weight=np.full(WEIGHT, 3e38, np.float32))
    with pytest.raises(DovetailError):
        alone.train(1, arrays=huge)
    assert told(caplog, "refused round 1: ")
    assert alone.house.kinds("retailer") == ["reserve", "begin"]
    alone.train(1)
    assert alone.house.kinds("retailer") == ["reserve", "begin", "begin", "commit"]
    assert alone.house.spent("retailer") == TASK.steps, "the reservation still covers it"


def test_a_round_asked_many_times_at_once_is_answered_once(alone: RogueCoordinator) -> None:
    alone.propose(alone.house.asked())
    raw, together = codec.encode(with_id(alone.training(1))), threading.Barrier(6)

    def again(_: int) -> bool:
        together.wait(PATIENCE)
        with suppress(DovetailError):
            answer = alone.raw(raw)
            assert isinstance(answer, bytes | bytearray)
            return not codec.decode(answer).has_error()
        return False

    with ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(again, range(6)))
    assert sum(answered) == 1
    kinds = alone.house.kinds("retailer")
    assert kinds.count("commit") == 1
    assert alone.house.spent("retailer") >= kinds.count("begin")


def with_id(message: Message) -> Message:
    """The message as it goes over the wire."""
    sent: list[Message] = []

    class Wire:
        def nodes(self) -> list[int]:
            return []

        def exchange(self, requests: Any, deadline: float) -> Iterator[Any]:
            for node, payload in requests.items():
                sent.append(codec.decode(payload.joined()))
                yield node, b""

    list(ask(Wire(), [message], 1.0))
    return sent[0]


def test_two_proposals_at_once_where_one_job_may_be_open() -> None:
    known, together = terms(max_concurrent_jobs=1), threading.Barrier(2)

    def both_are_judged(_: Request) -> Decision | None:
        with suppress(threading.BrokenBarrierError):  # the second is judged after the first
            together.wait(0.2)
        return None

    with closing(LedgerStore(None, known.budget, now)) as ledger, ThreadPoolExecutor(2) as pool:
        gate = Gate(known, "retailer", ledger, 300, NOTHING_MORE, now, both_are_judged)

        def propose(job: str) -> str:
            try:
                return gate.admit(asked(Request(job, TASK), known)).job
            except PolicyError as error:
                return error.rule

        said = list(pool.map(propose, ["job-1", "job-2"]))
        assert "jobs" in said
        assert len(ledger.entries()) == 1


def test_closing_a_job_only_ever_frees_what_it_never_began(alone: RogueCoordinator) -> None:
    alone.propose(alone.house.asked())
    alone.train(1)
    assert alone.house.spent("retailer") == 3
    alone.close("job-1")
    assert alone.house.spent("retailer") == 1
    head = alone.house.head("retailer")
    with pytest.raises(LedgerError):
        alone.close("job-1")
    for call in (lambda: alone.propose(alone.house.asked()), lambda: alone.train(2)):
        with pytest.raises(PolicyError) as caught:
            call()
        assert caught.value.rule == "request"
    assert alone.house.head("retailer") == head


def test_what_is_left_of_the_budget_bounds_all_that_is_asked(alone: RogueCoordinator) -> None:
    dear: dict[str, Any] = {"noise_multiplier": 0.8, "rounds": 20}
    granted, refusals = 0, set()
    for number in range(12):
        try:
            alone.propose(alone.house.asked(with_task(f"job-{number}", **dear)))
            granted += 1
        except PolicyError as error:
            refusals.add(error.rule)
    assert refusals == {"budget"}
    with pytest.raises(PolicyError) as caught:
        alone.propose(alone.house.asked(with_task("job-99", **dear)))
    assert caught.value.rule == "budget"
    assert alone.house.spent("retailer") == granted * 20
