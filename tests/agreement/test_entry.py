from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.agreement import entry as entries
from dovetail.agreement.entry import GENESIS, Entry
from dovetail.agreement.record import LARGEST_WHOLE
from dovetail.crypto import canonical
from dovetail.errors import SettingError
from dovetail.privacy.event import SampledGaussian
from tests.agreement.conftest import read

TIME = "2024-05-31T12:00:00+00:00"
WHOLE = st.integers(1, LARGEST_WHOLE)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
EVENTS = st.builds(
    SampledGaussian, st.floats(1e-9, 1.0), st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)
)
ENTRIES = st.one_of(
    st.builds(Entry, WHOLE, DIGESTS, st.just(TIME), st.just("begin"), NAMES, WHOLE, count=WHOLE),
    st.builds(Entry, WHOLE, DIGESTS, st.just(TIME), st.just("commit"), NAMES, WHOLE),
    st.builds(Entry, WHOLE, DIGESTS, st.just(TIME), st.just("cancel"), NAMES),
    st.builds(
        Entry,
        WHOLE,
        DIGESTS,
        st.just(TIME),
        st.just("reserve"),
        NAMES,
        st.none(),
        DIGESTS,
        EVENTS,
        WHOLE,
    ),
)


@given(ENTRIES)
def test_a_digest_is_that_of_the_canonical_form(entry: Entry) -> None:
    assert entry.digest == canonical.digest(entries.to_record(entry))


@given(ENTRIES)
def test_an_entry_survives_being_written_as_json(entry: Entry) -> None:
    again = entries.from_record(json.loads(json.dumps(entries.to_record(entry))))
    assert again == entry
    assert again.digest == entry.digest


def test_what_is_exported_can_be_checked_by_itself() -> None:
    good = read("ledger.json")["good"]
    chain = [entries.from_record(record) for record in good["entries"]]
    previous = GENESIS
    for record in json.loads(json.dumps(entries.entries_as_json(chain))):
        assert record["previous"] == previous
        previous = record.pop("digest")
        assert previous == canonical.digest(record)
    assert previous == good["head"]


@pytest.mark.parametrize("wrong", [1.0, True, "1", 2**53])
@pytest.mark.parametrize("field", ["sequence", "round", "count"])
def test_a_number_that_a_file_would_give_back_otherwise_is_refused(field: str, wrong: Any) -> None:
    right: dict[str, Any] = {"sequence": 1, "round": 1, "count": 1}
    place: dict[str, Any] = {"previous": GENESIS, "time": TIME, "kind": "begin", "job": "spring"}
    assert Entry(**place, **right).moment.isoformat() == TIME
    changed = copy.copy(right)
    changed[field] = wrong
    with pytest.raises((SettingError, TypeError)):
        Entry(**place, **changed)
