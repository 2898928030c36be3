"""What people at a partner decide, in files that a running node and commands share."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dovetail.agreement.permit import PERMIT_DAYS
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest
from dovetail.errors import DataError, PolicyError, SettingError
from dovetail.simulation.identities import asked
from dovetail.store import desk as desks
from dovetail.store.desk import Desk
from tests.samples import TASK, terms

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def signed(job: str = "job-1", **changes: object) -> SignedRequest:
    return asked(Request(job, replace(TASK, **changes)), terms())  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


def test_a_request_waits_until_somebody_decides(desk: Desk) -> None:
    assert desk.waiting() == ()
    desk.wait_for_decision(signed(), NOW)
    desk.wait_for_decision(signed(), NOW)
    assert desk.waiting() == (signed(),)
    assert desk.decision(signed(), NOW) is None
    assert desk.decide("job-1", "approved", NOW) == signed().request
    assert desk.decision(signed(), NOW) == "approved"
    assert desk.waiting() == ()


def test_a_decision_survives_restarts_and_is_seen_by_others(desk: Desk, tmp_path: Path) -> None:
    desk.wait_for_decision(signed(), NOW)
    command = Desk(tmp_path / "desk")
    assert command.waiting() == (signed(),)
    command.decide("job-1", "refused", NOW)
    assert desk.decision(signed(), NOW) == "refused"


def test_a_decision_can_be_changed_but_is_about_one_request_only(desk: Desk) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "refused", NOW)
    desk.decide("job-1", "approved", NOW)
    assert desk.decision(signed(), NOW) == "approved"
    for other in (signed(seed=5), signed(rounds=4), signed("job-2")):
        assert desk.decision(other, NOW) is None


def test_another_request_of_the_same_name_does_not_take_the_place_of_one_that_was_read(
    desk: Desk,
) -> None:
    desk.wait_for_decision(signed(), NOW)
    with pytest.raises(PolicyError) as caught:
        desk.wait_for_decision(signed(noise_multiplier=0.5), NOW)
    assert caught.value.rule == "request"
    assert desk.waiting() == (signed(),)


LATER = terms(max_rounds=40)


def test_a_yes_is_for_who_asked_under_the_terms_of_that_time(desk: Desk) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    for other in (replace(signed(), asked_by="analyst"), asked(signed().request, LATER)):
        assert desk.decision(other, NOW) is None
    assert desk.decision(signed(), NOW) == "approved"


def test_a_no_is_for_whoever_asks_under_whichever_terms_and_lasts(desk: Desk) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "refused", NOW)
    for other in (replace(signed(), asked_by="analyst"), asked(signed().request, LATER)):
        assert desk.decision(other, NOW + timedelta(days=999)) == "refused"


def test_a_yes_lasts_as_long_as_a_permit_and_then_people_are_asked_again(desk: Desk) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    last = NOW + timedelta(days=PERMIT_DAYS)
    desk.wait_for_decision(signed(), last)
    assert desk.decision(signed(), last) == "approved"
    after = last + timedelta(seconds=1)
    assert desk.decision(signed(), after) is None
    assert desk.waiting() == (), "nobody has asked again"
    desk.wait_for_decision(signed(), after)
    assert desk.waiting() == (signed(),)
    desk.decide("job-1", "approved", after)
    assert desk.decision(signed(), after) == "approved"


def test_other_terms_are_put_before_people_again(desk: Desk) -> None:
    again = asked(signed().request, LATER)
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    desk.wait_for_decision(again, NOW)
    assert desk.waiting() == (again,)
    desk.decide("job-1", "approved", NOW)
    assert desk.decision(again, NOW) == "approved"


def test_another_asker_waits_until_people_have_decided_on_the_first(desk: Desk) -> None:
    other = replace(signed(), asked_by="analyst")
    desk.wait_for_decision(signed(), NOW)
    with pytest.raises(PolicyError):
        desk.wait_for_decision(other, NOW)
    desk.decide("job-1", "approved", NOW)
    desk.wait_for_decision(other, NOW)
    assert desk.waiting() == (other,)


def test_a_decision_in_a_file_of_an_older_version_decides_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    path = tmp_path / "desk" / "decided" / "job-1.json"
    record = json.loads(path.read_text())
    older = {name: record[name] for name in ("request_digest", "decision", "time")}
    path.write_text(json.dumps(older))
    assert desk.decision(signed(), NOW) is None
    assert desk.waiting() == (signed(),)
    desk.decide("job-1", "approved", NOW)
    assert desk.decision(signed(), NOW) == "approved"


@pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01"])
def test_a_decision_without_a_time_is_none(time: str, desk: Desk, tmp_path: Path) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    path = tmp_path / "desk" / "decided" / "job-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time}))
    with pytest.raises(SettingError):
        desk.decision(signed(), NOW)


@pytest.mark.parametrize("job", ["job-9", "../waiting/job-1", "", ".", "a/b", "a" * 65])
def test_nothing_else_can_be_decided_on(job: str, desk: Desk) -> None:
    desk.wait_for_decision(signed(), NOW)
    with pytest.raises(SettingError):
        desk.decide(job, "approved", NOW)
    assert desk.waiting() == (signed(),)


def test_pausing_is_seen_by_everybody_and_ends(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "desk")
    assert not desk.paused
    other.pause(NOW)
    assert desk.paused
    other.resume()
    other.resume()
    assert not desk.paused


def test_the_state_differs_whenever_a_person_did_something(desk: Desk) -> None:
    seen = [desk.state()]
    desk.wait_for_decision(signed(), NOW)
    assert desk.state() == seen[0], "that something waits is no decision"
    desk.pause(NOW)
    seen.append(desk.state())
    desk.decide("job-1", "approved", NOW)
    seen.append(desk.state())
    desk.resume()
    seen.append(desk.state())
    assert len(set(seen)) == 4


def test_it_is_private(desk: Desk, tmp_path: Path) -> None:
    for folder in ("waiting", "decided"):
        mode = (tmp_path / "desk" / folder).stat().st_mode
        assert stat.S_IMODE(mode) == 0o700


def test_too_many_requests_are_not_put_before_people(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "_MOST_WAITING", 2)
    for job in ("job-1", "job-2"):
        desk.wait_for_decision(signed(job), NOW)
    desk.wait_for_decision(signed("job-2"), NOW)
    with pytest.raises(DataError, match="too many"):
        desk.wait_for_decision(signed("job-3"), NOW)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"request": 1}'])
def test_damaged_files_are_named_and_decide_nothing(
    content: str, desk: Desk, tmp_path: Path
) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    for folder in ("waiting", "decided"):
        (tmp_path / "desk" / folder / "job-1.json").write_text(content)
    with pytest.raises((DataError, SettingError)):
        desk.decision(signed(), NOW)
    with pytest.raises((DataError, SettingError)):
        desk.waiting()


def test_an_unknown_decision_is_none(desk: Desk, tmp_path: Path) -> None:
    desk.wait_for_decision(signed(), NOW)
    desk.decide("job-1", "approved", NOW)
    path = tmp_path / "desk" / "decided" / "job-1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "decision": "perhaps"}))
    with pytest.raises(SettingError):
        desk.decision(signed(), NOW)


def test_one_process_serves_a_node(desk: Desk, tmp_path: Path) -> None:
    with (
        desk.alone(),
        pytest.raises(SettingError, match="another process serves this node already"),
        Desk(tmp_path / "desk").alone(),
    ):
        pass
    with desk.alone():
        pass


HOLD = """
import sys
from pathlib import Path
from dovetail.store.desk import Desk
with Desk(Path(sys.argv[1])).alone():
    print("alone", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_is_killed_lets_the_next_one_serve(desk: Desk, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "desk")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"alone\n"
        with pytest.raises(SettingError), desk.alone():
            pass
        holder.kill()
    with desk.alone():
        pass


def test_what_serves_may_fail_for_reasons_of_its_own(desk: Desk) -> None:
    with pytest.raises(BlockingIOError, match="mine"), desk.alone():
        raise BlockingIOError("mine")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "desk").write_text("a file")
    with pytest.raises(DataError, match="desk"):
        Desk(tmp_path / "desk")
