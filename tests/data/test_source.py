import stat
import string
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.data.engine import Limits
from dovetail.data.source import Source, materialise, run_query
from dovetail.errors import DataError, SettingError

Write = Callable[..., Path]


def rows_of(source: Source) -> list[tuple[object, ...]]:
    with source.open(Limits()) as opened:
        return sorted(opened.rows('FROM "dovetail rows"'))


def test_a_file_a_glob_and_a_folder_are_one_table(write: Write, tmp_path: Path) -> None:
    write("folder/a.parquet", {"k": [1], "x": [0.5]})
    write("folder/b.parquet", {"x": [1.5], "k": [2]})
    (tmp_path / "folder" / "_SUCCESS").touch()
    (tmp_path / "folder" / ".hidden.csv").touch()
    assert rows_of(Source.files(tmp_path / "folder" / "a.parquet")) == [(1, 0.5)]
    assert rows_of(Source.files(tmp_path / "folder" / "*.parquet")) == [(1, 0.5), (2, 1.5)]
    assert rows_of(Source.files(tmp_path / "folder")) == [(1, 0.5), (2, 1.5)]


def test_csv_columns_stay_text_and_an_empty_field_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('k,x\n007,\n8,"1,5"\n')
    assert rows_of(Source.files(tmp_path / "a.csv")) == [("007", None), ("8", "1,5")]


def test_gzipped_csv(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"k,x\n1,2\n"))
    assert rows_of(Source.files(tmp_path / "a.csv.gz")) == [("1", "2")]


def test_a_csv_of_numbers_alone_still_has_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    assert rows_of(Source.files(tmp_path / "a.csv")) == [("3", "4")]


def test_sql_over_several_tables(write: Write) -> None:
    sales = write("sales.csv", {"who": [1, 1, 2], "amount": [1.5, 2.0, 4.0]})
    people = write("people.parquet", {"who": [1, 2], "born": [date(1990, 1, 1), None]})
    query = "SELECT who, sum(amount), any_value(born) FROM sales JOIN people USING (who) GROUP BY 1"
    expected = [(1, 3.5, date(1990, 1, 1)), (2, 4.0, None)]
    tables = {"sales": sales, "people": people}
    assert rows_of(Source.sql(query + "; -- done; really", tables)) == expected
    assert sorted(run_query(query, tables)) == expected


def test_a_table_may_have_any_name(write: Write) -> None:
    path = write("a.parquet", {"k": [1]})
    assert run_query("FROM source", {"source": path}) == [(1,)]
    assert run_query('FROM "my ""table"', {'my "table': path}) == [(1,)]


def test_types_of_csv_in_sql_come_from_the_whole_file(tmp_path: Path) -> None:
    lines = "\n".join(["x", *["1"] * 30_000, "late"])
    (tmp_path / "a.csv").write_text(lines)
    ((count,),) = run_query("SELECT count(*) FROM t WHERE x = 'late'", {"t": tmp_path / "a.csv"})
    assert count == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1; SELECT 2",
        "COPY t TO 'stolen.csv'",
        "CREATE TABLE u AS FROM t",
        "SET threads = 4",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('https://example.org/a.parquet')",
        "SELECT * FROM local_variable",
        "INSTALL httpfs",
        "SELECT * FROM t)",
        "",
    ],
)
def test_a_query_reaches_its_tables_and_nothing_else(write: Write, query: str) -> None:
    local_variable = write("other.parquet", {"k": [1]})  # noqa: F841
    path = write("a.parquet", {"k": [1]})
    with pytest.raises(DataError):
        run_query(query, {"t": path})


def test_the_column_that_a_query_misspells_is_named(write: Write) -> None:
    path = write("a.parquet", {"canary_column": [1]})
    with pytest.raises(DataError, match="no column 'canary_colum'") as caught:
        run_query("SELECT canary_colum FROM t", {"t": path})
    assert "canary_column" not in str(caught.value)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match=rf"absent\.{ending}"):
        rows_of(Source.files(tmp_path / f"absent.{ending}"))


def test_mixed_and_foreign_formats_are_refused(write: Write, tmp_path: Path) -> None:
    write("mixed/a.parquet", {"k": [1]})
    write("mixed/b.csv", {"k": [1]})
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    (tmp_path / "void").mkdir()
    for name in ("mixed", "a.xlsx"):
        with pytest.raises(DataError, match=f"{name}.*must be Parquet .* or CSV"):
            rows_of(Source.files(tmp_path / name))
    with pytest.raises(DataError, match="no file found at 'void'"):
        rows_of(Source.files(tmp_path / "void"))


