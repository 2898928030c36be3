from __future__ import annotations

import json
import math
import resource
import stat
import traceback
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import ModelSpec, Request
from dovetail.data.customers import prepare
from dovetail.data.engine import BATCH_ROWS, Limits
from dovetail.data.source import Source
from dovetail.errors import DataError, SchemaError, SettingError
from dovetail.node.score import score
from dovetail.privacy.release import Provenance, release
from dovetail.store.card import ModelCard
from dovetail.store.model import load_model, save_model
from dovetail.training.evaluate import scores
from tests.samples import SCHEMA, TASK, terms

Table = dict[str, Any]
MANY_ROWS = replace(SCHEMA, max_rows_per_customer=50)
CANARY = "31415926"


def saved_model(folder: Path, scale: float = 1.0, **task: Any) -> Path:
    """A released model with random weights."""
    request = Request("job-1", replace(TASK, **task))
    under = terms(schema=MANY_ROWS)
    card = ModelCard(request, under, {"retailer": request.task.steps}, date(2024, 5, 31))
    dice = np.random.default_rng(3)
    schema = under.schema.select(request.task.features)
    arrays = {
        parameter.name: (scale * dice.normal(size=parameter.shape)).astype(np.float32)
        for parameter in request.task.model.parameters(schema)
    }
    made = release(
        arrays,
        {name: {request.task.event: count} for name, count in card.charged.items()},
        under.budget.delta,
        Provenance(request.job, requests.digest(request), agreed.digest(under), rounds=3),
        customers_overlap=under.customers_overlap,
    )
    save_model(folder, made, card)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def table_of(customers: int, seed: int = 0) -> Table:
    """Some rows of so many customers, in no order."""
    dice = np.random.default_rng(seed)
    keys = np.repeat(np.arange(customers), dice.integers(1, 4, customers))
    dice.shuffle(keys)
    rows = len(keys)
    return {
        "id": [f"c{key:05}" for key in keys],
        "age": [None if dice.random() < 0.1 else dice.uniform(0, 100) for _ in range(rows)],
        "spend": dice.uniform(0, 1000, rows).tolist(),
        "region": dice.choice(["north", "south"], rows).tolist(),
        "bought": dice.integers(0, 2, rows).tolist(),
    }


def written(path: Path, table: Table) -> Source:
    arrow = pa.table({name: pa.array(values) for name, values in table.items()})
    if path.suffix == ".csv":
        pa.csv.write_csv(arrow, path)
    else:
        pa.parquet.write_table(arrow, path)
    return Source.files(path)


def lines_of(path: Path) -> list[tuple[Any, ...]]:
    if path.suffix == ".csv":
        as_text = pa.csv.ConvertOptions(column_types={"id": pa.string()})
        found = pa.csv.read_csv(path, convert_options=as_text)
    else:
        found = pa.parquet.read_table(path)
    assert found.column_names == ["id", "score", "decile"]
    return list(zip(*found.to_pydict().values(), strict=True))


def expected(model: Path, source: Source, folder: Path) -> dict[str, float]:
    """The mean of each customer's scores, as training sees its rows."""
    arrays, card = load_model(model)
    task = card.request.task
    schema = card.terms.schema.select(task.features)
    customers = prepare(source, schema, folder, bytes(16))
    found, _, owners = scores(arrays, task.model, schema, customers)
    customers.delete()
    with source.open(Limits()) as opened:
        keys = opened.rows('SELECT DISTINCT CAST(id AS VARCHAR) FROM "dovetail rows" ORDER BY 1')
    sums = np.bincount(owners, found.astype(np.float64)) / np.bincount(owners)
    return {key: mean for (key,), mean in zip(keys, sums, strict=True)}


