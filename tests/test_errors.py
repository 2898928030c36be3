"""Errors on their way between companies."""

from __future__ import annotations

import pytest

from dovetail import errors
from dovetail.errors import (
    INTERNAL_ERROR,
    DovetailError,
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
    error_code,
    error_from,
    error_text,
    readable,
)

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DovetailError)
]
OTHER_SIDE: dict[type[DovetailError], type[DovetailError]] = {
    LocalProtocolError: RemoteProtocolError,
    RemoteProtocolError: LocalProtocolError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_arrives_as_what_it_is_from_there(kind: type[DovetailError]) -> None:
    error = PolicyError("purpose", "not agreed") if kind is PolicyError else kind("not agreed")
    arrived = error_from(error_code(error), error_text(error))
    assert type(arrived) is OTHER_SIDE.get(kind, kind)
    assert str(arrived) == str(error)
    if isinstance(arrived, PolicyError):
        assert arrived.rule == "purpose"


def test_codes_are_all_different() -> None:
    codes = {error_code(kind("rule", "x") if kind is PolicyError else kind("x")) for kind in KINDS}
    assert len(codes) == len(KINDS)


def test_what_was_not_foreseen_tells_nothing() -> None:
    error = ValueError("salary 1234")
    assert (error_code(error), error_text(error)) == (INTERNAL_ERROR, "internal error")
    assert error_from(INTERNAL_ERROR, "internal error") is None


@pytest.mark.parametrize("code", [0, -1, 999, 2000, 2**62])
def test_an_unknown_code_is_no_error_of_ours(code: int) -> None:
    assert error_from(code, "x") is None


def test_what_others_wrote_is_made_readable() -> None:
    assert readable("a\x1b[31m\nb\u202ec") == "a [31m b c"
    assert len(readable("x" * 10_000)) == 500
