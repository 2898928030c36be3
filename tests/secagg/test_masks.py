import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.crypto.prg import Prg
from dovetail.secagg import masks
from dovetail.secagg.masks import apply, commitment, pairwise_mask, self_mask
from tests.secagg import transcript
from tests.secagg.transcript import BLOCK, GROUP, Play

KEY = bytes(range(32))


@pytest.mark.parametrize("bits", [32, 64])
@given(size=st.integers(1, 200_000))
def test_masks_are_the_keystream_and_cancel(bits: int, size: int) -> None:
    vector = np.arange(size, dtype=f"u{bits // 8}")
    masked = vector.copy()
    apply(masked, [Prg(KEY[:16])], [Prg(KEY[16:])])
    streams = [getattr(Prg(key), f"words{bits}")(size) for key in (KEY[:16], KEY[16:])]
    assert (masked == vector + streams[0] - streams[1]).all()
    apply(masked, [Prg(KEY[16:])], [Prg(KEY[:16])])
    assert (masked == vector).all()


def test_both_partners_derive_one_stream() -> None:
    one = pairwise_mask(KEY, "view", 1, "brand", "shop").words32(8)
    assert (one == pairwise_mask(KEY, "view", 1, "shop", "brand").words32(8)).all()


def first_words(prg: Prg) -> bytes:
    return prg.words32(8).tobytes()


def test_streams_differ_in_every_part_of_their_context() -> None:
    """One secret throughout: even then no two masks are the same."""
    streams = [
        first_words(pairwise_mask(KEY, view, number, "brand", other))
        for view in ("view", "another")
        for number in (1, 2)
        for other in ("shop", "platform")
    ] + [
        first_words(self_mask(KEY, context, number, member))
        for context in ("view", "another")
        for number in (1, 2)
        for member in ("brand", "shop")
    ]
    assert len(set(streams)) == len(streams)
    assert commitment(KEY, "view", 1, "brand") not in {stream[:16] for stream in streams}


def masks_of(play: Play, number: int, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The start of every stream that a play's members use in one round."""
    seen: list[bytes] = []

    def note(vector, plus, minus):
        seen.extend(first_words(prg) for prg in [*plus, *minus])

    monkeypatch.setattr(masks, "apply", note)
    for client in play.clients.values():
        client.mask(number, np.zeros(BLOCK.size, dtype=np.uint32))
    return seen


def test_no_mask_comes_twice_across_rounds_blocks_jobs_and_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four self masks and six pairs, which both partners derive, per round."""
    blocks = [
        BLOCK,
        BLOCK,  # as a node would meet it that restarted: the same numbers again
        replace(BLOCK, number=4),
        replace(BLOCK, number=4, first_round=9),
        replace(BLOCK, job="cd" * 32),
    ]
    seen: list[bytes] = []
    monkeypatch.setattr(transcript, "dice", lambda *context: os.urandom)
    for block in blocks:
        play = Play(block).until(2)
        for number in block.numbers:
            of_round = set(masks_of(play, number, monkeypatch))
            assert len(of_round) == len(GROUP.members) + 6
            seen.extend(of_round)
    assert len(set(seen)) == len(seen)


def test_even_with_dice_that_repeat_themselves_blocks_share_no_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine copied with its generator: what keys are bound to still keeps blocks apart."""
    dice = transcript.dice
    monkeypatch.setattr(transcript, "dice", lambda name, number: dice(name))
    seen: list[bytes] = []
    for block in (BLOCK, replace(BLOCK, number=4), replace(BLOCK, job="cd" * 32)):
        play = Play(block).until(2)
        for number in block.numbers:
            seen.extend(set(masks_of(play, number, monkeypatch)))
    assert len(set(seen)) == len(seen) == 3 * 2 * 10
