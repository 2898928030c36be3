from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from dovetail.schema import Category, Date, Label, Number, Schema
from tests.data.shop import Shop
from tests.postgres import Server, running_server

Table = Mapping[str, Sequence[Any]]
Write = Callable[[str, Table], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table to a file of tmp_path, Parquet or CSV by its ending."""

    def write_table(name: str, table: Table) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        arrow = pa.table({column: pa.array(values) for column, values in table.items()})
        if name.endswith(".parquet"):
            pa.parquet.write_table(arrow, path)
        else:
            pa.csv.write_csv(arrow, path)
        return path

    return write_table


@pytest.fixture
def schema() -> Schema:
    """A small schema with a column of every kind."""
    return Schema(
        name="visits",
        key="who",
        unit="household",
        columns=(
            Number("spend", 0, 100, "EUR"),
            Number("gap", 0, 365, "days", "log", nullable=True),
            Category("shop", ("north", "south")),
            Date("day", date(2020, 1, 1), date(2020, 12, 31), nullable=True),
        ),
        label=Label("bought", 0.2),
        max_rows_per_customer=3,
    )


@pytest.fixture
def table() -> dict[str, list[Any]]:
    """Five sound rows of three customers."""
    return {
        "who": ["b", "a", "b", "c", "a"],
        "spend": [0.0, 50.0, 100.0, 25.0, 75.0],
        "gap": [None, 0.0, 365.0, 10.5, 20.0],
        "shop": ["north", "south", "north", None, "south"],
        "day": [date(2020, 1, 1), None, date(2020, 12, 31), date(2020, 7, 1), date(2020, 7, 1)],
        "bought": [0, 1, 0, 1, 1],
    }


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def shop(postgres: Server) -> Shop:
    """A user of a real PostgreSQL server, with a schema of the user's own."""
    user = urlsplit(postgres.new_place()).username
    assert user
    return Shop(postgres, user)
