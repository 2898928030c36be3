"""The coordinator's store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dovetail.coordinator.job import TRANSITIONS, State
from dovetail.errors import DovetailError, LocalProtocolError, RemoteProtocolError, SettingError
from dovetail.store.jobs import ENDED, RUNNING, JobStore
from dovetail.store.records import JobRecord

START = datetime(2024, 5, 31, 12, tzinfo=UTC)
SPRING = JobRecord(
    job="spring",
    request={"kind": "training", "job": "spring", "task": {"rounds": 10, "rate": 0.5}},
    request_digest="a" * 64,
    terms_digest="b" * 64,
    asked_by="analyst",
    signature="c" * 128,
    quorum=2,
    deadline=60.0,
    rounds=10,
)


class Clock:
    """One second later each time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def store(place: str | Path) -> Iterator[JobStore]:
    with JobStore.open(place, Clock()) as opened:
        yield opened


def named(job: str) -> JobRecord:
    return replace(SPRING, job=job, request={**SPRING.request, "job": job})


def running(store: JobStore) -> JobRecord:
    store.add(SPRING)
    return store.change("spring", "proposed", state="running")


def test_a_job_is_there_when_opened_again(place: str | Path, store: JobStore) -> None:
    added = store.add(SPRING)
    assert added == replace(SPRING, created=added.created, updated=added.created)
    assert added.created == "2024-05-31T12:00:01.000000+00:00"
    store.close()
    with JobStore.open(place, Clock()) as again:
        assert again.get("spring") == added


def test_the_same_request_added_twice_is_one_job(store: JobStore) -> None:
    running(store)
    assert store.add(SPRING) == store.get("spring")
    assert store.get("spring").state == "running"


@pytest.mark.parametrize(
    "other",
    [
        {"request": {**SPRING.request, "more": 1}},
        {"request_digest": "d" * 64},
        {"terms_digest": "d" * 64},
        {"asked_by": "brand"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_request_under_the_same_name_is_refused(
    other: dict[str, Any], store: JobStore
) -> None:
    added = store.add(SPRING)
    with pytest.raises(SettingError, match="another job is named 'spring'"):
        store.add(replace(SPRING, **other))
    assert store.list() == (added,)


def test_what_is_no_json_is_not_kept(store: JobStore) -> None:
    with pytest.raises(LocalProtocolError):
        store.add(replace(SPRING, request={"rate": float("nan")}))
    assert store.list() == ()


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.get("nothing"),
        lambda store: store.change("nothing", "proposed", state="approved"),
        lambda store: store.begin_round("nothing", 1),
        lambda store: store.list(before="nothing"),
    ],
)
def test_an_unknown_job_is_named(act: Callable[[JobStore], object], store: JobStore) -> None:
    with pytest.raises(SettingError, match="there is no job named 'nothing'"):
        act(store)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.append_event("nothing", "round"),
        lambda store: store.put_permit("nothing", "brand", {}, ""),
        lambda store: store.ask_permits("nothing", ["brand"]),
        lambda store: store.put_release("nothing", {}, ""),
    ],
)
def test_nothing_belongs_to_an_unknown_job(
    act: Callable[[JobStore], object], store: JobStore
) -> None:
    with pytest.raises(LocalProtocolError):
        act(store)
    assert store.events() == ()


def test_jobs_are_listed_newest_first(store: JobStore) -> None:
    for name in ("b", "a", "c", "d"):
        store.add(named(name))
    store.change("a", "proposed", state="refused", reason="budget: spent")

    def names(**how: Any) -> list[str]:
        return [record.job for record in store.list(**how)]

    assert names() == ["d", "c", "a", "b"]
    assert names(limit=2) == ["d", "c"]
    assert names(limit=2, before="c") == ["a", "b"]
    assert names(states=["proposed"]) == ["d", "c", "b"]
    assert names(states=["refused", "failed"]) == ["a"]
    assert names(states=[]) == []


def test_a_change_needs_the_state_that_was_expected(store: JobStore) -> None:
    added = store.add(SPRING)
    changed = store.change("spring", "proposed", state="failed", reason="no answer", owner="me")
    assert changed == store.get("spring")
    assert changed.updated > added.updated
    assert changed == replace(
        added, state="failed", reason="no answer", owner="me", updated=changed.updated
    )
    with pytest.raises(LocalProtocolError, match="not proposed any more"):
        store.change("spring", "proposed", state="approved")
    assert store.get("spring") == changed


