"""Made-up customers: reproducible, fitting their schema, and drawn from the stated truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.data.check import check
from dovetail.data.source import Source, run_query
from dovetail.errors import SettingError
from dovetail.simulation import datasets, metrics, partition


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "up.parquet"
    datasets.synthetic(path, customers=4000, seed=1)
    return path


def rows(path: Path, what: str = "*") -> list[tuple[Any, ...]]:
    return run_query(f"SELECT {what} FROM made_up", {"made_up": path})


def test_rows_fit_the_schema_and_show_every_irregularity(table: Path) -> None:
    report = check(Source.files(table), datasets.synthetic_schema())
    assert report.errors == ()
    assert {finding.column for finding in report.warnings} >= {"number_0", "colour"}
    nulls = "count(*) - count(number_5), count(*) - count(colour), count(*) - count(number_0)"
    ((numbers, colours, none),) = rows(table, nulls)
    assert numbers > 0
    assert colours > 0
    assert none == 0


def test_customers_have_one_to_four_rows_and_one_region(table: Path) -> None:
    query = """
        SELECT min(n), max(n), max(regions), count(*)
        FROM (SELECT count(*) AS n, count(DISTINCT region) AS regions FROM t GROUP BY customer)
    """
    assert run_query(query, {"t": table}) == [(1, 4, 1, 4000)]
    assignment = partition.by_column(table, datasets.KEY, datasets.PARTNER_COLUMN)
    assert set(assignment.values()) == set(datasets.REGIONS)


def test_labels_follow_the_known_model(table: Path) -> None:
    """The chance written beside each row is that of the truth, and the labels keep to it."""
    truth = datasets.synthetic_truth()
    columns = ", ".join(f"number_{i}" for i in range(5))
    found = rows(table, f"{columns}, colour, chance, bought")
    scaled = np.clip(np.array([row[:5] for row in found], dtype=float), 0, 100) / 50 - 1
    effects = dict(zip(("red", "green", "blue"), truth.colour_effects, strict=True))
    log_odds = truth.intercept + scaled @ np.array(truth.weights[:5])
    log_odds += np.array([effects.get(row[5], 0.0) for row in found])
    chance, label = np.array([row[6:] for row in found], dtype=float).T
    assert truth.weights[5] == 0
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds)), chance, atol=1e-3)
    error = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
    assert abs(label.mean() - chance.mean()) < 5 * error
    assert metrics.auc(label, chance) > 0.75


def test_equal_arguments_write_equal_rows(table: Path, tmp_path: Path) -> None:
    datasets.synthetic(tmp_path / "again.parquet", customers=4000, seed=1)
    datasets.synthetic(tmp_path / "other.parquet", customers=4000, seed=2)
    assert rows(tmp_path / "again.parquet") == rows(table)
    assert rows(tmp_path / "other.parquet", "chance") != rows(table, "chance")


def test_width_and_rows_can_be_chosen(tmp_path: Path) -> None:
    schema = datasets.synthetic(tmp_path / "a.parquet", customers=50, seed=0, numbers=1, rows=1)
    assert [column.name for column in schema.columns] == ["number_0", "colour"]
    assert schema.max_rows_per_customer == 1
    assert check(Source.files(tmp_path / "a.parquet"), schema).errors == ()
    assert rows(tmp_path / "a.parquet", "count(*)") == [(50,)]


@pytest.mark.parametrize("bad", [{"customers": 0}, {"numbers": 0}, {"rows": 0}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, bad: dict[str, int]) -> None:
    arguments = {"customers": 10, "seed": 0} | bad
    with pytest.raises(SettingError):
        datasets.synthetic(tmp_path / "made.parquet", **arguments)
    assert list(tmp_path.iterdir()) == []
