from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import request as requests
from dovetail.agreement.request import ModelSpec, Request, TrainingTask
from dovetail.errors import SettingError
from tests.agreement.conftest import read

VECTORS = read("request.json")
NUMBERS = [field.name for field in fields(TrainingTask) if field.type in ("float", "int")]


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_good_vectors_survive_a_round_trip_and_keep_their_digest(vector: dict[str, Any]) -> None:
    request = requests.from_record(vector["record"])
    again = requests.from_record(json.loads(json.dumps(requests.to_record(request))))
    assert again == request
    assert requests.digest(request) == vector["digest"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_bad_vectors_are_refused_by_the_field_they_break(
    vector: dict[str, Any], request_record: dict[str, Any], changed: Callable[..., Any]
) -> None:
    with pytest.raises(SettingError) as caught:
        requests.from_record(changed(request_record, vector))
    assert vector["message"] in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, "request", [], [{}]])
def test_what_is_no_table_is_refused(record: object) -> None:
    with pytest.raises(SettingError, match="expected a table"):
        requests.from_record(record)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_may_be_other_than_finite(
    name: str, value: float, request_record: dict[str, Any], asked: Request
) -> None:
    request_record["task"][name] = value
    with pytest.raises(SettingError, match=name):
        requests.from_record(request_record)
    with pytest.raises(SettingError):
        replace(asked.task, **{name: value})  # type: ignore[arg-type]


def test_a_number_beyond_floats_is_refused(request_record: dict[str, Any]) -> None:
    request_record["task"]["l2_clip_norm"] = 10**400
    with pytest.raises(SettingError, match="l2_clip_norm must be finite"):
        requests.from_record(request_record)


def test_every_field_changes_the_digest(asked: Request) -> None:
    others = [
        replace(asked, job="autumn"),
        replace(asked, task=replace(asked.task, purpose="churn")),
        replace(asked, task=replace(asked.task, features=("spend",))),
        replace(asked, task=replace(asked.task, model=ModelSpec("mlp", (16, 9)))),
        replace(asked, task=replace(asked.task, noise_multiplier=1.5000000000000002)),
        replace(asked, task=replace(asked.task, seed=8)),
    ]
    assert len({requests.digest(request) for request in [asked, *others]}) == len(others) + 1


def test_numbers_written_as_whole_ones_are_the_same_request(
    request_record: dict[str, Any], asked: Request
) -> None:
    request_record["task"]["l2_clip_norm"] = 1
    assert requests.digest(requests.from_record(request_record)) == requests.digest(asked)


@pytest.mark.parametrize("job", ["", "a b", "a/b", "-a", "ä", "a" * 65, "a\n"])
def test_a_job_cannot_have_just_any_name(job: str, asked: Request) -> None:
    with pytest.raises(SettingError, match="job must be"):
        replace(asked, job=job)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(data=st.data())
def test_any_field_with_anything_in_it_is_read_or_refused_and_nothing_else(
    data: st.DataObject,
) -> None:
    record = json.loads(json.dumps(VECTORS["good"][0]["record"]))
    place = data.draw(st.sampled_from([record, record["task"], record["task"]["model"]]))
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=8))] = data.draw(JSON)
    try:
        request = requests.from_record(record)
    except SettingError:
        return
    assert requests.from_record(requests.to_record(request)) == request
    assert len(requests.digest(request)) == 64
