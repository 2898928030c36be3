from typing import Any

import numpy as np
import pytest

from dovetail.errors import LocalProtocolError, RemoteProtocolError, SettingError
from dovetail.secagg.client import Client
from dovetail.secagg.messages import Step
from tests.secagg.transcript import BLOCK, GROUP, NAMES, ROUND, Play, keys_of, vector_of


def test_only_a_member_takes_part() -> None:
    with pytest.raises(SettingError, match="only a member"):
        Client(GROUP, BLOCK, "nobody", keys_of(NAMES)["brand"].sign)


CALLS: dict[Step, Any] = {
    Step.ADVERTISE_KEYS: lambda p, c: c.advertise_keys(),
    Step.SHARE_KEYS: lambda p, c: c.share_keys([p.adverts[name] for name in NAMES]),
    Step.RECEIVE_SHARES: lambda p, c: c.receive_shares(p.routed["brand"]),
    Step.MASKED_INPUT: lambda p, c: c.mask(ROUND, vector_of("brand")),
    Step.CONSISTENCY_CHECK: lambda p, c: c.check_consistency(ROUND, p.survivors),
    Step.UNMASKING: lambda p, c: c.unmask(ROUND, p.signatures),
}


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("done", range(7), ids=lambda done: f"{done} steps done")
def test_a_step_out_of_order_is_refused(step: Step, done: int) -> None:
    """With the very messages that are right at another time."""
    if step == done:
        return
    told = Play().until(6)
    brand = Play().clients["brand"]
    for earlier in list(Step)[1:done]:
        CALLS[earlier](told, brand)
    if done == 0:
        brand = Client(GROUP, BLOCK, "brand", keys_of(NAMES)["brand"].sign)
    with pytest.raises(RemoteProtocolError, match=f"^{step}:"):
        CALLS[step](told, brand)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, dtype=np.uint32),
        np.zeros(5, dtype=np.uint64),
        np.zeros(5, dtype=np.int32),
        np.zeros((5, 1), dtype=np.uint32),
        np.zeros(10, dtype=np.uint32)[::2],
        np.broadcast_to(np.uint32(1), 5),
    ],
    ids=["short", "64 bits", "signed", "nested", "strided", "read-only"],
)
def test_what_cannot_be_masked_spends_no_round(vector: np.ndarray) -> None:
    brand = Play().until(2).clients["brand"]
    with pytest.raises(LocalProtocolError):
        brand.mask(ROUND, vector)
    brand.mask(ROUND, vector_of("brand"))


def test_who_dealt_shares_that_do_not_open_is_named() -> None:
    play = Play().until(1)
    told = play.server.route_shares(play.sealed)["brand"]
    with pytest.raises(RemoteProtocolError, match=r"^retailer: a sealed message does not open"):
        play.clients["brand"].receive_shares(told | {"retailer": told["shop"]})


def test_after_the_last_round_nothing_is_kept() -> None:
    play = Play().until(6)
    play.mask(ROUND + 1)
    play.add()
    play.sign(ROUND + 1)
    play.answer(ROUND + 1)
    brand = play.clients["brand"]
    assert not brand._own
    assert not brand._held
    assert not hasattr(brand, "_sealing")


def test_nothing_of_a_member_shows_its_secrets() -> None:
    brand = Play().until(3).clients["brand"]
    own = brand._own[ROUND]
    assert own.key.hex() not in repr(own)
    assert own.seed.hex() not in repr(own)
    assert repr(own.key) not in repr(own)
