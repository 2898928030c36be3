from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.coordinator.round import initial_arrays
from dovetail.errors import DataError, DovetailError, PolicyError, SchemaError, SettingError
from dovetail.flower import actions, codec
from dovetail.flower.client import answer, new_context
from dovetail.node import flower_app
from dovetail.node.settings import load_settings, start
from tests.node.homes import write_homes
from tests.samples import TASK

REQUEST = Request("job-1", TASK)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


def run_one_round(home: Path) -> None:
    settings = load_settings(home / "node.toml")
    node = start(settings)
    record = requests.to_record(REQUEST)
    node.propose(record, agreed.digest(settings.terms))
    contribution = node.train(record, 1, initial_arrays(TASK, settings.terms.schema), {})
    assert all(np.isfinite(array).all() for array in contribution.arrays.values())
    assert contribution.weight == 300


def test_a_node_starts_from_a_file_and_contributes(home: Path) -> None:
    run_one_round(home)
    for name in ("retailer.ledger", "arrays.secret", "arrays/meta.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_a_second_start_reads_the_prepared_customers(home: Path) -> None:
    start(load_settings(home / "node.toml"))
    (home / "customers.csv").unlink()
    run_one_round(home)


def test_two_starts_draw_different_noise(tmp_path: Path) -> None:
    settings = load_settings(write_homes(tmp_path) / "brand" / "node.toml")
    node = start(settings)
    arrays = initial_arrays(TASK, settings.terms.schema)
    drawn = []
    for job in ("job-1", "job-2"):
        record = requests.to_record(Request(job, TASK))
        node.propose(record, agreed.digest(settings.terms))
        drawn.append(node.train(record, 1, arrays, {}).arrays["output.weight"])
    assert not np.array_equal(drawn[0], drawn[1])


def test_sql_over_named_files(home: Path) -> None:
    text = (home / "node.toml").read_text()
    query = (
        '[source]\nquery = "SELECT * FROM rows WHERE spend > 10"\n'
        'tables = { rows = "customers.csv" }\n'
    )
    (home / "node.toml").write_text(text.partition("[source]")[0] + query)
    run_one_round(home)


def test_the_policy_of_the_file_holds(home: Path) -> None:
    with (home / "node.toml").open("a") as file:
        file.write('[policy]\nmax_epsilon_per_job = 0.1\nrefused_purposes = ["resale"]\n')
    settings = load_settings(home / "node.toml")
    assert settings.policy.refused_purposes == ("resale",)
    with pytest.raises(PolicyError, match="allows 0"):
        start(settings).propose(requests.to_record(REQUEST), agreed.digest(settings.terms))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("partner =", "partnr =", SettingError, "partner"),
        ("[source]", "[sauce]", SettingError, "source"),
        ("../terms.toml", "../trems.toml", SettingError, "trems.toml"),
        ('"retailer"', '"stranger"', DovetailError, "stranger"),
        ("customers.csv", "custmers.csv", DataError, "custmers.csv"),
        ("[source]", "[source", SettingError, "node.toml"),
        ("files =", "file =", SettingError, "source"),
    ],
)
def test_mistakes_are_named(
    home: Path, old: str, new: str, error: type[DovetailError], message: str
) -> None:
    path = home / "node.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(error, match=message):
        start(load_settings(path))


def test_a_policy_with_a_typo_is_not_ignored(home: Path) -> None:
    with (home / "node.toml").open("a") as file:
        file.write("[policy]\nmax_epsilon_per_jb = 0.1\n")
    with pytest.raises(SettingError, match="max_epsilon_per_job"):
        load_settings(home / "node.toml")


def test_a_table_that_does_not_fit_starts_nothing(home: Path) -> None:
    table = home / "customers.csv"
    table.write_text(table.read_text().replace("spend", "spent", 1))
    with pytest.raises(SchemaError, match="spend"):
        start(load_settings(home / "node.toml"))
    assert not (home / "arrays").exists()


def test_customers_prepared_under_another_schema_are_not_used(home: Path) -> None:
    settings = load_settings(home / "node.toml")
    start(settings)
    schema = replace(settings.terms.schema, max_rows_per_customer=2)
    with pytest.raises(SettingError, match="another schema"):
        start(replace(settings, terms=replace(settings.terms, schema=schema)))


def test_a_node_that_ran_before_does_not_begin_with_an_empty_ledger(home: Path) -> None:
    start(load_settings(home / "node.toml"))
    (home / "retailer.ledger").unlink()
    with pytest.raises(SettingError, match=r"retailer\.ledger: the ledger is missing"):
        start(load_settings(home / "node.toml"))


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
    monkeypatch.setenv(flower_app.VARIABLE, str(home / "node.toml"))
    context = new_context(1, {}, {})
    asked = actions.propose_message(1, requests.to_record(REQUEST), "")
    reply = codec.decode(answer(flower_app.app, lambda _: context, codec.encode(asked)))
    assert reply.error.reason == "the node cannot start; its own log says why"
    assert "bought" in caplog.text
