from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.data.engine import Limits
from dovetail.data.scores import deciles, rank, write_ranked, write_scored
from dovetail.data.source import Source, run_query
from dovetail.errors import DataError
from dovetail.schema import Label, Number, Schema
from dovetail.training.batch import Batch

Write = Callable[..., Path]
SCHEMA = Schema("t", "who", "person", (Number("x", 0, 8),), Label("bought", 0.5), 1)


def eighths(batch: Batch) -> npt.NDArray[np.float32]:
    """A score that is the row's number, from 0 to 1."""
    assert batch.codes.shape == (len(batch.mask), 1, 0)
    return ((batch.numbers[:, 0, 0] + 1) / 2).astype(np.float32)


rows = st.lists(
    st.tuples(
        st.text("abZä0", min_size=1, max_size=2), st.integers(0, 8), st.none() | st.booleans()
    ),
    min_size=1,
    max_size=60,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows)
def test_customers_have_the_mean_of_their_rows_and_ties_stand_by_key(
    write: Write, tmp_path: Path, table: list[tuple[str, int, bool | None]]
) -> None:
    scored, ranked, output = (tmp_path / name for name in ("s.parquet", "r.parquet", "o.parquet"))
    scored.unlink(missing_ok=True)
    columns = dict(zip(("who", "x", "bought"), map(list, zip(*table, strict=True)), strict=True))
    with Source.files(write("t.parquet", columns)).open(Limits()) as opened:
        write_scored(opened, SCHEMA, eighths, scored)
    ranking = rank(scored, ranked, Limits())
    write_ranked(ranking, "who", "VARCHAR", output, Limits())
    lines: list[Any] = run_query("FROM o", {"o": output})

    def mean(who: str) -> float:
        inside = [min(max(x / 8, 1e-38), 1 - 2**-24) for key, x, _ in table if key == who]
        return float(np.float32(fmean(inside)))

    means = {who: mean(who) for who, _, _ in table}
    ordered = sorted(means, key=lambda who: (-means[who], who.encode()))
    assert [line[0] for line in lines] == ordered
    assert [line[1] for line in lines] == pytest.approx([means[who] for who in ordered])
    assert all(0 < line[1] < 1 for line in lines)
    assert [line[2] for line in lines] == [1 + 10 * r // len(lines) for r in range(len(lines))]
    assert ranking.customers == len(lines)

    def rate(people: list[str]) -> float | None:
        labels = [[b for k, _, b in table if k == who and b is not None] for who in people]
        shares = [fmean(found) for found in labels if found]
        return fmean(shares) if shares else None

    assert ranking.observed == (None if (r := rate(ordered)) is None else pytest.approx(r))
    tenths = deciles(ranking, Limits())
    for tenth in tenths:
        people = [line[0] for line in lines if line[2] == tenth.number]
        assert tenth.customers == len(people)
        assert tenth.mean_score == pytest.approx(fmean(means[who] for who in people), abs=1e-6)
        assert tenth.observed == (None if (r := rate(people)) is None else pytest.approx(r))
    assert sum(tenth.customers for tenth in tenths) == len(lines)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused(write: Write, tmp_path: Path, number: float) -> None:
    path = write("t.parquet", {"who": ["a"], "x": [1]})
    with (
        Source.files(path).open(Limits()) as opened,
        pytest.raises(DataError, match="too large to compute with"),
    ):
        write_scored(opened, SCHEMA, lambda _: np.array([number], "f4"), tmp_path / "s.parquet")


@pytest.mark.parametrize("row", [{"who": None, "x": 1}, {"who": "a", "x": None}])
def test_a_row_that_was_not_there_when_the_table_was_checked(
    write: Write, tmp_path: Path, row: dict[str, Any]
) -> None:
    table = {"who": ["b", row.get("who", "c")], "x": [1.0, row["x"]]}
    with (
        Source.files(write("t.parquet", table)).open(Limits()) as opened,
        pytest.raises(DataError, match="changed while it was read"),
    ):
        write_scored(opened, SCHEMA, eighths, tmp_path / "s.parquet")


@pytest.mark.parametrize("kind", ["HUGEINT", "UHUGEINT", "ENUM('1', '2')"])
def test_keys_that_parquet_cannot_hold_are_written_as_text(
    write: Write, tmp_path: Path, kind: str
) -> None:
    with Source.files(write("t.parquet", {"who": ["1", "2"], "x": [1, 2]})).open(
        Limits()
    ) as opened:
        write_scored(opened, SCHEMA, eighths, tmp_path / "s.parquet")
    ranking = rank(tmp_path / "s.parquet", tmp_path / "r.parquet", Limits())
    write_ranked(ranking, "who", kind, tmp_path / "o.parquet", Limits())
    assert run_query("SELECT who FROM o", {"o": tmp_path / "o.parquet"}) == [("2",), ("1",)]