cells = st.fixed_dictionaries(
    {
        "id": st.sampled_from(
            ["10", "9", "ä", "Z", "a", "b b", "c,c", 'd"d', "e", "f", "g", "007"]
        ),
        "age": st.none() | st.floats(-10, 200),
        "spend": st.floats(-10, 2000),
        "region": st.sampled_from(["north", "south", "abroad", None]),
        "bought": st.integers(0, 1),
    }
)
tables = st.lists(cells, min_size=2, max_size=40).filter(
    lambda rows: len({row["bought"] for row in rows}) == 2
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tables, st.sampled_from(["parquet", "csv"]))
def test_scores_are_those_of_training_ranked_by_customer(
    model: Path, home: Path, rows: list[Table], ending: str
) -> None:
    table = {name: [row[name] for row in rows] for name in rows[0]}
    table["age"] = pa.array(table["age"], pa.float64())
    table["region"] = pa.array(table["region"], pa.string())
    source, output = written(home / "t.parquet", table), home / f"scores.{ending}"
    summary = score(model, source, output)
    lines = lines_of(output)
    means = expected(model, source, home / "prepared")
    if ending == "csv":
        lines = [(str(key), *rest) for key, *rest in lines]
        means = {
            str(int(key)) if set(means) <= {"10", "9", "007"} else key: m
            for key, m in means.items()
        }
    assert {key: pytest.approx(mean, abs=1e-6) for key, mean in means.items()} == {
        key: found for key, found, _ in lines
    }
    assert [key for key, _, _ in lines] == [
        key for key, *_ in sorted(lines, key=lambda line: (-line[1], line[0].encode()))
    ]
    n = len(lines)
    assert [decile for *_, decile in lines] == [1 + 10 * rank // n for rank in range(n)]
    assert (summary.rows, summary.customers) == (len(rows), n)


def test_tables_of_several_batches(model: Path, home: Path) -> None:
    table = table_of(BATCH_ROWS)
    source, output = written(home / "t.parquet", table), home / "scores.parquet"
    summary = score(model, source, output)
    assert summary.rows > BATCH_ROWS
    lines = lines_of(output)
    means = expected(model, source, home / "prepared")
    assert len(lines) == len(means) == summary.customers == BATCH_ROWS
    differences = [abs(means[key] - found) for key, found, _ in lines]
    assert max(differences) < 1e-6
    counts = [tenth.customers for tenth in summary.deciles]
    assert sum(counts) == BATCH_ROWS
    assert max(counts) - min(counts) <= 1


def test_deciles_tell_how_good_the_scores_were(model: Path, home: Path) -> None:
    table = table_of(95)
    output = home / "scores.parquet"
    summary = score(model, written(home / "t.parquet", table), output)
    labels: dict[str, list[int]] = {}
    for key, label in zip(table["id"], table["bought"], strict=True):
        labels.setdefault(key, []).append(label)
    rates = {key: sum(found) / len(found) for key, found in labels.items()}
    overall = sum(rates.values()) / len(rates)
    assert summary.observed == pytest.approx(overall)
    lines = lines_of(output)
    assert [tenth.number for tenth in summary.deciles] == list(range(1, 11))
    for tenth in summary.deciles:
        members = [(key, found) for key, found, decile in lines if decile == tenth.number]
        observed = sum(rates[key] for key, _ in members) / len(members)
        assert tenth.customers == len(members)
        assert tenth.mean_score == pytest.approx(sum(f for _, f in members) / len(members))
        assert tenth.observed == pytest.approx(observed)
        assert tenth.lift == pytest.approx(observed / overall)


def test_a_table_without_labels(model: Path, home: Path) -> None:
    table = table_of(50)
    labelled = score(model, written(home / "t.parquet", table), home / "labelled.csv")
    for number, column in enumerate((None, [None] * len(table["id"]), [[1]] * len(table["id"]))):
        del table["bought"]
        if column:
            table["bought"] = column
        output = home / f"{number}.csv"
        summary = score(model, written(home / "u.parquet", table), output)
        assert output.read_bytes() == (home / "labelled.csv").read_bytes()
        assert summary.observed is None
        assert {(tenth.observed, tenth.lift) for tenth in summary.deciles} == {(None, None)}
        without = [replace(tenth, observed=None, lift=None) for tenth in labelled.deciles]
        assert list(summary.deciles) == without
        table.setdefault("bought", None)


def test_only_labels_of_0_and_1_count(model: Path, home: Path) -> None:
    table = {"id": list("abcd"), "age": [1.0] * 4, "spend": [2.0] * 4, "region": ["north"] * 4}
    table["bought"] = ["1", "0", None, "perhaps"]
    summary = score(model, written(home / "t.parquet", table), home / "scores.csv")
    assert summary.observed == 0.5
    assert [tenth.observed for tenth in summary.deciles] == [1, 0, None, None]
    assert [finding.column for finding in summary.warnings] == ["bought"]
    table["bought"] = [0] * 4
    summary = score(model, written(home / "t.parquet", table), home / "scores.csv")
    assert {(tenth.observed, tenth.lift) for tenth in summary.deciles} == {(0, None)}


@pytest.mark.parametrize("customers", [1, 3, 9, 10, 11])
def test_few_customers(model: Path, home: Path, customers: int) -> None:
    output = home / "scores.csv"
    summary = score(model, written(home / "t.csv", table_of(customers)), output)
    deciles = [decile for *_, decile in lines_of(output)]
    assert deciles == [1 + 10 * rank // customers for rank in range(customers)]
    assert [tenth.number for tenth in summary.deciles] == sorted(set(deciles))


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([10, 9, None], pa.int64()).drop_null(),
        pa.array([date(2024, 1, 2), date(1999, 5, 5)]),
        pa.array(["12.50", "3.00"]).cast(pa.decimal128(9, 2)),
        pa.array([1.5, 0.1]),
        pa.array([True, False]),
        pa.array(["x", "y"]).dictionary_encode(),
    ],
)
def test_keys_keep_their_type(model: Path, home: Path, keys: pa.Array) -> None:
    table = {"id": keys, "age": [1.0, 2.0], "spend": [1.0, 2.0], "region": ["north"] * 2}
    output = home / "scores.parquet"
    score(model, written(home / "t.parquet", table), output)
    assert {key for key, *_ in lines_of(output)} == set(keys.to_pylist())
    value_type = getattr(keys.type, "value_type", keys.type)
    assert pa.parquet.read_schema(output).field("id").type == value_type