def test_truncated_files_are_named(write: Write, tmp_path: Path) -> None:
    whole = write("folder/a.parquet", {"k": list(range(1000))})
    write("folder/b.parquet", {"k": list(range(1000))})
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"'a\.parquet' is truncated"):
        rows_of(Source.files(tmp_path / "folder"))
    whole.write_bytes(b"")
    with pytest.raises(DataError, match=r"'a\.parquet' is empty"):
        rows_of(Source.files(tmp_path / "folder"))


def test_damage_inside_a_file_is_named(write: Write) -> None:
    path = write("a.parquet", {"k": list(range(10_000))})
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])
    with pytest.raises(DataError, match=r"'a\.parquet' cannot be read"):
        rows_of(Source.files(path))


@pytest.mark.parametrize(
    "lines",
    [
        ["who,spend", *["a,1"] * 50_000, "b,1,2", "c,1"],
        ["who,spend", *["a,1"] * 50_000, "b"],
        ["who,spend", *["a,1"] * 50_000, '"b,1', "c,1"],
        ["who,spend", "a,1", '"b,1'],
    ],
    ids=["a line too long", "cut off", "open quote far down", "open quote"],
)
def test_no_line_of_a_csv_is_skipped_in_silence(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"'t\.csv' cannot be read"):
        rows_of(Source.files(tmp_path / "t.csv"))


def test_lines_of_unequal_length_are_named_and_not_read_as_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,spend\na,1,2\nb,1\n")
    with pytest.raises(DataError, match=r"'t\.csv' cannot be read: a row has more or fewer fields"):
        rows_of(Source.files(tmp_path / "t.csv"))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_csv_that_is_not_utf8_is_told_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_text("who,spend\nbjörk,1\n", encoding=encoding)
    with pytest.raises(DataError, match=r"'t\.csv' is not UTF-8 text") as caught:
        rows_of(Source.files(tmp_path / "t.csv"))
    assert "björk" not in str(caught.value)


@pytest.mark.parametrize("header", ["who,spend,who", "canary,1,1", "who,spend,WHO"])
def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\na,1,2\n")
    with pytest.raises(DataError, match=r"'t\.csv': its first row must name the columns") as caught:
        rows_of(Source.files(tmp_path / "t.csv"))
    assert "canary" not in str(caught.value)


def test_separators_must_agree_within_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who;spend\na;1\n")
    (tmp_path / "b.csv").write_text("who,spend\nb,1\n")
    with pytest.raises(DataError, match="differ in what separates"):
        rows_of(Source.files(tmp_path))


def test_a_gzip_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_text("who,spend\na,1\n")
    with pytest.raises(DataError, match=r"'t\.csv\.gz' is truncated or damaged"):
        rows_of(Source.files(tmp_path / "t.csv.gz"))


