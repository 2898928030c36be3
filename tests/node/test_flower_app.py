"""The node as Flower's own engines import it: which one it is comes from its own machine."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from dovetail.agreement.signing import request_record
from dovetail.errors import SettingError
from dovetail.flower import actions, codec
from dovetail.flower.client import answer, new_context
from dovetail.node import flower_app
from tests.node.homes import agree, asked, pinned, write_homes
from tests.samples import terms


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


def refusal(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a coordinator is told that asks for a permit."""
    monkeypatch.setenv(flower_app.VARIABLE, str(home / "node.toml"))
    context = new_context(1, {}, {})
    message = actions.propose_message(1, request_record(asked(terms())))
    reply = codec.decode(answer(flower_app.app, lambda _: context, codec.encode(message)))
    return str(reply.error.reason)


def test_the_flower_app_asks_the_partners_own_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = new_context(1, {"partition-id": 2}, {})
    monkeypatch.delenv(flower_app.VARIABLE, raising=False)
    with pytest.raises(SettingError, match="DOVETAIL_NODE"):
        flower_app._node_of(context)
    monkeypatch.setenv(flower_app.VARIABLE, str(home / "node.toml"))
    alone = flower_app._node_of(context)
    monkeypatch.setenv(flower_app.VARIABLE, str(home.parent))
    assert flower_app._node_of(context) is alone
    assert (home / "arrays").exists()


def test_canary_what_is_wrong_with_a_table_is_not_told_to_a_coordinator(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (home / "customers.csv").open("a") as table:
        table.write("4711,30,5,north,9\n")
    assert refusal(home, monkeypatch) == "the node cannot start; its own log says why"
    assert "bought" in caplog.text


@pytest.mark.parametrize("missing", ["keys", "agreement.json"])
def test_without_keys_or_terms_it_does_not_start(
    missing: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / missing).rename(home / "elsewhere")
    assert refusal(home, monkeypatch) == "the node cannot start; its own log says why"


def test_under_terms_that_are_over_it_does_not_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(home.parent, pinned(home.parent, terms(valid_until=date(2024, 12, 31))))
    assert refusal(home, monkeypatch) == "the node cannot start; its own log says why"
