"""A coordinator that asks a real node for what it may not have: refused, logged, not charged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import ModelSpec, Request
from dovetail.agreement.signing import PREVIEW, SignedRequest, sign_request
from dovetail.errors import DovetailError, LedgerError, PolicyError, ProtocolError
from dovetail.flower.records import array_record
from tests.intruders.house import (
    ANALYST,
    COORDINATOR,
    REQUEST,
    House,
    amended,
    with_task,
)
from tests.intruders.rogues import (
    BIAS,
    WEIGHT,
    RogueCoordinator,
    good_arrays,
    swapped,
    told,
)
from tests.samples import TASK

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


def test_what_an_analyst_only_had_priced(
    rogue: RogueCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    house = rogue.house
    request, key = with_task("job-2"), house.keys[ANALYST].signing
    digest = agreed.digest(house.terms)
    priced = sign_request(request, digest, ANALYST, key, PREVIEW)
    assert rogue.preview(priced)["refused_by"] == ""
    with pytest.raises(PolicyError, match="to be priced, not to run"):
        rogue.propose(priced)
    assert told(caplog, "refused a proposal: party: ")
    with pytest.raises(PolicyError):
        rogue.train(1, request)


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
    with pytest.raises(PolicyError) as caught:
        rogue.train(2, with_task(features=("age", "spend", "income")))
    assert caught.value.rule == "request"
    assert told(caplog, "refused round 2: request: ")


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
