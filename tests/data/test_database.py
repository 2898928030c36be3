from __future__ import annotations

import resource
import stat
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dovetail.data.check import check
from dovetail.data.customers import prepare
from dovetail.data.database import DatabaseQuery, fetched
from dovetail.data.engine import Limits
from dovetail.data.source import Source
from dovetail.errors import DataError, DovetailError, SchemaError, SettingError
from dovetail.schema import Schema
from tests.data.shop import Shop

Write = Callable[..., Path]
Table = dict[str, list[Any]]
CANARY, SECRET = "31415926", "swordfish"


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    work = tmp_path / "work"
    work.mkdir()
    return Limits(work_folder=work)


def rows_of(source: Source, limits: Limits) -> list[tuple[object, ...]]:
    with source.open(limits) as opened:
        return sorted(opened.rows('FROM "dovetail rows"'))


def left_in(limits: Limits) -> list[Path]:
    assert limits.work_folder
    return list(limits.work_folder.rglob("*"))


VISITS = """
CREATE TABLE visits (
    who bpchar(5), spend numeric(9, 2), gap real, shop varchar(9), day date, bought boolean, x text
)
"""


def test_a_table_gives_the_same_customers_as_a_file(
    shop: Shop, write: Write, schema: Schema, table: Table, tmp_path: Path
) -> None:
    rows = zip(*table.values(), strict=True)
    values = ", ".join(
        f"({', '.join('NULL' if v is None else repr(str(v)) for v in row)})" for row in rows
    )
    shop.run(VISITS, f"INSERT INTO visits VALUES {values}")
    source = Source.database(shop.url, "visits")
    fetched_rows = prepare(source, schema, tmp_path / "database", bytes(16))
    from_file = prepare(
        Source.files(write("t.parquet", table)), schema, tmp_path / "file", bytes(16)
    )
    one, other = fetched_rows.batch(np.arange(3)), from_file.batch(np.arange(3))
    assert len(fetched_rows) == len(from_file)
    for part in ("numbers", "codes", "labels", "mask"):
        assert (getattr(one, part) == getattr(other, part)).all()
    assert {path.name for path in tmp_path.iterdir()} == {"database", "file", "t.parquet"}


@pytest.mark.parametrize(
    "query",
    [
        "odd",
        "  {user}.odd ; ",
        '"odd"',
        '{user}."odd"',
        "SELECT * FROM odd",
        "SELECT n FROM odd;\n",
        "SELECT n FROM odd -- done",
        "WITH o AS (SELECT n FROM odd) TABLE o",
        "VALUES (1), (NULL)",
    ],
)
def test_a_query_or_a_name(shop: Shop, limits: Limits, query: str) -> None:
    shop.run("CREATE TABLE odd (n int)", "INSERT INTO odd VALUES (1), (NULL)")
    source = Source.database(shop.url, query.format(user=shop.user))
    with source.open(limits) as opened:
        assert sorted(opened.rows('SELECT COLUMNS(*) IS NULL FROM "dovetail rows"')) == [
            (False,),
            (True,),
        ]


def test_keys_and_decimals_are_what_they_are_in_the_database(shop: Shop, limits: Limits) -> None:
    key = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    query = f"SELECT '{key}'::uuid u, 1.50::numeric n, '007'::text t, 'ab '::char(9) c, 'd'::name d"
    ((uuid, *others),) = rows_of(Source.database(shop.url, query), limits)
    assert (uuid, others) == (UUID(key), ["1.50", "007", "ab", "d"])


def test_the_copy_is_private_and_does_not_stay(shop: Shop, limits: Limits) -> None:
    with fetched(DatabaseQuery(shop.url, "SELECT 1 AS one"), limits) as path:
        assert limits.work_folder in path.parents
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(KeyError), Source.database(shop.url, "SELECT 1 AS one").open(limits):
        raise KeyError
    assert left_in(limits) == []


