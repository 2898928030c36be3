"""A table of results comes back as it was written, or is not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.data.tidy import ColumnType, read_parquet, write_parquet
from dovetail.errors import DataError

COLUMNS: dict[str, ColumnType] = {"name": "text", "n": "whole", "value": "number", "last": "flag"}
ROWS = [
    {"name": "joint", "n": 2**53, "value": 0.1, "last": True},
    {"name": "ε, ünïcode", "n": -1, "value": None, "last": False},
]


def test_rows_come_back(tmp_path: Path) -> None:
    for rows in (ROWS, []):
        write_parquet(rows, COLUMNS, tmp_path / "rows.parquet")
        assert read_parquet(tmp_path / "rows.parquet") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    (tmp_path / "rows.parquet" / "in the way").touch()
    with pytest.raises(DataError, match=r"rows\.parquet"):
        write_parquet(ROWS, COLUMNS, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet"):
        write_parquet(ROWS, COLUMNS, tmp_path / "missing" / "rows.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_parquet(ROWS, COLUMNS, tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[: len(content) // 2])
    for name in ("rows.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=name):
            read_parquet(tmp_path / name)
