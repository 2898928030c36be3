"""One block of four partners, played with dice that repeat themselves; ``vectors/good.json``.

``python -m tests.secagg.transcript`` writes the file anew, after a change of the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.crypto.keys import SigningKey, signing_key_of
from dovetail.crypto.prg import Prg, derive_key
from dovetail.secagg.client import Client
from dovetail.secagg.group import Block, Group
from dovetail.secagg.server import RoundSum, Server

VECTORS = Path(__file__).parent / "vectors"
NAMES = ("brand", "platform", "retailer", "shop")
LEFT = ("brand", "platform", "retailer")
"""All but ``shop``, which shares its keys and sends no vector."""
ROUND = 7


def keys_of(names: tuple[str, ...]) -> dict[str, SigningKey]:
    return {name: signing_key_of(name.encode().ljust(32, b".")) for name in names}


def group_of(names: tuple[str, ...], dropouts: int, colluders: int) -> Group:
    keys = {name: key.public for name, key in keys_of(names).items()}
    return Group(names, keys, dropouts, colluders)


GROUP = group_of(NAMES, 1, 1)
BLOCK = Block("ab" * 32, 3, ROUND, 2, 5, 32)


def dice(*context: str | int) -> Callable[[int], bytes]:
    """Random bytes that are the same each time."""
    prg = Prg(derive_key(bytes(16), "dice", *context))

    def random(count: int) -> bytes:
        drawn = np.empty(count, dtype=np.uint8)
        prg.fill(drawn)
        return drawn.tobytes()

    return random


def vector_of(name: str) -> np.ndarray:
    """A vector with negative numbers, wrapped."""
    return (np.arange(5, dtype=np.int64) * 1000 - NAMES.index(name) * 1500).astype(np.uint32)


def client_of(name: str, block: Block = BLOCK, group: Group = GROUP) -> Client:
    return Client(group, block, name, keys_of(NAMES)[name].sign, dice(name, block.number))


class Play:
    """The block above, played up to (and not including) a step of one round."""

    def __init__(self, block: Block = BLOCK) -> None:
        self.block = block
        self.server = Server(GROUP, block)
        self.clients = {name: client_of(name, block) for name in NAMES}
        self.adverts = {name: c.advertise_keys() for name, c in self.clients.items()}

    def share_keys(self) -> None:
        listed = self.server.adverts(self.adverts)
        self.sealed = {name: c.share_keys(listed) for name, c in self.clients.items()}

    def receive_shares(self) -> None:
        self.routed = self.server.route_shares(self.sealed)
        for name, client in self.clients.items():
            client.receive_shares(self.routed[name])

    def mask(self, number: int = ROUND) -> None:
        self.masked = {name: vector_of(name) for name in LEFT}
        for name, vector in self.masked.items():
            self.clients[name].mask(number, vector)
        self.sum: RoundSum = self.server.round(number)

    def add(self) -> None:
        for name, vector in self.masked.items():
            self.sum.add(name, vector)
        self.survivors = list(self.sum.survivors())

    def sign(self, number: int = ROUND) -> None:
        self.signatures = {
            name: self.clients[name].check_consistency(number, self.survivors) for name in LEFT
        }

    def answer(self, number: int = ROUND) -> None:
        signed = self.sum.signed(self.signatures)
        self.answers = {name: self.clients[name].unmask(number, signed) for name in LEFT}

    STEPS = (share_keys, receive_shares, mask, add, sign, answer)

    def until(self, steps: int) -> Play:
        for step in self.STEPS[:steps]:
            step(self)
        return self


def transcript() -> dict[str, Any]:
    """Everything that was said, as JSON has it."""
    play, other = Play().until(6), Play(Block("ab" * 32, 4, 9, 2, 5, 32)).until(1)
    later = Play().until(2)
    for step in (later.mask, later.sign, later.answer):
        if step == later.sign:
            later.add()
        step(ROUND + 1)
    return {
        "adverts": play.adverts,
        "sealed": _hex(play.sealed),
        "routed": _hex(play.routed),
        "masked": {name: vector.tolist() for name, vector in play.masked.items()},
        "survivors": play.survivors,
        "signatures": play.signatures,
        "answers": play.answers,
        "sum": play.sum.unmask(play.answers).tolist(),
        "other block": {"adverts": other.adverts, "sealed": _hex(other.sealed)},
        "next round": {"signatures": later.signatures, "answers": later.answers},
    }


def _hex(sealed: dict[str, dict[str, bytes]]) -> dict[str, dict[str, str]]:
    return {one: {two: data.hex() for two, data in of.items()} for one, of in sealed.items()}


if __name__ == "__main__":
    (VECTORS / "good.json").write_text(json.dumps(transcript(), indent=1) + "\n")
