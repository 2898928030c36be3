"""A coordinator's database that is foreign, old, too new, damaged, held, full or away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import ssl
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography.hazmat.primitives import serialization

from dovetail.crypto.certificates import certificate_of, new_tls_key
from dovetail.errors import DataError, DovetailError, SettingError, TransportError
from dovetail.store import engine
from dovetail.store.database import Database
from dovetail.store.jobs import JobStore
from dovetail.store.migrations import STEPS, VERSION_TABLE, migrate
from dovetail.store.records import JobRecord
from dovetail.store.tables import METADATA
from tests.postgres import Server

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
SPRING = JobRecord("spring", {}, "", "", "analyst", "", 2, 60.0, 10)


def open_store(place: str | Path, lock_timeout: float = 30) -> JobStore:
    return JobStore.open(place, lambda: NOW, lock_timeout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.db"


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.new_place()


def user_of(url: str) -> str:
    return sa.make_url(url).username or ""


def run(place: str | Path, statement: str, postgres: Server) -> None:
    """One statement behind the store's back."""
    if isinstance(place, str):
        postgres.run(statement, url=place)
    else:
        with closing(sqlite3.connect(place, isolation_level=None)) as raw:
            raw.execute(statement)


# --- layout and migration


def test_the_migrations_lead_to_the_tables_of_today(place: str | Path) -> None:
    database = Database(place)
    with database.read() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert (
            compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []
        )
    database.close()


STEP = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "next", {before!r}

def upgrade():
    op.add_column("jobs", sa.Column("colour", sa.Text, nullable=False, server_default="red"))
    {last}
