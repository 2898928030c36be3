"""Both halves together: whatever breaks, every exchange ends once, and rightly."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dovetail.errors import TransportError
from dovetail.wire.channel import Received
from dovetail.wire.generated import federation_pb2 as pb
from dovetail.wire.transfer import CHUNK, GRAIN
from tests.wire.halves import LIMIT, LONGEST, Answerer, Asker

SIZES = st.sampled_from([0, 1, GRAIN, GRAIN + 1, 3 * GRAIN, 8 * GRAIN, LONGEST, LONGEST + 1])


def request_for(number: int, asked: int, answered: int) -> bytes:
    """A request that says how long its answer is to be."""
    head = b"".join(value.to_bytes(8, "big") for value in (number, answered))
    return head + bytes(asked)


def answer_to(request: Received) -> bytes:
    number, size = (int.from_bytes(request[i : i + 8], "big") for i in (0, 8))
    return bytes([number % 251]) * size


class Conversation(RuleBasedStateMachine):
    """A coordinator and a node over connections that break, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.asker = Asker()
        self.incarnation = 1
        self.answerer = Answerer(self.incarnation)
        self.to_node: deque[tuple[pb.ToNode, bytes]] = deque()
        self.from_node: deque[tuple[pb.FromNode, bytes]] = deque()
        self.connected = False
        self.asked: dict[int, bytes] = {}
        self.abandoned: set[int] = set()
        self.worked: list[int] = []

    @rule(asked=SIZES, answered=SIZES)
    def ask(self, asked: int, answered: int) -> None:
        number = len(self.asked)
        self.asked[number] = request_for(number, asked, answered)
        self.asker.begin(number, self.asked[number])

    @rule()
    def connect(self) -> None:
        """Anew, perhaps before the coordinator knows that the last connection is lost."""
        self.to_node.clear()
        self.from_node.clear()
        self.asker.hello(self.answerer.hello())
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.asker.asking.suspend()
        self.connected = False

    @rule()
    def restart_the_node(self) -> None:
        if self.connected:
            self.cut()
        self.incarnation += 1
        self.answerer = Answerer(self.incarnation)

    @precondition(lambda self: self.connected)
    @rule(size=st.sampled_from([GRAIN, CHUNK]), frames=st.integers(1, 6))
    def coordinator_sends(self, size: int, frames: int) -> None:
        for _ in range(frames):
            if sent := self.asker.send(size):
                self.to_node.append(sent)

    @precondition(lambda self: self.connected)
    @rule(size=st.sampled_from([GRAIN, CHUNK]), frames=st.integers(1, 6))
    def node_sends(self, size: int, frames: int) -> None:
        for _ in range(frames):
            if sent := self.answerer.send(size):
                self.from_node.append(sent)

    @precondition(lambda self: self.connected and self.to_node)
    @rule(frames=st.integers(1, 6))
    def node_hears(self, frames: int) -> None:
        for _ in range(min(frames, len(self.to_node))):
            frame, data = self.to_node.popleft()
            if frame.WhichOneof("frame") != "welcome":
                self.answerer.hear(frame, data)

    @precondition(lambda self: self.connected and self.from_node)
    @rule(frames=st.integers(1, 6))
    def coordinator_hears(self, frames: int) -> None:
        for _ in range(min(frames, len(self.from_node))):
            self.asker.hear(*self.from_node.popleft())

    @precondition(lambda self: self.answerer.to_do)
    @rule()
    def node_works(self) -> None:
        _, request = self.answerer.to_do[0]
        number = int.from_bytes(request[:8], "big")
        assert request == self.asked[number]
        assert number not in self.worked, "no request is worked on twice"
        self.worked.append(number)
        self.answerer.work(answer_to)

    @precondition(lambda self: self.asker.asking.outstanding)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        open_ones = self.asked.keys() - self.asker.outcomes.keys() - self.abandoned
        number = data.draw(st.sampled_from(sorted(open_ones)))
        self.asker.asking.abandon(number.to_bytes(16, "big"))
        self.abandoned.add(number)

    @precondition(lambda self: self.asker.shares)
    @rule()
    def let_go_of_an_answer(self) -> None:
        _, share = self.asker.shares.popitem()
        self.asker.budget.release(share)

    @invariant()
    def no_answer_is_wrong(self) -> None:
        for number, answer in self.asker.outcomes.items():
            if isinstance(answer, TransportError):
                assert "protocol" not in str(answer)
            else:
                assert answer == answer_to(self.asked[number])

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.asker.budget.used <= max(LIMIT, LONGEST)

    def teardown(self) -> None:
        """Once nothing breaks any more, everything ends, and nothing is left behind."""
        if not self.connected:
            self.connect()
        while self._something_happens():
            pass
        assert self.asker.asking.outstanding == 0
        assert self.asker.outcomes.keys() == self.asked.keys() - self.abandoned
        assert self.asker.budget.used == 0
        assert list(self.answerer.hello().holdings) == []
        self.no_answer_is_wrong()

    def _something_happens(self) -> bool:
        self.coordinator_sends(CHUNK, 1)
        self.node_sends(CHUNK, 1)
        happened = bool(self.to_node or self.from_node or self.answerer.to_do or self.asker.shares)
        self.node_hears(len(self.to_node))
        self.coordinator_hears(len(self.from_node))
        while self.answerer.to_do:
            self.node_works()
        while self.asker.shares:
            self.let_go_of_an_answer()
        return happened


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
