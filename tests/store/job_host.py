"""Processes that write to a coordinator's store, forked from one that has imported it all.

Reads lines ``ROLE PLACE FOLDER PROCESSES`` and starts so many processes in that role; they begin
together, say one line for each thing that was kept, and end without cleaning up.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dovetail.errors import DovetailError
from dovetail.store import checkpoints
from dovetail.store.jobs import JobStore
from dovetail.store.records import JobRecord

ROUNDS = 4


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def open_store(place: str) -> JobStore:
    return JobStore.open(place if "://" in place else Path(place), lambda: datetime.now(UTC))


def record(job: str, asked_by: str = "analyst") -> JobRecord:
    return JobRecord(job, {"job": job}, "a" * 64, "b" * 64, asked_by, "", 2, 60.0, ROUNDS)


def model(number: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"weight": np.full((64, 64), number, np.float32)}


def coordinate(place: str, folder: Path, number: int) -> None:
    """Runs jobs one after the other as a coordinator does, beginning with the one that stopped."""
    with open_store(place) as store:
        for job in store.list(["running"]):
            if job.round_open:
                store.lose_round(job.job)
                say("lost", job.job, job.round_asked)
            if job.checkpoint_round:
                checkpoints.load(folder, job.job, job.checkpoint_round, job.checkpoint)
            finish(store, folder, job)
        for i in range(10**6):
            name = f"job-{os.getpid()}-{i}"
            store.add(record(name))
            say("added", name, 0)
            finish(store, folder, store.change(name, "proposed", state="running"))


def finish(store: JobStore, folder: Path, job: JobRecord) -> None:
    name = job.job
    for asked in range(job.round_asked + 1, ROUNDS + 1):
        store.begin_round(name, asked)
        say("asked", name, asked)
        digest = checkpoints.save(folder, name, asked, model(asked), {})
        store.finish_round(name, asked, digest)
        say("finished", name, asked)
        checkpoints.keep(folder, name, asked)
        say("event", name, store.append_event(name, "round", asked))
    store.put_release(name, {"job": name}, "releases")
    store.change(name, "running", state="released")
    say("released", name, 0)
    checkpoints.forget(folder, name)


def race(place: str, folder: Path, number: int) -> None:
    """Everyone wants the same things."""
    with open_store(place) as store:
        wanted: dict[str, Callable[[], object]] = {
            "added": lambda: store.add(record("new", asked_by=f"analyst-{number}")),
            "approved": lambda: store.change("waiting", "proposed", state="approved"),
            "asked": lambda: store.begin_round("running", 1),
            "agreed": lambda: store.put_agreement(1, {"by": number}),
        }
        for word, act in wanted.items():
            try:
                act()
                say(word, number)
            except DovetailError:
                say("not", word, number)
        for _ in range(20):
            say("event", store.append_event("running", "round"))


def hold(place: str, folder: Path, number: int) -> None:
    """Takes the claim and keeps it until killed."""
    store = open_store(place)
    store.claim(f"holder {number}")
    say("claimed")
    signal.pause()


def fill(place: str, folder: Path, number: int) -> None:
    """Writes until a file may not grow any more, and goes on when it may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open_store(place) as store:
        store.add(record("spring"))
        digest = checkpoints.save(folder, "spring", 1, model(1), {})
        last = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            checkpoints.save(folder, "spring", 2, model(2), {})
        except DovetailError as error:
            say(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            while True:
                last = store.append_event("spring", "round", text="x" * 100)
        except DovetailError as error:
            say(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        say(last, store.append_event("spring", "round"), digest)


def migrate(place: str, folder: Path, number: int) -> None:
    """Opens a database that may not be there yet."""
    with open_store(place) as store:
        say("opened", len(store.list()))


ROLES = {role.__name__: role for role in (coordinate, race, hold, fill, migrate)}


def work(role: str, place: str, folder: str, number: int, gate: int) -> None:
    os.read(gate, 1)
    try:
        ROLES[role](place, Path(folder), number)
    except BaseException as error:  # noqa: BLE001 - told, and the process ends
        say(repr(error))
    os._exit(0)


def main() -> None:
    say("ready")
    for line in sys.stdin:
        role, place, folder, processes = line.split()
        gate, opened = os.pipe()
        children = []
        for number in range(int(processes)):
            children.append(os.fork())
            if not children[-1]:
                os.close(opened)
                work(role, place, folder, number, gate)
        say(*children)
        os.close(gate)
        os.close(opened)
        for child in children:
            os.waitpid(child, 0)
        say("done")


main()
