"""Metrics as Prometheus reads them: over HTTP, on this machine."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dovetail.coordinator.job import State
from dovetail.coordinator.metrics import Metrics
from dovetail.coordinator.progress import EventKind, JobEvent

HOST = "127.0.0.1"
Samples = dict[tuple[str, tuple[str, ...]], float]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    port = free_port()
    stop = metrics.serve(f"{HOST}:{port}")
    yield port
    stop()


def read(port: int) -> Samples:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def event(kind: EventKind, partner: str = "") -> JobEvent:
    return JobEvent("job-1", kind, 1, 3, partner)


def test_what_happens_to_jobs_is_counted(metrics: Metrics, port: int) -> None:
    told: list[JobEvent] = [
        event("submitted"),
        event("permitted", "brand"),
        event("refused", "brand"),
        event("refused"),
        *[event("round")] * 3,
        event("lost"),
        event("dropped", "brand"),
        event("dropped", "brand"),
        event("dropped", "retailer"),
        event("released"),
        event("failed"),
        event("cancelled"),
    ]
    for happened in told:
        metrics.event(happened)
    found = read(port)
    assert found["dovetail_rounds_total", ("finished",)] == 3
    assert found["dovetail_rounds_total", ("lost",)] == 1
    assert found["dovetail_answers_dropped_total", ("brand",)] == 2
    assert found["dovetail_answers_dropped_total", ("retailer",)] == 1
    for end in ("released", "failed", "cancelled", "refused"):
        assert found["dovetail_jobs_ended_total", (end,)] == 1


def test_connections_and_what_is_there_now(metrics: Metrics, port: int) -> None:
    nodes, jobs = [1, 2], {State.RUNNING: 4}
    metrics.watch(lambda: nodes, lambda state: jobs.get(state, 0))
    for kind in ("connected", "connected", "refused"):
        metrics.link(kind)
    found = read(port)
    assert found["dovetail_nodes_connected", ()] == 2
    assert found["dovetail_links_total", ("connected",)] == 2
    assert found["dovetail_links_total", ("refused",)] == 1
    assert {found["dovetail_jobs", (str(state),)] for state in State} == {0, 4}
    nodes.append(3)
    assert read(port)["dovetail_nodes_connected", ()] == 3


def test_nothing_names_a_job_and_two_coordinators_do_not_share(metrics: Metrics, port: int) -> None:
    metrics.event(event("round"))
    Metrics().event(event("round"))
    found = read(port)
    assert found["dovetail_rounds_total", ("finished",)] == 1
    assert not any("job-1" in labels for _, labels in found)


def test_a_port_that_is_taken_is_an_error_and_a_stop_frees_it(metrics: Metrics, port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        Metrics().serve(f"{HOST}:{port}")
    again = Metrics()
    other = free_port()
    again.serve(f"{HOST}:{other}")()
    with pytest.raises(urllib.error.URLError):
        read(other)
    again.serve(f"{HOST}:{other}")()