def test_rounds_are_counted_once(store: JobStore) -> None:
    running(store)
    assert store.begin_round("spring", 1).round_open
    first = store.finish_round("spring", 1, "d" * 64)
    assert (first.rounds_done, first.checkpoint_round, first.checkpoint) == (1, 1, "d" * 64)
    store.begin_round("spring", 2)
    lost = store.lose_round("spring")
    assert (lost.round_asked, lost.rounds_done, lost.lost_rounds) == (2, 1, 1)
    assert (lost.round_open, lost.checkpoint_round, lost.checkpoint) == (False, 1, "d" * 64)
    store.begin_round("spring", 3)
    third = store.finish_round("spring", 3, "e" * 64)
    assert (third.rounds_done, third.checkpoint_round) == (2, 3)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.begin_round("spring", 2),
        lambda store: store.begin_round("spring", 3),
        lambda store: store.begin_round("spring", 1),
        lambda store: store.finish_round("spring", 1, ""),
        lambda store: store.finish_round("spring", 3, ""),
    ],
    ids=["the open one again", "one while one is open", "an old one", "an old one's end", "ahead"],
)
def test_rounds_out_of_turn_are_refused(act: Callable[[JobStore], object], store: JobStore) -> None:
    running(store)
    store.begin_round("spring", 1)
    store.finish_round("spring", 1, "d" * 64)
    before = store.begin_round("spring", 2)
    with pytest.raises(LocalProtocolError, match="only a running job's"):
        act(store)
    assert store.get("spring") == before


def test_a_round_that_ended_cannot_end_again(store: JobStore) -> None:
    running(store)
    store.begin_round("spring", 1)
    before = store.lose_round("spring")
    with pytest.raises(LocalProtocolError):
        store.finish_round("spring", 1, "d" * 64)
    with pytest.raises(LocalProtocolError):
        store.lose_round("spring")
    assert store.get("spring") == before


def test_only_a_running_job_has_rounds_and_releases(store: JobStore) -> None:
    running(store)
    store.begin_round("spring", 1)
    ended = store.change("spring", "running", state="cancelled", reason="stopped")
    for act in (
        lambda: store.begin_round("spring", 2),
        lambda: store.finish_round("spring", 1, "d" * 64),
        lambda: store.lose_round("spring"),
        lambda: store.put_release("spring", {}, "releases/spring"),
    ):
        with pytest.raises(LocalProtocolError):
            act()
    assert store.get("spring") == ended


def test_events_come_in_order(store: JobStore) -> None:
    for name in ("spring", "summer"):
        store.add(named(name))
    first = store.append_event("spring", "permitted", partner="brand")
    second = store.append_event("summer", "refused", partner="brand", text="budget: spent")
    third = store.append_event("spring", "round", 1)
    assert first < second < third
    assert [event.sequence for event in store.events()] == [first, second, third]
    assert [event.sequence for event in store.events("spring", after=first)] == [third]
    assert [event.sequence for event in store.events(limit=2)] == [first, second]
    (refused,) = store.events("summer")
    assert (refused.kind, refused.round, refused.partner) == ("refused", 0, "brand")
    assert refused.text == "budget: spent"
    assert refused.time == "2024-05-31T12:00:04.000000+00:00"


def test_who_waits_is_told_of_the_next_event(store: JobStore) -> None:
    store.add(SPRING)
    known = store.append_event("spring", "permitted")
    assert store.wait_for_events(known, timeout=0) == known
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(store.wait_for_events(known, 60)))
    waiting.start()
    sequence = store.append_event("spring", "round", 1)
    waiting.join()
    assert found == [sequence]
    assert store.wait_for_events(known, timeout=60) == sequence


def test_who_waits_is_woken_when_the_store_closes(store: JobStore) -> None:
    waiting = threading.Thread(target=store.wait_for_events, args=(0, 600))
    waiting.start()
    store.close()
    waiting.join()


def test_a_permit_that_is_given_again_takes_the_place_of_the_earlier(store: JobStore) -> None:
    store.add(SPRING)
    store.put_permit("spring", "retailer", {"expires": "2024-06-01"}, "1")
    for head, signature in (("a", "2"), ("b", "3")):
        permit = {"expires": "2024-06-02", "ledger_head": head}
        store.put_permit("spring", "brand", permit, signature)
    permits = store.permits("spring")
    assert list(permits) == ["brand", "retailer"]
    assert permits["brand"].record == {"expires": "2024-06-02", "ledger_head": "b"}
    assert permits["brand"].signature == "3"
    assert store.permits("summer") == {}


def test_another_permit_does_not_take_the_place_of_the_first(store: JobStore) -> None:
    store.add(SPRING)
    store.ask_permits("spring", ["brand"])
    first = {"expires": "2024-06-01", "ledger_head": "a", "steps": 3}
    store.put_permit("spring", "brand", first, "1")
    for changes in ({"expires": "2024-06-02"}, {"steps": 4}, {"more": 1}):
        with pytest.raises(RemoteProtocolError, match="gave another permit for this job before"):
            store.put_permit("spring", "brand", {**first, **changes}, "2")
    assert store.permits("spring")["brand"].record == first


