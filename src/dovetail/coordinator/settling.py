"""The end of a job at its partners: they get the model, and free what was never begun."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dovetail.coordinator.round import Arrays
from dovetail.errors import DovetailError, LedgerError
from dovetail.flower import actions
from dovetail.flower.actions import Record
from dovetail.flower.grid import ask
from dovetail.wire.channel import Channel


def settle(
    channel: Channel,
    job: str,
    nodes: Iterable[int],
    deadline: float,
    model: tuple[Record, Arrays] | None,
) -> Iterator[int]:
    """Tells nodes that a job is over; may be repeated for those that did not hear it.

    Args:
        channel: where the nodes are.
        job: its name.
        nodes: whom to tell.
        deadline: seconds for each of the two messages.
        model: what was released, with its card; ``None`` where nothing was.

    Yields:
        Each node that knows it now.
    """
    reached = list(nodes)
    if model is not None:
        kept = ask(channel, actions.keep_messages(reached, *model), deadline)
        reached = [node for node, reply in kept if not isinstance(reply, DovetailError)]
    messages = [actions.close_message(node, job) for node in reached]
    for node, reply in ask(channel, messages, deadline):
        if not isinstance(reply, DovetailError) or isinstance(reply, LedgerError):
            yield node  # a ledger that refuses has closed the job before, or never knew it