def test_a_table_is_never_changed(shop: Shop, limits: Limits) -> None:
    shop.run(
        "CREATE TABLE t (n int)",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING n'",
    )
    for query in (
        "INSERT INTO t VALUES (1) RETURNING n",
        "WITH x AS (DELETE FROM t RETURNING n) SELECT * FROM x",
        "SELECT f()",
        "SELECT nextval('s')",
        "DELETE FROM t",
        "DROP TABLE t",
    ):
        with pytest.raises(DataError, match="the query may only read"):
            rows_of(Source.database(shop.url, query), limits)
    assert shop.run("SELECT * FROM t") == []
    assert left_in(limits) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT spned FROM t", r"a column that does not exist \(there is no 'spned'\)"),
        ("SELECT t.spned FROM t", r"a column that does not exist \(there is no 't.spned'\)"),
        ("tt", r"a table that does not exist \(there is no 'tt'\)"),
        ("SELECT 1; SELECT 2", "must be one SELECT"),
        ("SELECT 1) TO PROGRAM 'true' --", "must be one SELECT"),
        ("SELECT FRMO t", "does not exist|must be one SELECT"),
        ("SELECT lower(1)", "does not exist for such values"),
        ("SELECT max(v) + sum(max(1)) FROM t", "does not fit its tables"),
        ("SELECT CAST(v AS int) FROM t", "fails on some of the rows"),
        ("SELECT CAST(v AS date) FROM t", "fails on some of the rows"),
        ("SELECT 1 / (length(v) - 9) FROM t", "fails on some of the rows"),
        ("SELECT 1 / (n - 200000) FROM generate_series(1, 300000) n", "fails on some of the rows"),
        ("SELECT * FROM secret.t", "may not read that table|does not exist"),
        ("SELECT passwd FROM pg_shadow", "may not read that table"),
        ("SELECT '1 day'::interval AS i", "column 'i' has the type interval"),
        ("SELECT 1::money AS m", "column 'm' has the type money"),
        ("SELECT 1 AS a, 2 AS a", "two columns of one name"),
        ('SELECT 1 AS a, 2 AS "A"', "two columns of one name"),
        ("SELECT 'infinity'::date AS d", "column 'd' holds infinite dates"),
        ("SELECT '-infinity'::timestamp AS d", "column 'd' holds infinite dates"),
        ("SELECT NULL::date AS d UNION ALL SELECT 'infinity'", "holds infinite dates"),
    ],
)
def test_errors_lead_to_the_mend_and_hold_no_value(
    shop: Shop, limits: Limits, query: str, message: str
) -> None:
    shop.run("CREATE TABLE t (v text)", f"INSERT INTO t VALUES ('{CANARY}x')")
    with pytest.raises(DataError, match=message) as caught:
        rows_of(Source.database(shop.url, query), limits)
    text = "".join(traceback.format_exception(caught.value))
    assert CANARY not in text
    assert left_in(limits) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"postgresql://u:{SECRET}@127.0.0.1:1/x", "nothing answers there"),
        (f"postgresql://u:{SECRET}@/x?host=/nowhere", "nothing answers there"),
        (f"postgresql://u:{SECRET}@nowhere.invalid/x", "its host is not known"),
        (f"postgresql://u:{SECRET}@127.0.0.1:{SECRET}/x", "its url cannot be read"),
        (f"postgresql://u:{SECRET}%zz@127.0.0.1/x", "its url cannot be read"),
        (f"postgresql://u@127.0.0.1/x?{SECRET}=1", "its url cannot be read"),
    ],
)
def test_an_unreachable_database_does_not_tell_the_password(
    limits: Limits, url: str, message: str
) -> None:
    source = Source.database(url, "t")
    with pytest.raises(DataError, match=message) as caught:
        rows_of(source, limits)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(source)


def test_unknown_users_and_databases(shop: Shop, limits: Limits) -> None:
    host = f"host={shop.server.socket.parent}"
    places = {"nobody@/postgres": "no such user", f"{shop.user}@/x": "no such database"}
    for place, message in places.items():
        with pytest.raises(DataError, match=message):
            rows_of(Source.database(f"postgresql://{place}?{host}", "SELECT 1"), limits)


