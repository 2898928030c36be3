"""One partner's yes to one request: what it is bound to, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.errors import PrivacyError
from dovetail.privacy import event as events
from dovetail.privacy.event import Event

PERMIT_DAYS = 30
"""How long a permit lasts after its job was reserved, if the terms last that long."""


@dataclass(frozen=True)
class Permit:
    """One partner's yes to one request, under one version of the terms.

    Attributes:
        job: of the request.
        partner: who permits.
        request_digest: which request, exactly.
        terms_digest: under which terms, exactly.
        event: what each step releases, and is charged.
        steps: how often, over the whole job.
        expires: when it ends, in UTC, ISO 8601 to the second.
        ledger_head: digest of the last entry of the partner's ledger when the permit was given:
            whoever keeps the permit can tell later whether that ledger was cut off or replaced.
    """

    job: str
    partner: str
    request_digest: str
    terms_digest: str
    event: Event
    steps: int
    expires: str
    ledger_head: str


def permit_of(
    request: Request, terms: Terms, partner: str, reserved_at: datetime, ledger_head: str
) -> Permit:
    """The permit for a request that was judged and reserved.

    Args:
        request: what was asked.
        terms: under which it was judged.
        partner: who permits.
        reserved_at: when its cost was reserved.
        ledger_head: digest of the ledger's last entry.
    """
    cost = cost_of(request.task, terms)
    return Permit(
        job=request.job,
        partner=partner,
        request_digest=requests.digest(request),
        terms_digest=agreed.digest(terms),
        event=cost.event,
        steps=cost.count,
        expires=permit_end(terms, reserved_at).isoformat(timespec="seconds"),
        ledger_head=ledger_head,
    )


def permit_end(terms: Terms, reserved_at: datetime) -> datetime:
    """When a permit for a job reserved at this moment ends, in UTC."""
    last = datetime.combine(terms.valid_until, time(23, 59, 59), UTC)
    return min(reserved_at.astimezone(UTC) + timedelta(days=PERMIT_DAYS), last)


def permit_to_record(permit: Permit) -> dict[str, object]:
    """The permit as JSON-able data."""
    return {**vars(permit), "event": events.to_record(permit.event)}


def permit_from_record(record: object) -> Permit:
    """The permit that :func:`permit_to_record` wrote.

    Raises:
        SettingError: a field is missing, unknown or of another type.
    """
    read = Fields(record, "permit", tuple(Permit.__dataclass_fields__))
    event = read.raw("event")
    if not isinstance(event, dict):
        raise read.error("event", "must be a table of fields")
    try:
        known = events.from_record(event)
    except PrivacyError as error:
        raise read.error("event", str(error)) from None
    return Permit(
        job=read.text("job"),
        partner=read.text("partner"),
        request_digest=read.text("request_digest"),
        terms_digest=read.text("terms_digest"),
        event=known,
        steps=read.whole("steps"),
        expires=read.text("expires"),
        ledger_head=read.text("ledger_head"),
    )
