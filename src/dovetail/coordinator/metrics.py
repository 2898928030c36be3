"""What a coordinator counts, for Prometheus: over HTTP, on this machine only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from dovetail.coordinator.job import State
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.settings import host_and_port

_ROUNDS = {"round": "finished", "lost": "lost"}
_ENDS = ("released", "failed", "cancelled")


class Metrics:
    """Counts what happens to jobs and nodes.

    Nothing here comes from a row: job names, partners and counts of rounds are public among the
    parties.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self._registry = CollectorRegistry()
        self._rounds = self._counter("rounds", "Rounds of all jobs.", "outcome")
        self._ended = self._counter("jobs_ended", "Jobs that ended.", "state")
        self._dropped = self._counter("answers_dropped", "Answers that did not count.", "partner")
        self._links = self._counter("links", "Connections made, lost and refused.", "event")
        self._jobs = Gauge("dovetail_jobs", "Jobs by state.", ["state"], registry=self._registry)
        self._nodes = Gauge("dovetail_nodes_connected", "Nodes connected.", registry=self._registry)

    def event(self, event: JobEvent) -> None:
        """Counts what happened to a job."""
        if event.kind in _ROUNDS:
            self._rounds.labels(_ROUNDS[event.kind]).inc()
        elif event.kind in _ENDS or (event.kind == "refused" and not event.partner):
            self._ended.labels(event.kind).inc()
        elif event.kind == "dropped":
            self._dropped.labels(event.partner).inc()

    def link(self, kind: str) -> None:
        """Counts what happened to a connection."""
        self._links.labels(kind).inc()

    def watch(self, nodes: Callable[[], Iterable[object]], jobs: Callable[[State], int]) -> Self:
        """Asks for the numbers of nodes and jobs whenever they are read."""
        self._nodes.set_function(lambda: sum(1 for _ in nodes()))
        for state in State:
            self._jobs.labels(state).set_function(partial(jobs, state))
        return self

    def serve(self, address: str) -> Callable[[], None]:
        """Answers on ``host:port`` of this machine; returns what ends it.

        Raises:
            OSError: the address is taken.
        """
        host, port = host_and_port(address, "metrics")
        server, thread = start_http_server(port, host, registry=self._registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def _counter(self, name: str, about: str, label: str) -> Counter:
        return Counter(f"dovetail_{name}", about, [label], registry=self._registry)