def test_the_password_comes_from_the_environment(
    shop: Shop, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = shop.server.socket.parent / "data" / "pg_hba.conf"
    rules.write_text(f"local all {shop.user} scram-sha-256\n{rules.read_text()}")
    set_password = f"ALTER ROLE {shop.user} PASSWORD '{SECRET}'"
    shop.server.run(set_password, "SELECT pg_reload_conf()")
    source = Source.database(shop.url, "SELECT 1 AS one")
    for variable in ("", "wrong"):
        monkeypatch.setenv("PGPASSWORD", variable)
        with pytest.raises(DataError, match="the password is missing or wrong: set PGPASSWORD"):
            rows_of(source, limits)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert rows_of(source, limits) == [(1,)]


def test_a_lost_connection(shop: Shop, limits: Limits) -> None:
    source = Source.database(shop.url, "SELECT pg_sleep(3600)")
    sleeping = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE usename = '{shop.user}' AND wait_event = 'PgSleep'"
    )
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(rows_of, source, limits)
        while shop.server.run(sleeping) == [(0,)]:
            assert not reading.done()
        with pytest.raises(DataError, match="the connection was lost; try again"):
            reading.result()
    assert left_in(limits) == []


def test_a_server_that_gives_up_waiting(shop: Shop, limits: Limits) -> None:
    url = f"{shop.url}&options=-c%20statement_timeout%3D1"
    with pytest.raises(DataError, match="the query was cancelled, by a time limit"):
        rows_of(Source.database(url, "SELECT pg_sleep(3600)"), limits)


def test_a_full_disk_leaves_nothing(shop: Shop, limits: Limits) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        query = "SELECT md5(n::text) FROM generate_series(1, 10000) n"
        with pytest.raises(DataError, match="'work': is its disk full"):
            rows_of(Source.database(shop.url, query), limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(limits) == []


def test_what_a_schema_refuses_in_a_file_it_refuses_in_a_database(
    shop: Shop, limits: Limits, schema: Schema
) -> None:
    query = (
        "SELECT 'a' AS who, 'NaN'::numeric AS spend, 1 AS gap, 'north' AS shop, true AS bought, "
        "now() AS day"
    )
    with pytest.raises(SchemaError, match=r"'day': its type TIMESTAMP WITH TIME ZONE does not fit"):
        check(Source.database(shop.url, query), schema, limits).raise_if_bad()
    query = query.replace("now()", "now()::date")
    with pytest.raises(SchemaError, match=r"'spend': NaN or infinite"):
        check(Source.database(shop.url, query), schema, limits).raise_if_bad()


def test_settings_that_cannot_work(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="begins with postgresql://"):
        Source.database(f"mysql://u:{SECRET}@host/x", "t")
    with pytest.raises(SettingError, match="needs a query"):
        Source.database("postgresql://host/x", " \n")
    source = Source.database("postgresql://host/x", "t")
    with pytest.raises(DataError, match="need a work folder"):
        rows_of(source, Limits())
    with pytest.raises(DataError, match="work folder 'absent' must exist"):
        rows_of(source, Limits(work_folder=Path("absent")))
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql.dbapi", None)
    with pytest.raises(SettingError, match=r"pip install 'dovetail\[postgres\]'"):
        rows_of(source, limits)


def test_a_server_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    for url, patient in {
        "postgresql://h/d": "postgresql://h/d?connect_timeout=30",
        "postgresql://h/d?a=b": "postgresql://h/d?a=b&connect_timeout=30",
        "postgresql://h/d?connect_timeout=5": "postgresql://h/d?connect_timeout=5",
    }.items():
        assert DatabaseQuery(url, "t").patient_url == patient
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    assert DatabaseQuery("postgresql://h/d", "t").patient_url == "postgresql://h/d"


def test_every_error_is_ours(shop: Shop, limits: Limits) -> None:
    """Odd queries, none of which may end in a foreign exception."""
    for query in (
        "SELECT",
        "SELECT 1 AS a WHERE false",
        "TABLE",
        "''",
        "(",
        "SELECT $1",
        "COPY t TO STDOUT",
        "\0",
    ):
        try:
            rows_of(Source.database(shop.url, query), limits)
        except DovetailError:
            continue
    assert left_in(limits) == []