@pytest.mark.parametrize("name", ["rows[1].csv", "rows*.csv", "rows?.csv", "it's.csv"])
def test_a_name_is_never_taken_for_a_pattern(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in [1]"
    for other in (folder, tmp_path / "in 1"):
        other.mkdir()
        (other / "rows1.csv").write_text("who\nother\n")
    (folder / name).write_text("who\nright\n")
    assert rows_of(Source.files(folder / name)) == [("right",)]
    assert sorted(rows_of(Source.files(folder))) == [("other",), ("right",)]


def test_keys_of_a_csv_keep_their_zeros_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who\n007\n7\n")
    query, tables = "SELECT DISTINCT who FROM t ORDER BY who", {"t": tmp_path / "t.csv"}
    assert run_query(query, tables, as_text=True) == [("007",), ("7",)]
    materialise(query, tables, tmp_path / "t.parquet", as_text=True)
    assert run_query("FROM t", {"t": tmp_path / "t.parquet"}) == [("007",), ("7",)]


@pytest.mark.parametrize("text", ["who;spend\na;1\n", "who\tspend\r\na\t1\r\n", "who|spend\na|1\n"])
def test_the_delimiter_of_a_csv_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert rows_of(Source.files(tmp_path / "t.csv")) == [("a", "1")]


def test_materialise_writes_a_private_file(write: Write, tmp_path: Path) -> None:
    path = write("a.parquet", {"k": [1, 2]})
    materialise("SELECT sum(k) AS total FROM t", {"t": path}, tmp_path / "sum.parquet")
    assert rows_of(Source.files(tmp_path / "sum.parquet")) == [(3,)]
    assert stat.S_IMODE((tmp_path / "sum.parquet").stat().st_mode) == 0o600


def test_materialise_all_or_nothing(write: Write, tmp_path: Path) -> None:
    path = write("in/a.parquet", {"k": ["1"] * 50_000 + ["x"]})
    out = tmp_path / "out"
    out.mkdir()
    materialise("SELECT 1 AS old", {}, out / "b.parquet")
    with pytest.raises(DataError):
        materialise("SELECT CAST(k AS INT) FROM t", {"t": path}, out / "b.parquet")
    assert [file.name for file in out.iterdir()] == ["b.parquet"]
    assert rows_of(Source.files(out / "b.parquet")) == [(1,)]
    with pytest.raises(DataError, match=r"'c\.parquet' cannot be written|work folder"):
        materialise("SELECT 1", {}, tmp_path / "absent" / "c.parquet")


def test_a_relative_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    materialise("SELECT 1 AS one", {}, Path("here.parquet"))
    assert rows_of(Source.files(Path("here.parquet"))) == [(1,)]


@pytest.mark.parametrize("names", [("who", "spend", "who"), ("who", "WHO")])
def test_a_parquet_file_that_names_a_column_twice_is_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    table = pa.table([pa.array([1])] * len(names), names=list(names))
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'t\.parquet' has two columns of one name"):
        rows_of(Source.files(tmp_path / "t.parquet"))


def columns_of(source: Source) -> dict[str, object]:
    with source.open(Limits()) as opened:
        (row,) = opened.rows('FROM "dovetail rows"')
        return dict(zip(opened.columns("dovetail rows"), row, strict=True))


def test_columns_under_other_names(write: Write) -> None:
    source = Source.files(write("t.parquet", {"hh_key": ["a"], "Umsatz": [1], "shop": ["n"]}))
    renamed = source.renamed({"who": "HH_KEY", "spend": "umsatz"})
    assert columns_of(renamed) == {"who": "a", "spend": 1, "shop": "n"}
    assert renamed.own_name("WHO") == "HH_KEY"
    assert renamed.own_name("shop") == "shop"
    query = Source.sql("SELECT 1 AS a, 2 AS b", {}).renamed({"x": "b"})
    assert columns_of(query) == {"x": 2, "a": 1}


def test_columns_may_change_places_or_serve_twice(write: Write) -> None:
    source = Source.files(write("t.parquet", {"a": [1], "b": [2], "c": [3]}))
    assert columns_of(source.renamed({"a": "b", "b": "a"})) == {"a": 2, "b": 1, "c": 3}
    assert columns_of(source.renamed({"x": "a", "y": "a"})) == {"x": 1, "y": 1, "b": 2, "c": 3}
    assert columns_of(source.renamed({"A": "c"})) == {"A": 3, "b": 2}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(st.text(string.ascii_lowercase, min_size=1), st.integers(0, 9), min_size=1),
    st.data(),
)
def test_every_name_finds_its_column(
    write: Write, table: dict[str, int], data: st.DataObject
) -> None:
    names = st.text(string.ascii_lowercase + "\"';) ", min_size=1)
    mapping = data.draw(st.dictionaries(names, st.sampled_from(sorted(table))))
    source = Source.files(write("t.parquet", {name: [value] for name, value in table.items()}))
    found = columns_of(source.renamed(mapping))
    assert {name: found[name] for name in mapping} == {n: table[own] for n, own in mapping.items()}
    kept = table.keys() - mapping.keys() - set(mapping.values())
    assert {name: found[name] for name in kept} == {name: table[name] for name in kept}
    assert len(found) == len(mapping) + len(kept)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("umsats", "no column 'umsats'; did you mean 'umsatz'"),
        ("upper(umsatz)", "no column"),
        ('umsatz" AS x, "who', "no column"),
        ("1", "no column '1'$"),
        ("*", "no column"),
        ("", "no column"),
    ],
)
def test_only_columns_can_be_renamed(write: Write, wanted: str, message: str) -> None:
    source = Source.files(write("t.parquet", {"who": ["a"], "umsatz": [1]}))
    with pytest.raises(DataError, match=message):
        columns_of(source.renamed({"spend": wanted}))


def test_a_name_cannot_be_mapped_twice(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="mapped twice"):
        Source.files(tmp_path).renamed({"spend": "a", "SPEND": "b"})


def test_materialise_writes_csv_where_the_name_says_so(write: Write, tmp_path: Path) -> None:
    path = write("a.parquet", {"k": ["007", "a,b", None], "x": [0.1, 2.0, None]})
    materialise("FROM t", {"t": path}, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == 'k,x\n007,0.1\n"a,b",2.0\n,\n'
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o600


def test_a_session_knows_which_files_it_reads(write: Write, tmp_path: Path) -> None:
    path, other = write("a.csv", {"k": [1]}), write("b.csv", {"k": [1]})
    (tmp_path / "link.csv").symlink_to(path)
    with Source.files(path).open(Limits()) as opened:
        assert opened.reads(path)
        assert opened.reads(tmp_path / "link.csv")
        assert not opened.reads(other)
        assert not opened.reads(tmp_path / "absent.csv")