def test_the_key_keeps_its_own_name(model: Path, home: Path) -> None:
    table = table_of(20)
    table["Kunden-Nr"] = table.pop("id")
    source = written(home / "t.parquet", table).renamed({"id": "Kunden-Nr"})
    score(model, source, home / "scores.csv")
    assert (home / "scores.csv").read_text().startswith("Kunden-Nr,score,decile\n")
    table["Score"] = table.pop("Kunden-Nr")
    source = written(home / "t.parquet", table).renamed({"id": "Score"})
    score(model, source, home / "scores.csv")
    assert (home / "scores.csv").read_text().startswith("key,score,decile\n")


def test_only_the_models_own_columns_are_needed(home: Path, tmp_path: Path) -> None:
    small = saved_model(tmp_path / "small", features=("spend",))
    source = written(home / "t.csv", {"id": ["a", "b"], "spend": [1, 900]})
    assert score(small, source, home / "scores.csv").customers == 2


def test_scores_lie_inside_the_unit_interval(home: Path, tmp_path: Path) -> None:
    steep = saved_model(tmp_path / "steep", scale=1e4)
    score(steep, written(home / "t.parquet", table_of(200)), home / "scores.parquet")
    found = [line[1] for line in lines_of(home / "scores.parquet")]
    assert 0 < min(found) < 1e-9
    assert 1 - 1e-7 < max(found) < 1


def test_a_model_that_diverged(home: Path, tmp_path: Path) -> None:
    wild = saved_model(tmp_path / "wild", scale=1e36, model=ModelSpec("embedding_mlp", (8,), 4))
    with pytest.raises(DataError, match="too large to compute with"):
        score(wild, written(home / "t.parquet", table_of(200)), home / "scores.parquet")
    assert [path.name for path in home.iterdir()] == ["t.parquet"]


def test_what_is_clamped_is_told(model: Path, home: Path) -> None:
    table = table_of(50)
    table["spend"][:12] = [-1.0] * 12
    table["region"][:3] = ["west"] * 3
    summary = score(model, written(home / "t.parquet", table), home / "scores.csv")
    assert [str(finding) for finding in summary.warnings] == [
        "column 'spend': outside the declared bounds; they are clamped (in 10-99 rows)",
        "column 'region': values not declared; they count as 'other' (in 1-9 rows)",
    ]


