"""A node at work: dials its coordinator, answers, and notices what its people decide."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from dovetail.agreement.enrolment import require_coordinator
from dovetail.agreement.files import read_access
from dovetail.agreement.terms import Terms
from dovetail.crypto.keyring import Keyring
from dovetail.errors import AgreementError, SettingError
from dovetail.node.gate import Clock
from dovetail.node.opening import OpenNode, kept_terms, utc_now
from dovetail.node.session import Session
from dovetail.node.settings import NodeSettings
from dovetail.store.desk import Desk
from dovetail.wire.attendance import Attendance
from dovetail.wire.peers import Access

LOOK_SECONDS = 0.5
"""How often the node looks at its desk, and at the agreement that it keeps."""
AGAIN_SECONDS = 30.0
"""How long it waits before it tries again to open."""
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

_logger = logging.getLogger(__name__)


def access_of(settings: NodeSettings, keyring: Keyring) -> Access:
    """How this node reaches its coordinator.

    Raises:
        SettingError: its folder of keys does not say.
    """
    kept = read_access(settings.keys)
    return Access(kept.address, kept.certificate.encode(), keyring.certificate, keyring.tls_key)


def attend(
    settings: NodeSettings,
    keyring: Keyring,
    stop: threading.Event,
    clock: Clock = utc_now,
    *,
    anew: bool = False,
    child: bool = True,
) -> None:
    """Serves until told to stop; connects again whenever the connection is lost.

    Args:
        settings: the node's.
        keyring: its keys.
        stop: ends it.
        clock: the time.
        anew: read the table again although it was read before.
        child: train in a process of its own, which can be killed.

    Raises:
        SettingError: the keys are another party's, another process serves this node, or the
            coordinator's address is missing.
        AgreementError: the agreement kept here was tampered with.
    """
    if keyring.name != settings.name:
        raise SettingError(f"the keys belong to {keyring.name!r}, not to {settings.name!r}")
    desk, kept = Desk(settings.desk), kept_terms(settings, keyring)
    access, fresh = access_of(settings, keyring), [anew]

    def open_node(terms: Terms) -> OpenNode:
        require_coordinator(terms, access.server_certificate)
        opened = OpenNode(settings, terms, keyring, clock=clock, anew=fresh[0], child=child)
        fresh[0] = False
        return opened

    session = Session(kept, open_node, desk, clock)
    attendance = Attendance(access, session.handle, _welcomed(session))
    watcher = threading.Thread(target=_watch, args=(session, desk, attendance, stop), daemon=True)
    with desk.alone():
        watcher.start()
        try:
            if kept.trusted.newest is not None:
                session.prepare()
            _run(attendance, stop)
        finally:
            stop.set()
            watcher.join()
            session.shut()


def _run(attendance: Attendance, stop: threading.Event) -> None:
    """Attends in a thread of its own.

    Signals arrive in the main thread. One that struck it while gRPC closes a connection would be
    lost there, and the node would not end.
    """
    with ThreadPoolExecutor(1, "dovetail-attend") as pool:
        attending = pool.submit(attendance.run, stop)
        try:
            attending.result()
        finally:
            stop.set()


def _welcomed(session: Session) -> Callable[[bytes, float], None]:
    def welcome(document: bytes, clock: float) -> None:
        try:
            session.welcome(document, datetime.fromtimestamp(_dated(clock), UTC))
        except AgreementError as error:
            _logger.error("refuses the agreement that was shown: %s", error)

    return welcome


def _dated(clock: float) -> float:
    """A clock's seconds, brought between the years 1970 and 9999."""
    return min(max(clock, 0.0), _LAST_SECOND)


def _watch(session: Session, desk: Desk, attendance: Attendance, stop: threading.Event) -> None:
    """Tells the coordinator when people here did something; tries again what could not open."""
    known, waited = desk.state(), 0.0
    while not stop.wait(LOOK_SECONDS):
        state = desk.state()
        if session.look() or state != known:
            known = state
            attendance.nudge()
        waited += LOOK_SECONDS
        if session.problem is not None and waited >= AGAIN_SECONDS:
            waited = 0.0
            session.prepare()
