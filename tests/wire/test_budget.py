from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dovetail.wire.budget import Budget, Share

LIMIT = 100


class Room(RuleBasedStateMachine):
    """Shares are granted in the order in which they were asked for, and never too many."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(LIMIT)
        self.granted: list[int] = []
        self.shares: dict[int, Share] = {}
        self.asked = 0

    @rule(size=st.integers(0, 150))
    def ask(self, size: int) -> None:
        number = self.asked
        self.asked += 1
        self.shares[number] = self.budget.ask(size, lambda: self.granted.append(number))

    @precondition(lambda self: self.shares)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.shares)))
        share = self.shares.pop(number)
        self.budget.release(share)
        self.budget.release(share)

    @invariant()
    def never_too_much(self) -> None:
        held = [share.size for share in self.shares.values() if share.granted and share.size]
        assert self.budget.used == sum(held)
        assert sum(held) <= LIMIT or len(held) == 1

    @invariant()
    def nobody_overtakes(self) -> None:
        assert self.granted == sorted(set(self.granted))
        waiting = [n for n, share in sorted(self.shares.items()) if not share.granted]
        assert not waiting or not self.granted or max(self.granted) < waiting[0]

    @invariant()
    def nobody_waits_without_need(self) -> None:
        waiting = [share for _, share in sorted(self.shares.items()) if not share.granted]
        if waiting:
            assert self.budget.used
            assert self.budget.used + waiting[0].size > LIMIT


TestRoom = Room.TestCase
TestRoom.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
