"""``dovetail.coordinator.flower_app:app``, a job of the coordinator under Flower's SuperLink.

The SuperLink's environment variable ``DOVETAIL_COORDINATOR`` names a coordinator's folder, with
``keys/``, ``agreement.toml`` and all signatures; Flower's run config names the ``job``, a TOML file
in that folder. Private keys that are encrypted need ``DOVETAIL_PASSPHRASE``. What is released lies
in ``releases/`` afterwards.

Nothing here is durable: a run that dies is over, and what it cost the partners stays charged.
Protection ``distributed`` is refused: a SuperNode starts a new process for each message, and a
node's keys of a shared sum are never kept outside of one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dovetail.agreement import terms as agreed
from dovetail.agreement.files import read_signed
from dovetail.agreement.job_file import JobFile, read_job
from dovetail.agreement.request import Request
from dovetail.agreement.signing import (
    SignedRequest,
    request_record,
    require_permitted,
    sign_request,
    signed_permit_from_record,
)
from dovetail.agreement.terms import Terms
from dovetail.agreement.trusted import TrustedTerms
from dovetail.coordinator.progress import JobEvent
from dovetail.coordinator.run import Run
from dovetail.coordinator.settling import settle
from dovetail.crypto.keyring import Keyring, load_keyring
from dovetail.errors import DovetailError, RemoteProtocolError, SettingError, TransportError
from dovetail.flower import actions
from dovetail.flower.engine import server_app
from dovetail.flower.grid import ask
from dovetail.privacy.release import Release
from dovetail.store.card import ModelCard
from dovetail.store.model import card_for, save_model
from dovetail.wire.channel import Channel

VARIABLE = "DOVETAIL_COORDINATOR"
PASSPHRASE = "DOVETAIL_PASSPHRASE"  # noqa: S105 - the name of a variable
_SECONDS_TO_CONNECT = 120.0
_logger = logging.getLogger(__name__)


def run_job(channel: Channel, folder: Path, job_under: Callable[[Terms], JobFile]) -> Release:
    """Runs a job over nodes that have yet to show whose they are; keeps and returns its release.

    Args:
        channel: where the nodes are.
        folder: the coordinator's.
        job_under: what is asked, under the terms in force.

    Raises:
        SettingError: the job's noise is shared; nobody was asked.
        DovetailError: the job did not begin, or failed; says why.
    """
    keyring = load_keyring(folder / "keys", os.environ.get(PASSPHRASE, "").encode() or None)
    terms = _in_force(folder, keyring)
    job = job_under(terms)
    _require_own_sums(job.request)
    signed = sign_request(job.request, agreed.digest(terms), keyring.name, keyring.signing)
    run = Run(
        signed,
        terms,
        channel,
        _partners(channel, signed, terms, job.deadline),
        quorum=job.quorum,
        deadline=job.deadline,
        on_event=_note,
        card_of=lambda released: card_for(released, _card(signed, terms, released)),
    )
    released = run.run()
    place = folder / "releases" / job.request.job
    save_model(place, released, _card(signed, terms, released))
    return released


def _require_own_sums(request: Request) -> None:
    if request.task.protection == "distributed":
        raise SettingError(
            "protection 'distributed' does not work on Flower's engines, whose processes forget "
            "a node's keys between messages; use 'local', or Dovetail's own coordinator"
        )


def _in_force(folder: Path, keyring: Keyring) -> Terms:
    trusted = TrustedTerms(keyring.name, keyring.signing.public)
    trusted.update(read_signed(folder / "agreement.toml"))
    return trusted.in_force(datetime.now(UTC).date())


def _partners(
    channel: Channel, signed: SignedRequest, terms: Terms, deadline: float
) -> dict[int, str]:
    """The partner behind each node: a stock grid does not know, so each shows it by its permit.

    Asked again by the job itself, a node answers with the permit that it gave already.
    """
    _await_nodes(channel, len(terms.partners))
    nodes = list(channel.nodes())
    try:
        found = _shown_by_permits(channel, nodes, signed, terms, deadline)
    except DovetailError:
        list(settle(channel, signed.request.job, nodes, deadline, None))
        raise
    return found


def _shown_by_permits(
    channel: Channel, nodes: list[int], signed: SignedRequest, terms: Terms, deadline: float
) -> dict[int, str]:
    record = request_record(signed)
    found: dict[int, str] = {}
    messages = [actions.propose_message(node, record) for node in nodes]
    for node, reply in ask(channel, messages, deadline):
        if isinstance(reply, DovetailError):
            raise reply
        permit = signed_permit_from_record(actions.permit_of(reply))
        require_permitted(permit, terms.partner(permit.permit.partner))
        found[node] = permit.permit.partner
    if sorted(found.values()) != sorted(partner.name for partner in terms.partners):
        raise RemoteProtocolError("the connected nodes are not one for each partner")
    return found


def _await_nodes(channel: Channel, count: int) -> None:
    end = time.monotonic() + _SECONDS_TO_CONNECT
    while len(channel.nodes()) < count:
        if time.monotonic() > end:
            raise TransportError("not every partner's node is connected")
        time.sleep(0.5)


def _card(signed: SignedRequest, terms: Terms, released: Release) -> ModelCard:
    charged = {partner: sum(spent.values()) for partner, spent in released.spending.items()}
    return ModelCard(signed.request, terms, charged, datetime.now(UTC).date())


def _note(event: JobEvent) -> None:
    words = (event.kind, event.partner, f"{event.round} of {event.rounds} rounds", event.text)
    _logger.info("%s", ", ".join(word for word in words if word))


def _main(channel: Channel, context: Any) -> None:
    place = os.environ.get(VARIABLE)
    if not place:
        raise SettingError(f"set {VARIABLE} to the coordinator's folder")
    log = logging.getLogger("dovetail")  # the root's would show each request that shows the log
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    try:
        run_job(
            channel, Path(place), partial(read_job, Path(place, str(context.run_config["job"])))
        )
    except Exception:
        _logger.exception("the job failed")  # Flower's own log is silent here
        raise


app = server_app(_main)