def test_partners_of_an_ended_job_are_told_once(store: JobStore) -> None:
    for name in ("spring", "summer"):
        store.add(named(name))
        for partner in ("retailer", "brand"):
            store.put_permit(name, partner, {}, "")
    assert store.unsettled() == {}
    store.change("spring", "proposed", state="refused", reason="budget: spent")
    assert store.unsettled() == {"spring": ("brand", "retailer")}
    store.settle_permit("spring", "brand")
    store.settle_permit("spring", "who refused")
    assert store.unsettled() == {"spring": ("retailer",)}
    assert store.permits("spring")["brand"].settled
    store.settle_permit("spring", "retailer")
    assert store.unsettled() == {}


def test_who_was_asked_for_a_permit_is_told_the_end_though_no_permit_came(store: JobStore) -> None:
    store.add(SPRING)
    store.ask_permits("spring", ["retailer", "brand"])
    assert store.permits("spring") == {}
    store.put_permit("spring", "brand", {"expires": "2024-06-01"}, "1")
    store.ask_permits("spring", ["retailer", "brand"])
    assert store.permits("spring")["brand"].signature == "1", "asked again, it stays"
    store.change("spring", "proposed", state="refused", reason="budget: spent")
    assert store.unsettled() == {"spring": ("brand", "retailer")}
    store.settle_permit("spring", "retailer")
    assert store.unsettled() == {"spring": ("brand",)}


def test_states_that_end_are_those_of_a_job() -> None:
    assert set(ENDED) == {state for state, after in TRANSITIONS.items() if not after}
    assert RUNNING == State.RUNNING


def test_agreements_only_move_forward(store: JobStore) -> None:
    assert store.agreements() == ()
    with pytest.raises(SettingError, match="version 2 of the agreement is not the next"):
        store.put_agreement(2, {"terms": "second"})
    store.put_agreement(1, {"terms": "first"})
    store.put_agreement(2, {"terms": "second"})
    store.put_agreement(1, {"terms": "first"})
    with pytest.raises(SettingError, match="another version 1"):
        store.put_agreement(1, {"terms": "else"})
    with pytest.raises(SettingError, match="not the next"):
        store.put_agreement(4, {"terms": "fourth"})
    assert store.agreements() == ({"terms": "first"}, {"terms": "second"})


def test_a_release_is_what_was_kept_last_before_the_job_ended(store: JobStore) -> None:
    running(store)
    assert store.release("spring") is None
    store.put_release("spring", {"released": "2024-05-31"}, "releases/spring")
    store.put_release("spring", {"released": "2024-06-01"}, "releases/spring")
    store.change("spring", "running", state="released")
    with pytest.raises(LocalProtocolError, match="only a running job"):
        store.put_release("spring", {"released": "2024-06-02"}, "elsewhere")
    release = store.release("spring")
    assert release is not None
    assert release.record == {"released": "2024-06-01"}
    assert release.folder == "releases/spring"


def test_many_threads_count_every_round_and_event_once(store: JobStore) -> None:
    running(store)
    asked: list[int] = []

    def work() -> None:
        for number in range(1, 9):
            try:
                store.begin_round("spring", number)
                asked.append(number)
                store.finish_round("spring", number, "d" * 64)
            except LocalProtocolError:
                pass
            store.append_event("spring", "round", number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == list(range(1, len(asked) + 1))
    assert len(store.events()) == 32


def test_one_coordinator_at_a_time(place: str | Path, store: JobStore) -> None:
    with pytest.raises(LocalProtocolError, match="was not claimed"):
        store.renew()
    store.claim("coordinator on host-a")
    store.claim("coordinator on host-a")
    store.renew()
    with JobStore.open(place, Clock()) as other:
        with pytest.raises(SettingError, match=r"works on this database \(coordinator on host-a\)"):
            other.claim("coordinator on host-b")
        store.release_claim()
        other.claim("coordinator on hôst-b\n")
        with pytest.raises(SettingError, match=r"\(coordinator on h\?st-b\?\)"):
            store.claim("coordinator on host-a")
    store.claim("coordinator on host-a")


def test_errors_show_nothing_of_what_was_written(store: JobStore) -> None:
    store.add(SPRING)
    for act in (
        lambda: store.append_event("customer 4711", "round"),
        lambda: store.append_event("spring", "round", text="customer 4711 \ud800"),
        lambda: store.append_event("spring", "round", text="customer 4711 \0"),
        lambda: store.append_event("spring", "round", 2**70, text="customer 4711"),
    ):
        with pytest.raises(DovetailError) as caught:
            act()
        for leak in ("4711", "INSERT", "events", "sqlite", "pg8000"):
            assert leak not in str(caught.value)
        assert caught.value.__suppress_context__
    assert store.events() == ()
