"""A job whose coordinator dies anywhere goes on from what its journal remembers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from dovetail.agreement.request import Request, TrainingTask
from dovetail.coordinator.job import Job, State
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.round import Arrays
from dovetail.coordinator.run import Run
from dovetail.errors import TooManyDropouts, TransportError
from tests.coordinator.nodes import NAMES, Nodes, lost
from tests.coordinator.recording import REQUEST, Killed, Recording, a_run
from tests.samples import TASK

WHOLE_JOB = [
    *[f"permit of {name}" for name in ("brand", "retailer", "platform")],
    "approved 0",
    "running 0",
    *[f"{what} {number}" for number in (1, 2, 3) for what in ("running", "finished")],
    "model",
    "released 3",
    *[f"settled {name}" for name in NAMES],
]


def until_ended(nodes: Nodes, journal: Recording) -> Run:
    """Starts the coordinator again and again until the job has ended."""
    run = a_run(nodes, journal)
    with suppress(Killed):
        run.run()
    while not (journal.job and journal.job.ended):
        run = a_run(nodes, journal)
        run.run()
    return run


def test_what_happens_is_noted_in_this_order() -> None:
    journal = Recording()
    a_run(Nodes(), journal).run()
    assert sorted(journal.entries) == sorted(WHOLE_JOB)
    assert journal.entries[3:-3] == WHOLE_JOB[3:-3]


@pytest.mark.parametrize("remembered", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("place", range(1, len(WHOLE_JOB) + 1))
def test_killed_at_any_entry_the_job_is_released(place: int, remembered: bool) -> None:
    nodes, journal = Nodes(), Recording(place, remembered)
    until_ended(nodes, journal)
    assert journal.job is not None
    assert journal.job.state is State.RELEASED
    assert journal.job.rounds_done + journal.job.rounds_lost == TASK.rounds
    assert journal.job.rounds_lost <= 1
    assert journal.releases[-1].provenance.rounds == journal.job.rounds_done
    for name in NAMES:
        asked = nodes.rounds_sent(name)
        assert len(asked) == len(set(asked)), "a round's number is asked once"
        spent = nodes.ledgers[name].refresh().spending_by_job()["job-1"]
        assert spent.rounds_committed == spent.charged == len(asked)


def test_nothing_is_asked_that_the_journal_does_not_know() -> None:
    for place in range(1, len(WHOLE_JOB) + 1):
        nodes, journal = Nodes(), Recording(place, remembered=False)
        with suppress(Killed):
            a_run(nodes, journal).run()
        known = journal.job.round_asked if journal.job else 0
        assert all(max(nodes.rounds_sent(name), default=0) <= known for name in NAMES)
        told = nodes.told("query.close")
        assert not told or (journal.job and journal.job.ended)


@pytest.mark.parametrize(
    "task",
    [
        replace(TASK, server_optimizer="fedadam", server_learning_rate=0.05),
        replace(TASK, server_optimizer="fedavgm", server_learning_rate=0.7),
    ],
    ids=["fedadam", "fedavgm"],
)
def test_between_two_rounds_a_kill_changes_nothing_in_the_model(task: TrainingTask) -> None:
    def released(journal: Recording) -> Arrays:
        nodes, request = Nodes(), Request("job-1", task)
        with suppress(Killed):
            return a_run(nodes, journal, request).run().value
        return a_run(nodes, journal, request).run().value

    undisturbed = released(Recording())
    for round_ in (1, 2):
        resumed = released(Recording(WHOLE_JOB.index(f"finished {round_}") + 1))
        for name, array in undisturbed.items():
            np.testing.assert_array_equal(resumed[name], array)


def test_what_is_released_again_at_the_very_end_is_the_same() -> None:
    nodes, journal = Nodes(), Recording(WHOLE_JOB.index("model") + 1)
    until_ended(nodes, journal)
    first, second = journal.releases
    assert first.provenance == second.provenance
    for name, array in first.value.items():
        np.testing.assert_array_equal(second.value[name], array)


def standing(nodes: Nodes, **changes: object) -> Recording:
    """A journal of a job that all partners permitted."""
    permitted = Recording(4)
    with suppress(Killed):
        a_run(nodes, permitted).run()
    nodes.sent.clear()
    changed = replace(Job(REQUEST, State.RUNNING), **changes)  # type: ignore[arg-type]
    return Recording(job=changed, permits=permitted.permits)


def test_an_open_round_is_lost_and_its_number_never_asked_again() -> None:
    events: list[JobEvent] = []
    nodes = Nodes()
    run = a_run(nodes, standing(nodes, round_asked=1), on_event=events.append)
    release = run.run()
    assert (run.job.rounds_done, run.job.rounds_lost) == (2, 1)
    assert events[0].kind == "lost"
    assert events[0].text == "the coordinator was interrupted"
    assert release.provenance.rounds == 2
    assert all(nodes.rounds_sent(name) == [2, 3] for name in NAMES)
    assert nodes.told("query.propose") == []
    assert all(charged == {TASK.event: 2} for charged in nodes.charged().values())


def test_a_lost_round_can_be_the_last_straw() -> None:
    nodes = Nodes()
    journal = standing(nodes, round_asked=2, rounds_lost=1)
    with pytest.raises(TooManyDropouts, match="interrupted"):
        a_run(nodes, journal).run()
    assert journal.job is not None
    assert journal.job.state is State.FAILED
    assert nodes.told("train") == []
    assert sorted(journal.told) == sorted(NAMES)


def test_with_no_finished_round_there_is_nothing_to_release() -> None:
    nodes = Nodes()
    one = Request("job-1", replace(TASK, rounds=1))
    journal = Recording(job=Job(one, State.RUNNING, round_asked=1))
    with pytest.raises(TooManyDropouts, match="nothing to release"):
        a_run(nodes, journal, one).run()
    assert journal.releases == []


def test_who_did_not_hear_the_end_is_not_noted_as_settled() -> None:
    nodes, journal = Nodes(twist=lost("query.close", "platform")), Recording()
    a_run(nodes, journal, card_of=lambda _: {}).run()
    assert sorted(journal.told) == ["brand", "retailer"]
    nodes, journal = Nodes(twist=lost("query.keep", "brand")), Recording()
    a_run(nodes, journal, card_of=lambda _: {}).run()
    assert sorted(journal.told) == ["platform", "retailer"]
    assert "brand" not in nodes.told("query.close"), "it must get the model before it forgets"


def test_a_journal_that_fails_stops_everything_before_it_happens() -> None:
    class Full(Recording):
        def moved(self, job: Job) -> None:
            if job.round_asked == 2:
                raise TransportError("the database does not answer")
            super().moved(job)

    nodes, journal = Nodes(), Full()
    with pytest.raises(TransportError):
        a_run(nodes, journal).run()
    assert journal.job is not None
    assert all(nodes.rounds_sent(name) == [1] for name in NAMES)
