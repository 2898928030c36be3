"""A job that waits for its nodes misses nothing that happened while it did something else."""

from __future__ import annotations

from dovetail.coordinator.app import _since_last_look
from dovetail.wire.asking import Asking
from dovetail.wire.budget import Budget
from dovetail.wire.peers import Peer
from dovetail.wire.presence import Presence, Seat

TOO_LONG = 60.0


def test_a_change_before_one_waits_is_noticed_at_once() -> None:
    presence, seen = Presence(lambda: 0.0), []

    def wait(timeout: float, since: int) -> int:
        seen.append(since)
        return presence.wait_for_change(timeout, since)

    look = _since_last_look(wait)
    seat = Seat(Peer("brand", "node", 1), Asking(Budget(0), 0))
    presence.came(seat)
    look(TOO_LONG)
    presence.went(seat)
    look(TOO_LONG)
    look(0.0)
    assert seen == [0, 1, 2]