"""


def write_step(folder: Path, place: str | Path, last: str = "") -> tuple[Path, ...]:
    """A step after the newest, as a later version would bring it."""
    database = Database(place)
    with database.read() as connection:
        before = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    database.close()
    folder.mkdir()
    (folder / "next.py").write_text(STEP.format(before=before, last=last))
    return (STEPS, folder)


def test_a_step_keeps_what_was_there_and_older_versions_then_refuse(
    place: str | Path, tmp_path: Path
) -> None:
    with open_store(place) as store:
        kept = store.add(SPRING)
    steps = write_step(tmp_path / "steps", place)
    database = Database(place)
    with database.write() as connection:
        migrate(connection, "the database", steps)
        migrate(connection, "the database", steps)
    with database.read() as connection:
        row = connection.execute(sa.text("SELECT job, created, colour FROM jobs")).one()
    database.close()
    assert tuple(row) == ("spring", kept.created, "red")
    with pytest.raises(SettingError, match="was written by a later version of Dovetail"):
        open_store(place)


def test_a_step_that_breaks_off_leaves_the_layout_before(place: str | Path, tmp_path: Path) -> None:
    steps = write_step(tmp_path / "steps", place, 'raise RuntimeError("broken off")')
    database = Database(place)
    with pytest.raises(RuntimeError, match="broken off"), database.write() as connection:
        migrate(connection, "the database", steps)
    with database.read() as connection:
        assert "colour" not in {c["name"] for c in sa.inspect(connection).get_columns("jobs")}
    database.close()
    with open_store(place) as store:
        assert store.add(SPRING).job == "spring"


# --- places that cannot be used


def test_only_its_owner_may_read_a_file(path: Path) -> None:
    with open_store(path) as store:
        store.add(SPRING)
        found = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
    assert found == dict.fromkeys(
        ("coordinator.db", "coordinator.db-wal", "coordinator.db-shm"), 0o600
    )
    path.chmod(0o640)
    with pytest.raises(SettingError, match="chmod it to 600"):
        open_store(path)


@pytest.mark.parametrize("content", ["table", "empty", "ledger"])
def test_another_file_is_refused_and_left_alone(content: str, path: Path) -> None:
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        if content == "table":
            raw.execute("CREATE TABLE jobs (id)")
        elif content == "ledger":
            raw.execute("PRAGMA application_id = 1146050117")
    before = path.read_bytes()
    with pytest.raises(SettingError, match=r"'coordinator\.db' holds something else"):
        open_store(path)
    assert path.read_bytes() == before


def test_another_schema_is_refused_and_left_alone(url: str, postgres: Server) -> None:
    postgres.run("CREATE TABLE jobs (id int)", url=url)
    with pytest.raises(SettingError, match="holds something else"):
        open_store(url)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema"
    assert postgres.run(tables, url=url) == [("jobs",)]


@pytest.mark.parametrize(
    "place",
    [
        "mysql://root@localhost/jobs",
        "postgresql+psycopg://dovetail@localhost/jobs",
        "postgresql://dovetail@localhost",
        "postgresql://localhost/jobs",
        "postgresql://dovetail:secret@localhost:port/jobs",
        "sqlite://",
        "://",
        "postgresql://dovetail:secret@localhost/jobs?colour=red",
        "postgresql://dovetail:secret@localhost/jobs?sslmode=require",
        "postgresql://dovetail:secret@localhost/jobs?sslrootcert=authority.pem",
        "postgresql://dovetail:secret@localhost/jobs?sslmode=verify-full&sslrootcert=nothing.pem",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(place: str) -> None:
    with pytest.raises(SettingError, match="URL") as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(SettingError, match=r"pip install 'dovetail\[postgres\]'"):
        open_store("postgresql://dovetail@localhost/jobs")


@pytest.mark.parametrize("inside", ["missing/coordinator.db", "."])
def test_a_place_that_cannot_hold_a_file_is_refused(inside: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be opened"):
        open_store(tmp_path / inside)


def test_a_file_can_be_named_by_a_url(path: Path) -> None:
    with open_store(f"sqlite:///{path}") as store:
        kept = store.add(SPRING)
    with open_store(str(path)) as store:
        assert store.get("spring") == kept


def test_what_the_server_refuses_is_said(postgres: Server) -> None:
    with pytest.raises(SettingError, match="refuses the user or the password"):
        open_store(postgres.url("nobody"))
    with pytest.raises(SettingError, match="does not exist on that server"):
        open_store(postgres.url(database="nothing"))
    postgres.run("CREATE ROLE reader LOGIN")
    with pytest.raises(SettingError, match="does not allow its user to make or write tables"):
        open_store(postgres.url("reader"))


# --- databases that fail


def test_a_file_that_another_process_holds_is_not_waited_for_for_ever(path: Path) -> None:
    with open_store(path, lock_timeout=0.05) as store:
        kept = store.add(SPRING)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransportError, match="another process; nothing was changed"):
            store.append_event("spring", "round")
        with pytest.raises(TransportError, match="another process"):
            open_store(path, lock_timeout=0)
        assert store.get("spring") == kept
        holder.execute("ROLLBACK")
        holder.close()
        assert store.append_event("spring", "round") == 1


def test_a_row_that_another_process_holds_is_not_waited_for_for_ever(url: str) -> None:
    with open_store(url, lock_timeout=0.05) as store:
        store.add(SPRING)
        other = Database(url)
        with other.write() as connection:
            connection.execute(sa.text("UPDATE jobs SET state = 'approved'"))
            with pytest.raises(TransportError, match="another process; nothing was changed"):
                store.change("spring", "proposed", state="failed", reason="")
            assert store.get("spring").state == "proposed"
        assert store.change("spring", "approved", state="running").state == "running"
        other.close()


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("53100", DataError, "the disk is full"),
        ("25006", DataError, "may not be written"),
        ("XX001", DataError, "is damaged"),
        ("40P01", TransportError, "another process"),
        ("57P01", TransportError, "does not answer"),
        ("22012", DataError, "cannot be read or written"),
    ],
)
def test_what_the_server_reports_is_said_in_words_of_ours(
    code: str, kind: type[DovetailError], message: str, url: str, postgres: Server
) -> None:
    with open_store(url) as store:
        store.add(SPRING)
        postgres.run(
            "CREATE FUNCTION report() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE 'spring and 4711' USING ERRCODE = '{code}'; END $$",
            "CREATE TRIGGER report BEFORE INSERT ON events EXECUTE FUNCTION report()",
            url=url,
        )
        with pytest.raises(kind, match=message) as caught:
            store.append_event("spring", "round")
        assert type(caught.value) is kind
        assert "4711" not in str(caught.value)
        postgres.run("DROP TRIGGER report ON events", url=url)
        assert store.append_event("spring", "round") > 0


def test_a_server_that_went_away_is_found_again(url: str, postgres: Server) -> None:
    with open_store(url) as store:
        kept = store.add(SPRING)
        store.claim("coordinator")
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(TransportError, match="the database does not answer; trying"):
                    store.get("spring")
            with pytest.raises(TransportError, match="the claim on the database was lost"):
                store.renew()
            with pytest.raises(TransportError, match="does not answer"):
                store.claim("coordinator")
            with pytest.raises(TransportError, match="does not answer"):
                open_store(url)
        finally:
            postgres.start()
        assert store.get("spring") == kept
        store.claim("coordinator")
        store.renew()


def test_a_session_that_was_ended_costs_one_change_at_most(url: str, postgres: Server) -> None:
    with open_store(url) as store:
        store.add(SPRING)
        store.claim("coordinator")
        sessions = f"FROM pg_stat_activity WHERE usename = '{user_of(url)}'"
        postgres.run(f"SELECT pg_terminate_backend(pid) {sessions}")
        assert store.append_event("spring", "round") == 1
        with pytest.raises(TransportError, match="claim on the database was lost"):
            store.renew()


def test_a_frozen_server_is_not_waited_for_for_ever(
    url: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_NETWORK_TIMEOUT", 0.3)
    with open_store(url, lock_timeout=0.1) as store:
        store.add(SPRING)
        ((session,),) = postgres.run(
            f"SELECT pid FROM pg_stat_activity WHERE usename = '{user_of(url)}'"
        )
        assert isinstance(session, int)
        os.kill(session, signal.SIGSTOP)
        try:
            with pytest.raises(TransportError, match="does not answer"):
                store.get("spring")
        finally:
            os.kill(session, signal.SIGCONT)
        assert store.get("spring").state == "proposed"


def test_a_damaged_file_is_found(path: Path) -> None:
    with open_store(path) as store:
        store.add(SPRING)
        for i in range(200):
            store.append_event("spring", "round", i)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'coordinator\.db' is damaged"), open_store(path) as store:
        store.events()
    path.write_bytes(b"this is no database, but a text " * 200)
    with pytest.raises(DataError, match="is damaged, or is no database"):
        open_store(path)


@pytest.mark.parametrize("damage", ["request = 'customer 4711'", "request = '[]'"])
def test_a_record_that_is_no_json_is_damage(
    damage: str, place: str | Path, postgres: Server
) -> None:
    with open_store(place) as store:
        store.add(SPRING)
        run(place, f"UPDATE jobs SET {damage}", postgres)
        with pytest.raises(DataError, match="the database is damaged") as caught:
            store.get("spring")
    assert "4711" not in str(caught.value)


def test_rounds_that_contradict_each_other_cannot_be_written(
    place: str | Path, postgres: Server
) -> None:
    with open_store(place) as store:
        kept = store.add(SPRING)
        for change in ("rounds_done = 1", "round_asked = 2", "lost_rounds = -1"):
            with pytest.raises((sqlite3.IntegrityError, sa.exc.DBAPIError)):
                run(place, f"UPDATE jobs SET {change}", postgres)
        assert store.get("spring") == kept


def test_a_lock_file_that_was_removed_is_no_claim(path: Path) -> None:
    with open_store(path) as store:
        store.claim("coordinator")
        lock = path.with_name("coordinator.db.lock")
        assert lock.stat().st_mode & 0o777 == 0o600
        lock.unlink()
        with pytest.raises(TransportError, match="claim on the database was lost"):
            store.renew()
        store.claim("coordinator")
        store.renew()
        shutil.rmtree(path.parent)


# --- TLS to PostgreSQL


class TlsFront:
    """A server that speaks TLS for one that does not, on a port of the loopback."""

    def __init__(self, context: ssl.SSLContext, behind: Path) -> None:
        self._context, self._behind = context, behind
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
                client.recv(8)
                client.sendall(b"S")
                secured = self._context.wrap_socket(client, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            behind = socket.socket(socket.AF_UNIX)
            behind.connect(str(self._behind))
            for source, target in ((secured, behind), (behind, secured)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def test_a_server_must_have_the_certificate_that_its_url_asks_for(
    url: str, postgres: Server, tmp_path: Path
) -> None:
    for name in ("server", "other"):
        key = new_tls_key()
        encoded = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (tmp_path / f"{name}.key").write_bytes(encoded)
        made = certificate_of(key, name, datetime.now(UTC), hosts=["localhost"])
        (tmp_path / f"{name}.pem").write_bytes(made)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    front = TlsFront(context, postgres.socket)
    to = f"postgresql://{user_of(url)}@localhost:{front.port}/postgres?sslmode=verify-full"
    with open_store(f"{to}&sslrootcert={tmp_path / 'server.pem'}") as store:
        assert store.add(SPRING).job == "spring"
    for trusted in (f"&sslrootcert={tmp_path / 'other.pem'}", ""):
        with pytest.raises(SettingError, match="certificate is not the one that its URL asks for"):
            open_store(to + trusted)
    front.close()


def test_a_server_without_tls_is_refused_where_its_url_asks_for_it(url: str) -> None:
    with pytest.raises(SettingError, match="does not speak TLS, and its URL asks for it"):
        open_store(url + "&sslmode=verify-full")


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(65536):
            target.sendall(content)
    except OSError:
        pass
    finally:
        target.close()
