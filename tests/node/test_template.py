from __future__ import annotations

import re
from pathlib import Path

import pytest

from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.data.source import Source
from dovetail.errors import SettingError
from dovetail.node.settings import load_settings
from dovetail.node.template import write_settings, write_template
from dovetail.node.worker import WorkerLimits


def test_the_template_can_be_read_as_it_is(tmp_path: Path) -> None:
    write_template(tmp_path / "node.toml", "retailer")
    settings = load_settings(tmp_path / "node.toml")
    assert settings.name == "retailer"
    assert settings.source == Source.files(tmp_path / "customers.csv")
    assert settings.policy == NOTHING_MORE


def test_every_key_of_the_template_can_be_uncommented(tmp_path: Path) -> None:
    write_template(tmp_path / "template.toml", "retailer")
    text = (tmp_path / "template.toml").read_text()
    head, rest = text[: text.index("[source]")], text[text.index("# [columns]") :]
    sources = re.findall(r"^# (\w+ = .*)$", text[text.index("[source]") : -len(rest)], re.M)
    whole = re.sub(r"^# ", "", rest, flags=re.MULTILINE)
    for chosen in (sources[:2], sources[2:]):
        path = tmp_path / "node.toml"
        path.write_text("\n".join([f"{head}[source]", *chosen, whole]))
        settings = load_settings(path)
        assert settings.policy == NodePolicy(2.0, 1, (), (), "manual")
        assert settings.limits == WorkerLimits(600, 4000, 1)
    assert set(NodePolicy.__dataclass_fields__) <= set(re.findall(r"\w+", whole))
    assert set(WorkerLimits.__dataclass_fields__) <= set(re.findall(r"\w+", whole))


def test_settings_for_a_known_table(tmp_path: Path) -> None:
    table = tmp_path / "a table's.csv"
    write_settings(tmp_path / "node.toml", "retailer", table, "[limits]\nseconds = 5\n")
    settings = load_settings(tmp_path / "node.toml")
    assert settings.source == Source.files(table)
    assert settings.limits.seconds == 5


def test_a_node_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    write_template(path, "retailer")
    for again in (
        lambda: write_template(path, "brand"),
        lambda: write_settings(path, "brand", tmp_path / "table.csv"),
    ):
        with pytest.raises(SettingError, match="there is a node already"):
            again()
    assert load_settings(path).name == "retailer"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be written"):
        write_template(tmp_path / "none" / "node.toml", "retailer")
