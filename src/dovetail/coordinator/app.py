"""A coordinator put together from database, parties, agreement, server and jobs, and kept going."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from dovetail.agreement.files import SIGNATURE, signed_file
from dovetail.agreement.signing import (
    chain_record,
    signed_terms_from_record,
    signed_terms_record,
)
from dovetail.agreement.trusted import TrustedTerms
from dovetail.coordinator.docket import Docket
from dovetail.coordinator.job import State
from dovetail.coordinator.metrics import Metrics
from dovetail.coordinator.parties import Parties
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.service import Service
from dovetail.coordinator.settings import CoordinatorSettings
from dovetail.crypto.keyring import Keyring
from dovetail.errors import DovetailError, LocalProtocolError, SettingError, TransportError
from dovetail.store.jobs import JobStore
from dovetail.wire.peers import Identity, Limits, LinkEvent, Peer
from dovetail.wire.server import FederationServer

TIDY_SECONDS = 1.0
_TOO_FRESH = 2_000_000_000
"""Nanoseconds after a change within which another one may bear the same time."""
SHUTDOWN_SECONDS = 10.0

_logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Coordinator:
    """A running coordinator; a context manager that closes it.

    Attributes:
        port: it listens on, once started.
    """

    def __init__(
        self,
        settings: CoordinatorSettings,
        keyring: Keyring,
        clock: Callable[[], datetime] = utc_now,
        limits: Limits | None = None,
    ) -> None:
        """Opens the database and takes it; nothing listens yet.

        Raises:
            SettingError: another coordinator holds the database, the keys are another party's, or
                a setting cannot be used.
            DovetailError: database or agreement cannot be read.
        """
        if keyring.name != settings.name:
            raise SettingError(f"the keys belong to {keyring.name!r}, not to {settings.name!r}")
        self.port = 0
        self._settings, self._clock = settings, clock
        self._metrics, self._told = Metrics(), ""
        self._looked_at: tuple[tuple[str, int], ...] = ()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True)
            for name, work in (("tidy", self._tidy), ("settle", self._settle))
        ]
        with ExitStack() as stack:
            self._store = stack.enter_context(JobStore.open(settings.database, clock))
            self._store.claim(keyring.name)
            self._trusted = self._known_terms(keyring)
            parties = Parties(settings.parties, keyring, lambda: self._trusted.newest)
            self._server = FederationServer(
                settings.listen,
                Identity(keyring.certificate, keyring.tls_key),
                parties,
                self,
                self._welcome,
                limits or Limits(),
                self._on_link,
            )
            self._docket = Docket(
                self._store,
                settings.folder,
                settings.name,
                self._trusted,
                self._server,
                self._server.wait_for_change,
                clock,
                self._on_event,
            )
            self._service = Service(
                self._docket,
                self._store,
                self._trusted,
                parties,
                self._server.links,
                settings.folder,
            )
            self.call, self.watch = self._service.call, self._service.watch
            self.fetch = self._service.fetch
            self._open = stack.pop_all()

    def start(self) -> int:
        """Listens, goes on with what was under way, and keeps going in the background.

        Returns:
            The port it listens on.

        Raises:
            TransportError: the address cannot be listened on.
            SettingError: nor can that of the metrics.
        """
        self._adopt()
        self.port = self._server.start()
        self._open.callback(self._server.stop, SHUTDOWN_SECONDS)
        if self._settings.metrics:
            self._serve_metrics()
        self._docket.resume()
        for thread in self._threads:
            thread.start()
        _logger.info("listens on %s", self._settings.listen)
        return self.port

    def close(self) -> None:
        """Stops listening; jobs under way are left to be resumed."""
        self._stopped.set()
        self._docket.suspend(SHUTDOWN_SECONDS)
        self._open.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(SHUTDOWN_SECONDS)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _known_terms(self, keyring: Keyring) -> TrustedTerms:
        kept = [signed_terms_from_record(record) for record in self._store.agreements()]
        return TrustedTerms(keyring.name, keyring.signing.public, kept)

    def _adopt(self) -> bool:
        """Moves on to the agreement in the folder, once all parties have signed it."""
        path = self._settings.agreement
        if not path.exists():
            self._say(f"waits for an agreement: {path.name} is not there")
            return False
        state, settled = _written(path.parent)
        if state == self._looked_at:
            return False  # what all had signed or not then: to check many signatures takes long
        try:
            signed = signed_file(path, self._trusted.newest).signed
            new = self._trusted.update(signed)
            if new:
                version = signed.terms.version
                self._store.put_agreement(version, signed_terms_record(signed))
                self._say(f"all parties signed version {version}")
            self._looked_at = state if settled else ()
            return new
        except DovetailError as error:
            self._say(f"waits for an agreement: {error}")
            if settled and not isinstance(error, TransportError):
                self._looked_at = state
            return False

    def _welcome(self, _peer: Peer) -> bytes:
        """What a node is shown: all versions of the signed terms."""
        return json.dumps(chain_record(self._trusted.chain)).encode()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stopped.wait(TIDY_SECONDS):
            try:
                work()
            except TransportError as error:
                _logger.warning("%s", error)
            except Exception:
                if not self._stopped.is_set():
                    _logger.exception("tidying failed")

    def _tidy(self) -> None:
        self._server.drop_revoked()
        if self._adopt():
            self._server.announce()
        self._keep_claim()

    def _settle(self) -> None:
        self._docket.settle()

    def _keep_claim(self) -> None:
        """Checks that the database is still ours; takes it again where the claim was lost."""
        try:
            self._store.renew()
        except LocalProtocolError:
            try:
                self._store.claim(self._settings.name)
            except SettingError as error:
                self._docket.suspend(0)
                self._say(f"runs no jobs any more: {error}")

    def _serve_metrics(self) -> None:
        def jobs(state: State) -> int:
            return len(self._store.list([state], limit=10_000))

        watched = self._metrics.watch(self._server.nodes, jobs)
        try:
            self._open.callback(watched.serve(self._settings.metrics))
        except OSError as error:
            raise SettingError(f"metrics: cannot listen there ({error.strerror})") from None

    def _on_event(self, event: JobEvent) -> None:
        self._metrics.event(event)
        _logger.info("job", extra={"fields": vars(event)})

    def _on_link(self, event: LinkEvent) -> None:
        self._metrics.link(event.kind)
        name = event.peer.name if event.peer else ""
        fields = {"link": event.kind, "party": name, "from": event.address, "why": event.reason}
        _logger.log(
            logging.WARNING if event.kind == "refused" else logging.INFO,
            "connection",
            extra={"fields": fields},
        )

    def _say(self, sentence: str) -> None:
        """Logs a sentence once, and not again each second."""
        if sentence != self._told:
            _logger.info(sentence)
            self._told = sentence


def _written(folder: Path) -> tuple[tuple[tuple[str, int], ...], bool]:
    """When the agreement's files were last written, and whether that is long enough ago."""
    paths = (file for ending in (".toml", SIGNATURE) for file in folder.glob(f"*{ending}"))
    state = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in paths))
    return state, time.time_ns() - max(moment for _, moment in state) > _TOO_FRESH
