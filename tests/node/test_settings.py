"""What a node.toml may say, and what it may not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dovetail.agreement.policy import NOTHING_MORE, NodePolicy
from dovetail.data.source import Source
from dovetail.errors import SettingError
from dovetail.node.settings import load_settings
from dovetail.node.worker import WorkerLimits

SMALL = 'name = "retailer"\n[source]\nfiles = "customers.csv"\n'
WHOLE = """
name = "retailer"
[source]
query = "SELECT * FROM visits"
tables = { visits = "visits.csv", shops = "../shops.parquet" }
[columns]
id = "hh_key"
[policy]
max_epsilon_per_job = 2.0
max_concurrent_jobs = 1
refused_purposes = ["resale"]
refused_columns = ["income"]
approval = "manual"
[limits]
seconds = 60
memory_mb = 500
threads = 2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_little_must_be_said(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL))
    assert settings.name == "retailer"
    assert settings.source == Source.files(tmp_path / "customers.csv")
    assert settings.policy == NOTHING_MORE
    assert settings.limits == WorkerLimits()
    assert math.isinf(settings.policy.max_epsilon_per_job)


def test_everything_can_be_said(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, WHOLE))
    tables = {"visits": tmp_path / "visits.csv", "shops": tmp_path / "../shops.parquet"}
    assert settings.source == Source.sql("SELECT * FROM visits", tables).renamed({"id": "hh_key"})
    assert settings.policy == NodePolicy(2.0, 1, ("resale",), ("income",), "manual")
    assert settings.limits == WorkerLimits(60, 500, 2)


def test_a_table_may_lie_in_postgresql(tmp_path: Path) -> None:
    source = 'database = "postgresql://reader@db.example/shop"\nquery = "SELECT 1"\n'
    settings = load_settings(written(tmp_path, f'name = "retailer"\n[source]\n{source}'))
    assert settings.source == Source.database("postgresql://reader@db.example/shop", "SELECT 1")


def test_everything_else_lies_beside_the_file(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL))
    places = {
        settings.keys: "keys",
        settings.agreement: "agreement.json",
        settings.ledger: "retailer.ledger",
        settings.arrays: "arrays",
        settings.secret: "arrays.secret",
        settings.desk: "desk",
        settings.models: "models",
    }
    assert all(place == tmp_path / name for place, name in places.items())


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name =", "nmae =", "unknown field 'nmae'; did you mean 'name'"),
        ('name = "retailer"\n', "", "'name' is missing"),
        ('"retailer"', '"re tailer"', "a party's name"),
        ('"retailer"', '"../retailer"', "a party's name"),
        ('"retailer"', "7", "name must be text"),
        ("[source]", "[sauce]", "unknown field 'sauce'; did you mean 'source'"),
        ("[source]", "[source", "is not TOML"),
        ("files =", "file =", "unknown field 'file'"),
        ("files =", "query = 'SELECT 1'\nfiles =", "unknown field 'query'"),
        ('"customers.csv"', '["customers.csv"]', "files must be text"),
        ('files = "customers.csv"', 'query = "SELECT 1"', "'tables' is missing"),
        (
            'files = "customers.csv"',
            'query = "SELECT 1"\ntables = ["a.csv"]',
            "tables must be a table of texts",
        ),
        ('files = "customers.csv"', 'database = "postgresql://x/y"', "'query' is missing"),
        ("[source]", "[columns]\nid = 7\n[source]", "columns.* must be a table of texts"),
        ("[source]", "[policy]\nmax_epsilon_per_jb = 1\n[source]", "max_epsilon_per_job"),
        ("[source]", "[policy]\nmax_epsilon_per_job = 0\n[source]", "max_epsilon_per_job"),
        ("[source]", "[policy]\nmax_concurrent_jobs = 0\n[source]", "max_concurrent_jobs"),
        ("[source]", "[policy]\napproval = 'never'\n[source]", "approval must be one of"),
        ("[source]", "[policy]\nrefused_columns = 'age'\n[source]", "refused_columns"),
        ("[source]", "[limits]\nseconds = 0\n[source]", "must be above 0"),
        ("[source]", "[limits]\nmemory_mb = 0.5\n[source]", "memory_mb must be a whole number"),
        ("[source]", "[limits]\nminutes = 5\n[source]", "unknown field 'minutes'"),
        ("name =", "limits = 7\nname =", "limits.*expected a table"),
        ("name =", "policy = 7\nname =", "policy.*expected a table"),
        ("[source]", "[coordinator]\naddress = 'x:1'\n[source]", "unknown field 'coordinator'"),
    ],
)
def test_mistakes_are_named(old: str, new: str, named: str, tmp_path: Path) -> None:
    path = written(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(SettingError, match=named):
        load_settings(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"node\.toml: cannot be read"):
        load_settings(tmp_path / "node.toml")
    (tmp_path / "node.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(SettingError, match=r"node\.toml: is not TOML"):
        load_settings(tmp_path / "node.toml")