BAD: dict[str, tuple[str, Any, str]] = {
    "NaN": ("spend", [math.nan, float(CANARY)], "column 'spend': NaN or infinite"),
    "text": ("age", [CANARY + "x", "1"], "column 'age': not a number"),
    "NULL": ("spend", [None, 1.0], "column 'spend': NULL is not allowed"),
    "no key": ("id", [None, CANARY], "column 'id': the key is NULL"),
    "type": ("region", [[CANARY], []], "column 'region': its type VARCHAR"),
    "empty": ("", [], "the table is empty"),
    "missing": ("age", None, "column 'age': declared but not in the table"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_cannot_be_scored(model: Path, home: Path, name: str) -> None:
    column, values, message = BAD[name]
    table: Table = {"id": ["a", "b"], "age": [1.0, 2.0], "spend": [1.0, 2.0], "region": ["n"] * 2}
    if name == "empty":
        table = {column: pa.array(found)[:0] for column, found in table.items()}
    elif values is None:
        del table[column]
    else:
        table[column] = values
    output = home / "scores.csv"
    output.write_text("last month's")
    with pytest.raises(SchemaError, match=message) as caught:
        score(model, written(home / "t.parquet", table), output)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert output.read_text() == "last month's"
    assert sorted(path.name for path in home.iterdir()) == ["scores.csv", "t.parquet"]


def test_a_column_that_is_there_twice(model: Path, home: Path) -> None:
    columns = [["a"], [1.0], [2.0], [3.0], ["north"]]
    names = ["id", "age", "spend", "SPEND", "region"]
    pa.parquet.write_table(
        pa.table([pa.array(c) for c in columns], names=names), home / "t.parquet"
    )
    with pytest.raises(DataError, match="two columns of one name"):
        score(model, Source.files(home / "t.parquet"), home / "scores.csv")


def test_the_output_is_private_and_replaces_an_older_one(model: Path, home: Path) -> None:
    for ending in ("csv", "parquet"):
        output = home / f"scores.{ending}"
        output.touch(mode=0o644)
        (home / f".{output.name}.scoring").mkdir()
        (home / f".{output.name}.scoring" / "rows.parquet").write_text("of a killed run")
        score(model, written(home / "t.parquet", table_of(20)), output)
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
        assert len(lines_of(output)) == 20
    assert sorted(path.name for path in home.iterdir()) == [
        "scores.csv",
        "scores.parquet",
        "t.parquet",
    ]


def test_a_full_disk_leaves_the_older_output(model: Path, home: Path) -> None:
    source, output = written(home / "t.parquet", table_of(5000)), home / "scores.csv"
    output.write_text("last month's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match="is its disk full"):
            score(model, source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.read_text() == "last month's"
    assert sorted(path.name for path in home.iterdir()) == ["scores.csv", "t.parquet"]


def test_outputs_that_cannot_be_meant(model: Path, home: Path) -> None:
    source = written(home / "t.csv", table_of(20))
    before = (home / "t.csv").read_bytes()
    with pytest.raises(SettingError, match=r"'scores\.xlsx': scores are written to a \.csv"):
        score(model, source, home / "scores.xlsx")
    with pytest.raises(SettingError, match=r"'t\.csv' is a file of the table itself"):
        score(model, source, home / "t.csv")
    with pytest.raises(DataError, match="its folder must exist"):
        score(model, source, home / "absent" / "scores.csv")
    (home / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"'folder\.csv' cannot be written"):
        score(model, source, home / "folder.csv")
    with pytest.raises(DataError, match="model folder 'absent' cannot be read"):
        score(home / "absent", source, home / "scores.csv")
    assert (home / "t.csv").read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["folder.csv", "t.csv"]


def test_a_card_that_was_changed_is_refused(home: Path, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "changed")
    card = json.loads((folder / "card.json").read_text())
    card["terms"]["schema"]["columns"][0]["high"] = 1e6
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(SettingError, match="changed"):
        score(folder, written(home / "t.csv", table_of(20)), home / "scores.csv")
