"""A request goes to the partners; each answers with its permit, or with why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import cast

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.permit import Permit
from dovetail.agreement.signing import (
    SignedPermit,
    SignedRequest,
    request_record,
    require_permitted,
    signed_permit_from_record,
)
from dovetail.agreement.terms import Terms
from dovetail.errors import DovetailError, PolicyError, RemoteProtocolError, readable
from dovetail.flower import actions
from dovetail.flower.actions import Record
from dovetail.flower.grid import ask
from dovetail.wire.channel import Channel


def ask_permits(
    channel: Channel,
    signed: SignedRequest,
    terms: Terms,
    nodes: Mapping[int, str],
    deadline: float,
) -> Iterator[tuple[int, SignedPermit | DovetailError]]:
    """Proposes a request, and yields what each node answers as it comes.

    Args:
        channel: where the nodes are.
        signed: what is asked, and by whom.
        terms: under which terms.
        nodes: the partner behind each node to ask.
        deadline: seconds.

    Yields:
        The node, and its permit for exactly this request; or the error it answered with; or a
        ``RemoteProtocolError`` where it sent anything else; or a ``TransportError``.
    """
    record = request_record(signed)
    messages = [actions.propose_message(node, record) for node in sorted(nodes)]
    for node, reply in ask(channel, messages, deadline):
        try:
            if isinstance(reply, DovetailError):
                raise reply
            permit = signed_permit_from_record(actions.permit_of(reply))
            _check(permit, signed, terms, nodes[node])
        except DovetailError as error:
            yield node, error
        else:
            yield node, permit


def ask_previews(
    channel: Channel, signed: SignedRequest, nodes: Mapping[int, str], deadline: float
) -> dict[str, Record]:
    """What each partner would say to a request, by its name.

    Each answer holds ``refused_by``, ``text``, ``needs_approval``, and where the node could be
    asked ``epsilon``, ``charged`` and ``remaining``.
    """
    record = request_record(signed)
    messages = [actions.preview_message(node, record) for node in sorted(nodes)]
    found: dict[str, Record] = {}
    for node, reply in ask(channel, messages, deadline):
        try:
            if isinstance(reply, DovetailError):
                raise reply
            found[nodes[node]] = _preview(actions.preview_of(reply))
        except PolicyError as error:
            found[nodes[node]] = {"refused_by": error.rule, "text": _why(error)}
        except DovetailError as error:
            found[nodes[node]] = {"refused_by": "unreachable", "text": str(error)}
    return {partner: found[partner] for partner in nodes.values()}


def _why(error: PolicyError) -> str:
    return str(error).removeprefix(f"{error.rule}: ")


def _preview(record: Record) -> Record:
    """A node's preview, in the form that it should have."""
    texts = {name: readable(str(record.get(name, ""))) for name in ("refused_by", "text")}
    numbers = {name: _cost(record.get(name)) for name in ("epsilon", "charged", "remaining")}
    return {**texts, "needs_approval": record.get("needs_approval") is True, **numbers}


def _cost(value: object) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    cost = cast("float", value)
    if known and 0 <= cost <= sys.float_info.max:  # neither too large nor no number at all
        return float(cost)
    raise RemoteProtocolError("the node's preview holds no cost")


def _check(signed: SignedPermit, asked: SignedRequest, terms: Terms, partner: str) -> None:
    permit, cost = signed.permit, cost_of(asked.request.task, terms)
    require_permitted(signed, terms.partner(partner))
    expected = Permit(
        job=asked.request.job,
        partner=partner,
        request_digest=requests.digest(asked.request),
        terms_digest=agreed.digest(terms),
        event=cost.event,
        steps=cost.count,
        expires=permit.expires,
        ledger_head=permit.ledger_head,
    )
    if permit != expected:
        raise RemoteProtocolError("the permit is for something else than was asked")
