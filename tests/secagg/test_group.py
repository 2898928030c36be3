from dataclasses import replace
from typing import Any

import pytest

from dovetail.errors import SettingError
from dovetail.secagg.group import Block, Group
from tests.secagg.transcript import BLOCK, GROUP, NAMES, group_of


@pytest.mark.parametrize("n", range(2, 10))
def test_two_lists_of_survivors_never_both_find_enough_signatures(n: int) -> None:
    names = tuple(f"p{i}" for i in range(n))
    for dropouts in range(n):
        for colluders in range(n):
            if n <= 2 * dropouts + colluders:
                with pytest.raises(SettingError, match=r"must exceed 2 \* dropouts \+ colluders"):
                    group_of(names, dropouts, colluders)
                continue
            group = group_of(names, dropouts, colluders)
            honest = n - colluders
            assert 2 * (group.threshold - colluders) > honest
            assert group.threshold > colluders
            assert n - group.tolerated >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": ("a",)}, "2 to 64"),
        ({"members": [*NAMES]}, "2 to 64"),
        ({"members": tuple(f"p{i:02}" for i in range(65))}, "2 to 64"),
        ({"members": NAMES[::-1]}, "sorted"),
        ({"members": (NAMES[0], *NAMES[:-1])}, "sorted"),
        ({"members": ("", *NAMES[1:])}, "letters"),
        ({"members": (7, *NAMES[1:])}, "letters"),
        ({"keys": {}}, "one public key"),
        ({"keys": dict.fromkeys(NAMES, "AB" * 32)}, "64 hexadecimal"),
        ({"keys": dict.fromkeys(NAMES, "ab" * 32)}, "the same public key"),
        ({"dropouts": -1}, "dropouts must be a whole number"),
        ({"dropouts": True}, "dropouts must be a whole number"),
        ({"colluders": 0.5}, "colluders must be a whole number"),
    ],
)
def test_groups_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replace(GROUP, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job": "ab"}, "digest"),
        ({"job": None}, "digest"),
        ({"number": 2**53}, "number"),
        ({"first_round": -1}, "first_round"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 257}, "rounds"),
        ({"size": 0}, "size"),
        ({"size": 2**31 + 1}, "size"),
        ({"bits": 16}, "bits"),
        ({"bits": 32.0}, "bits"),
    ],
)
def test_blocks_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replace(BLOCK, **change)


@pytest.mark.parametrize("change", [{"dropouts": 0}, {"colluders": 0}])
def test_the_context_binds_the_group(change: dict[str, Any]) -> None:
    assert BLOCK.context(replace(GROUP, **change)) != BLOCK.context(GROUP)


@pytest.mark.parametrize(
    "change",
    [
        {"job": "cd" * 32},
        {"number": 4},
        {"first_round": 8},
        {"rounds": 3},
        {"size": 6},
        {"bits": 64},
    ],
)
def test_the_context_binds_the_block(change: dict[str, Any]) -> None:
    other: Block = replace(BLOCK, **change)
    assert other.context(GROUP) != BLOCK.context(GROUP)


def test_the_context_binds_the_keys() -> None:
    keys = dict(zip(NAMES, list(GROUP.keys.values())[::-1], strict=True))
    assert BLOCK.context(Group(NAMES, keys, 1, 1)) != BLOCK.context(GROUP)
