"""``kill -9`` at every step of secure aggregation: the job ends, and the books are right.

Keys are shared for two rounds at once and a job has five rounds, so that its third begins a block
and is followed by another of the same block. Whatever is killed, it is killed in that third round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import request as requests
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.simulation.federation import COORDINATOR, Member
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.points import Doom, When
from tests.faults.process import Setting
from tests.faults.trial import PARTNERS, RICH, Trial, tables
from tests.node.homes import write_csv
from tests.samples import SHARED_TASK, sharing_terms, tolerant_terms

ROUNDS, IN_A_BLOCK, STRUCK = 5, 2, 3
CHEAP = replace(SHARED_TASK, rounds=ROUNDS, noise_multiplier=4.0)
OF_FOUR = ("brand", "cinema", "platform", "retailer")

SHORT = 5.0
"""Seconds for an answer, where some will not come."""

AT_A_NODE = [
    ("advertise_keys", 2),  # of the second block
    ("share_keys", 2),
    ("receive_shares", 2),
    ("masked_input", 3),
    ("check_consistency", 3),
    ("unmask", 3),
]
AT_THE_COORDINATOR = [
    ("exchange", 8),  # advertise keys
    ("exchange", 9),  # share keys
    ("exchange", 10),  # receive shares
    ("masked_input", 8),  # of the second of three nodes
    ("exchange", 11),  # check consistency
    ("exchange", 12),  # unmask
    ("unmask", 3),
]
OF_FOUR_NODES = [
    (point, 10 if point == "masked_input" else nth) for point, nth in AT_THE_COORDINATOR
]
"""A block takes three exchanges and each of its rounds two, besides the masked inputs."""
KEYS = ("advertise_keys", "share_keys", "receive_shares")


def both(places: list[tuple[str, int]], *quick: tuple[str, str, int]) -> list[Any]:
    """Before and after every place; all but the quick ones by name only."""
    found: list[Any] = []
    for point, nth in places:
        whens: tuple[When, When] = ("before", "after")
        for when in whens:
            doom = Doom(point, when, nth)
            long = () if (when, point, nth) in quick else (pytest.mark.long,)
            found.append(pytest.param(doom, id=f"{when}-{point}-{nth}", marks=long))
    return found


def shared(job: str, rounds: int = ROUNDS) -> Request:
    return Request(job, replace(CHEAP, rounds=rounds))


def federation(folder: Path, host: Host, agreed: Terms) -> Iterator[Trial]:
    settings = {COORDINATOR: Setting(rounds_in_a_block=IN_A_BLOCK)}
    members = tables(folder)
    if len(agreed.partners) > len(members):
        write_csv(folder / "cinema.csv", 150, 3)
        members["cinema"] = Member(folder / "cinema.csv")
    with Trial(folder, host, agreed, members, settings) as started:
        started.start()
        yield started


@pytest.fixture(scope="module")
def tolerant(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """Four partners of whom one may drop out of a round."""
    yield from federation(tmp_path_factory.mktemp("tolerant"), host, tolerant_terms(budget=RICH))


@pytest.fixture(scope="module")
def strict(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """Three partners who all have to stay."""
    yield from federation(tmp_path_factory.mktemp("strict"), host, sharing_terms(budget=RICH))


def finished(trial: Trial, asked: Request) -> JobRecord:
    """A job that has ended, all books checked."""
    job = trial.ended(asked)
    trial.until_settled()
    books.check(trial, asked)
    return job


def killed_once(trial: Trial, party: str, doom: Doom) -> JobRecord:
    """A job during which a party is killed and started again; then another one runs as ever."""
    asked = shared(f"{party}-{doom.when}-{doom.point}-{doom.nth}")
    trial.doom(party, doom)
    trial.hand_in(asked)
    trial.until_killed(party)
    trial.restart(party)
    job = finished(trial, asked)
    runs_as_ever(trial, f"{asked.job}-next")
    return job


def runs_as_ever(trial: Trial, job: str) -> None:
    asked = shared(job, rounds=IN_A_BLOCK + 1)
    trial.hand_in(asked)
    ended = finished(trial, asked)
    assert (ended.state, ended.rounds_done, ended.lost_rounds) == ("released", ended.rounds, 0)
    assert not trial.told(asked, "dropped")
    assert set(charges(trial, asked).values()) == {ended.rounds}


def charges(trial: Trial, asked: Request) -> dict[str, int]:
    """Rounds of a job that each partner has charged."""
    return {
        name: books.ledger_of(trial, name).jobs[asked.job].rounds_begun for name in trial.partners
    }


def victim(doom: Doom) -> str:
    return PARTNERS[AT_A_NODE.index((doom.point, doom.nth)) % len(PARTNERS)]


@pytest.mark.parametrize(
    "doom",
    both(
        AT_A_NODE,
        ("after", "share_keys", 2),
        ("after", "masked_input", 3),
        ("after", "unmask", 3),
    ),
)
def test_a_node_is_killed_whose_dropout_is_tolerated(tolerant: Trial, doom: Doom) -> None:
    party = victim(doom)
    job = killed_once(tolerant, party, doom)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS, 0)
    (dropped,) = tolerant.told(requested(job), "dropped")
    assert dropped.partner == party
    assert "no keys" not in dropped.text, "what happened first is told"
    kept = charges(tolerant, requested(job))
    absent = doom.point in KEYS
    assert kept == {name: ROUNDS - (absent and name == party) for name in OF_FOUR}


@pytest.mark.parametrize(
    "doom",
    both(
        AT_A_NODE,
        ("after", "receive_shares", 2),
        ("before", "unmask", 3),
    ),
)
def test_a_node_is_killed_where_all_have_to_stay(strict: Trial, doom: Doom) -> None:
    party = victim(doom)
    job = killed_once(strict, party, doom)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS - 1, 1)
    (lost,) = strict.told(requested(job), "lost")
    assert f"; {party}: " in lost.text, "it is told who left"
    nothing_read = doom.point in KEYS
    kept = charges(strict, requested(job))
    assert set(kept.values()) == {ROUNDS - nothing_read}, "a sum that cannot be costs nothing"


@pytest.mark.parametrize(
    "doom",
    both(
        OF_FOUR_NODES,
        ("after", "exchange", 8),
        ("before", "exchange", 10),
        ("after", "masked_input", 10),
        ("after", "unmask", 3),
    ),
)
def test_the_coordinator_is_killed(tolerant: Trial, doom: Doom) -> None:
    job = killed_once(tolerant, COORDINATOR, doom)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS - 1, 1)
    (lost,) = tolerant.told(requested(job), "lost")
    assert lost.text == "the coordinator was interrupted"


@pytest.mark.parametrize("doom", both(AT_THE_COORDINATOR, ("before", "exchange", 12)))
def test_the_coordinator_is_killed_where_all_have_to_stay(strict: Trial, doom: Doom) -> None:
    job = killed_once(strict, COORDINATOR, doom)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS - 1, 1)


def test_where_too_many_leave_a_round_is_lost_and_the_job_waits_for_them(tolerant: Trial) -> None:
    asked, gone = shared("two-leave"), ("brand", "platform")
    for partner in gone:
        tolerant.doom(partner, Doom("masked_input", "before", STRUCK))
    tolerant.hand_in(asked)
    for partner in gone:
        tolerant.until_killed(partner)
    tolerant.restart(*gone)
    job = finished(tolerant, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS - 1, 1)
    assert set(charges(tolerant, asked).values()) == {ROUNDS}
    runs_as_ever(tolerant, "two-are-back")


@pytest.mark.long
def test_a_partner_that_stays_away_is_done_without(tolerant: Trial) -> None:
    runs_as_ever(tolerant, "away-before")  # every worker is ready
    asked = shared("away")
    tolerant.doom("brand", Doom("masked_input", "after", STRUCK))
    tolerant.hand_in(asked, deadline=SHORT)
    tolerant.until_killed("brand")
    job = tolerant.ended(asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("released", ROUNDS, 0)
    tolerant.restart("brand")
    finished(tolerant, asked)
    assert charges(tolerant, asked) == dict.fromkeys(OF_FOUR, ROUNDS) | {"brand": STRUCK}
    runs_as_ever(tolerant, "away-no-more")


@pytest.mark.long
def test_a_partner_that_stays_away_ends_the_job_where_all_have_to_stay(strict: Trial) -> None:
    runs_as_ever(strict, "gone-before")  # every worker is ready
    asked = shared("gone")
    strict.doom("retailer", Doom("unmask", "before", STRUCK))
    strict.hand_in(asked, deadline=SHORT)
    strict.until_killed("retailer")
    job = strict.ended(asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("failed", STRUCK - 1, 1)
    assert job.reason.startswith("fewer than 3 partners are connected")
    strict.restart("retailer")
    finished(strict, asked)
    assert set(charges(strict, asked).values()) == {STRUCK}
    runs_as_ever(strict, "gone-no-more")


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_coordinator_is_killed_again_while_it_resumes(strict: Trial, when: When) -> None:
    asked = shared(f"again-{when}")
    strict.doom(COORDINATOR, Doom("masked_input", "after", 8))
    strict.hand_in(asked)
    strict.until_killed(COORDINATOR)
    strict.doom(COORDINATOR, Doom("exchange", when, 2))
    strict.start_coordinator()
    strict.until_killed(COORDINATOR)
    strict.restart(COORDINATOR)
    job = finished(strict, asked)
    assert (job.state, job.rounds_done, job.lost_rounds) == ("failed", STRUCK - 1, 2)
    assert job.reason == "the coordinator was interrupted"
    runs_as_ever(strict, f"again-{when}-next")


@pytest.mark.long
def test_a_power_cut_everywhere(tolerant: Trial) -> None:
    asked = shared("power-cut")
    tolerant.doom("retailer", Doom("unmask", "after", STRUCK))
    tolerant.hand_in(asked)
    tolerant.until_killed("retailer")
    tolerant.kill(COORDINATOR, "brand", "cinema", "platform")
    tolerant.restart(COORDINATOR, *OF_FOUR)
    job = finished(tolerant, asked)
    assert job.state == "released"
    assert (job.rounds_done + job.lost_rounds, job.lost_rounds <= 1) == (ROUNDS, True)
    runs_as_ever(tolerant, "power-is-back")


def requested(job: JobRecord) -> Request:
    return requests.from_record(dict(job.request))
