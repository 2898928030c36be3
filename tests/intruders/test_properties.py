"""Whatever is changed in what somebody signed, and whatever stands where something is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dovetail.agreement import request as requests
from dovetail.agreement.permit import permit_to_record
from dovetail.agreement.policy import RULES
from dovetail.agreement.signing import (
    permit_record,
    request_record,
    require_permitted,
    signed_permit_from_record,
)
from dovetail.errors import DovetailError, PolicyError, RemoteProtocolError, SettingError
from dovetail.flower import actions, codec
from dovetail.flower.actions import node_app
from dovetail.flower.client import answer, new_context
from dovetail.flower.records import array_record
from dovetail.node.app import Node
from dovetail.node.runner import Runner
from dovetail.simulation.identities import asked, signing_key
from dovetail.store.ledger import LedgerStore
from tests.coordinator.nodes import _dice
from tests.intruders.house import REQUEST, now
from tests.intruders.rogues import good_arrays
from tests.samples import SCHEMA, MemoryCustomers, terms

TERMS, NODE = terms(), 7
SIGNED: dict[str, Any] = json.loads(json.dumps(request_record(asked(REQUEST, TERMS))))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


class Victim:
    """A node in this process, and its ledger."""

    def __init__(self) -> None:
        self.ledger = LedgerStore(None, TERMS.budget, now)
        rows = MemoryCustomers(304)
        key = signing_key("retailer")
        runner = Runner(rows, SCHEMA, 300, _dice("retailer"))
        self.node = Node(TERMS, "retailer", key, len(rows), runner, self.ledger, now)
        context = new_context(NODE, {}, {})
        app = node_app(lambda _: self.node)
        self.handle = lambda raw: answer(app, lambda _: context, raw)

    def refuses(self, message: Message) -> bool:
        """Whether the answer is an error that was foreseen."""
        reply = codec.decode(self.handle(codec.encode(message)))
        return reply.has_error() and reply.error.code != 1000


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """A node that has admitted job-1."""
    made = Victim()
    with closing(made.ledger):
        made.node.propose(SIGNED)
        yield made


def places(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a record."""
    keys = record if isinstance(record, dict) else range(len(record))
    for key in keys:
        yield (*path, key)
        if isinstance(record[key], dict | list):
            yield from places(record[key], (*path, key))


def changed(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The record with one part replaced."""
    made = json.loads(json.dumps(record))
    target = made
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return made


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(places(SIGNED))), JSON)
def test_a_signed_request_with_any_part_changed_is_refused(path: Any, value: Any) -> None:
    record = changed(SIGNED, path, value)
    assume(_value(record) != _value(SIGNED))
    one = Victim()
    with closing(one.ledger):
        with pytest.raises((PolicyError, RemoteProtocolError)) as caught:
            one.node.propose(record)
        if isinstance(caught.value, PolicyError):
            assert caught.value.rule in RULES
        assert one.ledger.entries() == ()


def _value(record: Any) -> Any:
    """What a record says: 1 and 1.0 are one number of JSON."""
    return json.loads(json.dumps(record), parse_int=float)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(places(requests.to_record(REQUEST)))), JSON)
def test_a_round_of_a_request_with_any_part_changed_is_refused(
    victim: Victim, path: Any, value: Any
) -> None:
    plain = json.loads(json.dumps(requests.to_record(REQUEST)))
    record = changed(plain, path, value)
    assume(_value(record) != _value(plain))
    before = victim.ledger.refresh().head
    (message,) = actions.train_messages({NODE: 1.0}, 1, record, good_arrays(TERMS))
    assert victim.refuses(message)
    assert victim.ledger.refresh().head == before


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["query.preview", "query.propose", "train", "query.keep"]), JSON)
def test_any_json_where_a_record_is_expected_is_refused(
    victim: Victim, kind: str, value: Any
) -> None:
    before = victim.ledger.refresh().head
    text = json.dumps(value)
    config = ConfigRecord({"signed": text, "request": text, "card": text, "server-round": 1})
    content = RecordDict({"config": config})
    content["arrays"] = array_record(good_arrays(TERMS))
    message = Message(content, NODE, kind)
    if kind == "query.keep":  # this node keeps nothing, so that any record will do
        victim.handle(codec.encode(message))
    else:
        assert victim.refuses(message)
    assert victim.ledger.refresh().head == before


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["output.weight", "output.bias", "more"]), ARRAYS))
def test_any_arrays_but_the_models_cost_nothing(victim: Victim, arrays: Any) -> None:
    wanted = {name: array.shape for name, array in good_arrays(TERMS).items()}
    assume({name: array.shape for name, array in arrays.items()} != wanted)
    before = victim.ledger.refresh().head
    (message,) = actions.train_messages({NODE: 1.0}, 1, requests.to_record(REQUEST), arrays)
    assert victim.refuses(message)
    assert victim.ledger.refresh().head == before


@pytest.fixture(scope="module")
def permit(victim: Victim) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(victim.node.propose(SIGNED)))
    return found


@settings(max_examples=200, deadline=None)
@given(st.data(), JSON)
def test_a_permit_with_any_part_changed_is_not_its_partners(
    permit: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    record = changed(permit, data.draw(st.sampled_from(list(places(permit)))), value)
    assume(_value(record) != _value(permit))
    with pytest.raises((RemoteProtocolError, DovetailError)):
        require_permitted(signed_permit_from_record(record), TERMS.partner("retailer"))


def test_a_permit_that_nobody_changed_is(permit: dict[str, Any]) -> None:
    signed = signed_permit_from_record(permit)
    require_permitted(signed, TERMS.partner("retailer"))
    assert permit_record(signed) == permit
    assert permit_to_record(signed.permit) == permit["permit"]
    with pytest.raises(SettingError):
        TERMS.partner("nobody")
