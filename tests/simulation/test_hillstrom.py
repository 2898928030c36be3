"""The loader of Hillstrom's e-mail test, on a small made-up file with its columns."""

import gzip
import random
from pathlib import Path

import pytest

from dovetail.data.check import check
from dovetail.data.source import Source, run_query
from dovetail.errors import DataError
from dovetail.schema import Category
from dovetail.simulation import hillstrom, partition


def made_up(path: Path, columns: tuple[str, ...] = hillstrom.COLUMNS) -> Path:
    dice = random.Random(0)
    lines = [",".join(columns)]
    for customer in range(120):
        row = {
            "customer_id": customer,
            "recency": dice.randint(1, 12),
            "history_segment": "2) $100 - $200",
            "history": round(dice.uniform(30, 900), 2),
            "mens": dice.randint(0, 1),
            "womens": dice.randint(0, 1),
            "zip_code": dice.choice(["Urban", "Surburban", "Rural"]),
            "newbie": dice.randint(0, 1),
            "channel": dice.choice(["Web", "Phone", "Multichannel"]),
            "segment": dice.choice(["Mens E-Mail", "Womens E-Mail", "No E-Mail"]),
            "visit": int(dice.random() < 0.15),
            "conversion": 0,
            "spend": 0.0,
            "_split": "test" if customer % 5 == 0 else "train",
        }
        lines.append(",".join(str(row[name]) for name in columns))
    with gzip.open(path, "wt", encoding="utf-8") as opened:
        opened.write("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "customers.parquet"
    hillstrom.build(made_up(tmp_path / "hillstrom.csv.gz"), path)
    return path


def test_rows_fit_the_schema_without_a_warning(table: Path) -> None:
    report = check(Source.files(table), hillstrom.SCHEMA)
    assert report.errors == report.warnings == ()
    assert run_query("SELECT count(*) FROM t", {"t": table}) == [(120,)]


def test_the_treatment_is_a_feature_and_the_partner_is_not() -> None:
    names = {column.name for column in hillstrom.SCHEMA.columns}
    assert "segment" in names
    assert hillstrom.PARTNER_COLUMN not in names
    assert not names & {"conversion", "spend", "_split"}, "known only after the visit"
    treatment = next(c for c in hillstrom.SCHEMA.categories if c.name == "segment")
    assert treatment == Category("segment", ("Mens E-Mail", "Womens E-Mail", "No E-Mail"))


def test_partners_by_channel_and_the_split_of_the_file(table: Path, tmp_path: Path) -> None:
    assignment = partition.by_column(
        table, hillstrom.KEY, hillstrom.PARTNER_COLUMN, hillstrom.PARTNERS
    )
    test = hillstrom.held_out(table)
    assert test == {str(i) for i in range(0, 120, 5)}
    files = partition.write(table, hillstrom.KEY, assignment, test, tmp_path)
    assert set(files) == {"web", "phone", "multichannel"}
    assert sum(f.train_customers for f in files.values()) == 96
    assert sum(f.test_customers for f in files.values()) == 24
    split = run_query('SELECT DISTINCT channel, "_split" FROM t', {"t": files["web"].train})
    assert split == [("Web", "train")]


def test_a_missing_column_or_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    file = made_up(tmp_path / "short.csv.gz", hillstrom.COLUMNS[:-1])
    with pytest.raises(DataError, match="_split"):
        hillstrom.build(file, tmp_path / "customers.parquet")
    with pytest.raises(DataError, match="gone"):
        hillstrom.build(tmp_path / "gone.csv.gz", tmp_path / "customers.parquet")
    assert list(tmp_path.iterdir()) == [file]
