"""Everything a node needs, walked through one by one, each problem with its mend.

What it finds describes private rows and stays with the partner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dovetail.agreement import terms as agreed
from dovetail.agreement.enrolment import require_coordinator
from dovetail.agreement.signing import chain_from_record
from dovetail.agreement.terms import Terms
from dovetail.crypto.certificates import valid_until
from dovetail.crypto.keyring import Keyring
from dovetail.data.check import CheckReport, check
from dovetail.data.engine import Limits
from dovetail.errors import AgreementError, DovetailError, RemoteProtocolError, TransportError
from dovetail.node.attending import access_of
from dovetail.node.opening import kept_terms, utc_now
from dovetail.node.session import LARGEST_CLOCK_DIFFERENCE
from dovetail.node.settings import NodeSettings, load_settings, require_known_names
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from dovetail.wire.probe import Welcome, probe

_EXPIRES_SOON = timedelta(days=30)
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Step:
    """One thing that was checked.

    Attributes:
        name: of what was checked.
        good: whether the node can serve with it.
        text: what was found.
        mend: what to do about it; empty where nothing needs to be done.
    """

    name: str
    good: bool
    text: str
    mend: str = ""


def check_node(
    path: Path, unlock: Callable[[Path], Keyring], clock: Callable[[], datetime] = utc_now
) -> Iterator[Step]:
    """Checks a node, and changes nothing.

    Args:
        path: its node.toml.
        unlock: opens a folder of keys.
        clock: the time.

    Yields:
        One step after the other; what cannot be checked because of an earlier problem is left out.
    """
    try:
        settings = load_settings(path)
    except DovetailError as error:
        yield Step("settings", False, str(error), f"correct {path.name}, or: dovetail node init")
        return
    yield Step("settings", True, f"{path} is {settings.name!r}")
    try:
        keyring = unlock(settings.keys)
    except DovetailError as error:
        yield Step("keys", False, str(error), "put back the keys that dovetail node init made")
        return
    yield _keys(settings, keyring, clock())
    yield _desk(settings)
    steps, shown = _coordinator(settings, keyring, clock)
    yield from steps
    step, terms = _agreement(settings, keyring, shown, clock())
    yield step
    if terms is None:
        return
    yield _policy(settings, terms)
    yield from _table(settings, terms)
    yield _ledger(settings, terms, clock())


def _keys(settings: NodeSettings, keyring: Keyring, now: datetime) -> Step:
    if keyring.name != settings.name:
        text = f"these are the keys of {keyring.name!r}"
        return Step("keys", False, text, f"use the keys of {settings.name!r}, or change name")
    until = valid_until(keyring.certificate)
    day = f"{until:%Y-%m-%d}"
    if until <= now:
        mend = "ask the coordinator for a new invitation, and make new keys"
        return Step("keys", False, f"the certificate expired on {day}", mend)
    soon = "ask the coordinator for a new invitation" if until - now < _EXPIRES_SOON else ""
    return Step("keys", True, f"the certificate is valid until {day}", soon)


def _desk(settings: NodeSettings) -> Step:
    try:
        if settings.desk.exists() and Desk(settings.desk).paused:
            mend = "dovetail node resume"
            return Step("desk", False, "the node is paused and refuses everything", mend)
    except DovetailError as error:
        return Step("desk", False, str(error), "make the node's folder writable for this user")
    return Step("desk", True, "not paused")


def _coordinator(
    settings: NodeSettings, keyring: Keyring, clock: Callable[[], datetime]
) -> tuple[list[Step], Welcome | None]:
    try:
        access = access_of(settings, keyring)
    except DovetailError as error:
        mend = "put access.json back into keys: dovetail node init wrote it"
        return [Step("coordinator", False, str(error), mend)], None
    try:
        welcome = probe(access, _PROBE_SECONDS)
        its_time = datetime.fromtimestamp(welcome.clock, UTC)
    except (TransportError, RemoteProtocolError, ValueError, OverflowError) as error:
        mend = "ask the coordinator whether it runs and has enrolled your request"
        return [Step("coordinator", False, str(error), mend)], None
    reached = Step("coordinator", True, f"{access.address} answers and knows this node")
    apart = abs(clock() - its_time)
    good = apart <= LARGEST_CLOCK_DIFFERENCE
    text = f"{apart.total_seconds():.0f} s apart from the coordinator's"
    mend = "" if good else "set this machine's clock (NTP)"
    return [reached, Step("clock", good, text, mend)], welcome


def _agreement(
    settings: NodeSettings, keyring: Keyring, shown: Welcome | None, now: datetime
) -> tuple[Step, Terms | None]:
    try:
        trusted = kept_terms(settings, keyring).trusted
        if shown is not None:
            trusted.follow(chain_from_record(json.loads(shown.document)))
        terms = trusted.in_force(now.date())
        if shown is not None:
            require_coordinator(terms, access_of(settings, keyring).server_certificate)
    except (DovetailError, ValueError) as error:
        return Step("agreement", False, str(error), _agreement_mend(error)), None
    return _understood(terms, settings), terms


def _understood(terms: Terms, settings: NodeSettings) -> Step:
    text = (
        f"{terms.name!r} version {terms.version}, signed by all, until "
        f"{terms.valid_until.isoformat()}; digest {agreed.digest(terms)[:16]}…"
    )
    named = settings.name in [partner.name for partner in terms.partners]
    mend = "" if named else "name in node.toml must be a partner's in the agreement"
    return Step("agreement", named, text, mend)


def _agreement_mend(error: Exception) -> str:
    if isinstance(error, AgreementError) and "not signed by" in str(error):
        return "these parties have yet to sign: dovetail agreement sign"
    if isinstance(error, AgreementError) and "pin another key" in str(error):
        return "put the keys that the agreement pins in keys, or have it amended"
    if isinstance(error, AgreementError) and "pin another certificate" in str(error):
        return "do not serve before you know whose certificate access.json names: ask by telephone"
    return "sign the agreement, send the signature to the coordinator, and check again"


def _policy(settings: NodeSettings, terms: Terms) -> Step:
    try:
        require_known_names(settings.policy, terms)
    except DovetailError as error:
        mend = "correct the name in node.toml: as it stands it refuses nothing"
        return Step("policy", False, str(error), mend)
    return Step("policy", True, "refuses only what the agreement knows")


def _table(settings: NodeSettings, terms: Terms) -> Iterator[Step]:
    try:
        report = check(settings.source, terms.schema, Limits(work_folder=settings.folder))
    except DovetailError as error:
        yield Step("table", False, str(error), "correct [source] in node.toml, or the table")
        return
    for finding in report.errors:
        yield Step("table", False, str(finding), "mend the table or map its column in [columns]")
    for finding in report.warnings:
        yield Step("table", True, str(finding), "look whether that is meant")
    if not report.errors:
        yield Step("table", True, f"fits {terms.schema.name!r}")
        yield _cohort(report, terms)


def _cohort(report: CheckReport, terms: Terms) -> Step:
    enough = report.customers >= terms.minimum_cohort
    if not enough:
        text = f"fewer {terms.schema.unit}s than the agreement's minimum of {terms.minimum_cohort}"
        return Step("cohort", False, text, "bring more, or agree on a lower minimum")
    if report.customers * terms.budget.delta >= 1:
        text = "the agreement's delta is not below one in this partner's customers"
        return Step("cohort", False, text, "agree on a smaller delta")
    return Step("cohort", True, f"at least the agreement's minimum of {terms.minimum_cohort}")


def _ledger(settings: NodeSettings, terms: Terms, now: datetime) -> Step:
    if not settings.ledger.exists():
        if settings.arrays.exists():
            mend = f"put its newest copy back as {settings.ledger.name}"
            return Step("budget", False, "the ledger is missing, though this node has run", mend)
        text = f"nothing spent; ε {terms.budget.epsilon:g} for all jobs together"
        return Step("budget", True, text)
    try:
        with LedgerStore(settings.ledger, terms.budget, utc_now) as store:
            left = store.refresh().remaining(now)
    except DovetailError as error:
        return Step("budget", False, str(error), "put the ledger's newest copy back")
    text = f"ε {left:.3f} of {terms.budget.epsilon:g} left"
    mend = "" if left > 0 else "wait until the budget refills, or agree on another"
    return Step("budget", left > 0, text, mend)
