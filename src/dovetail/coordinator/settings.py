"""A coordinator's settings, in one TOML file in its folder.

::

    name = "dovetail-coop"              # as the agreement names the coordinator
    listen = "0.0.0.0:7433"             # where to listen
    address = "dovetail.example:7433"   # where partners and analysts find it
    # database = "postgresql://dovetail@db.example/dovetail"    # optional; else a file here
    # metrics = "127.0.0.1:9464"        # optional; Prometheus, on this machine only

Everything else lies beside it under fixed names: ``keys/``, ``parties/``, ``agreement.toml`` and
its signatures, ``jobs.sqlite``, ``checkpoints/``, ``releases/``.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from dovetail.agreement.party import require_name
from dovetail.agreement.record import Fields, require
from dovetail.errors import SettingError

FILE = "coordinator.toml"
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class CoordinatorSettings:
    """Everything a coordinator is told by its operator.

    Attributes:
        name: by which the agreement names it.
        listen: ``host:port`` to listen on.
        address: ``host:port`` under which others find it.
        database: of its jobs: a path or a URL.
        metrics: ``host:port`` of the metrics on this machine; empty for none.
        folder: where everything else lies.
    """

    name: str
    listen: str
    address: str
    database: str
    metrics: str
    folder: Path

    @property
    def keys(self) -> Path:
        """Folder of the coordinator's keys."""
        return self.folder / "keys"

    @property
    def parties(self) -> Path:
        """Folder of who may connect."""
        return self.folder / "parties"

    @property
    def agreement(self) -> Path:
        """The agreement that is being signed, or was."""
        return self.folder / "agreement.toml"

    @property
    def releases(self) -> Path:
        """Folder of released models."""
        return self.folder / "releases"


def load_settings(folder: Path) -> CoordinatorSettings:
    """The settings in a coordinator's folder.

    Raises:
        SettingError: the file cannot be read, or a field is missing, unknown or of another type.
    """
    path = folder / FILE
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path.name}: is not TOML: {error}") from None
    database = record.pop("database", "jobs.sqlite")
    metrics = record.pop("metrics", "")
    read = Fields(record, path.name, ("name", "listen", "address"))
    require_name(read.text("name"))
    require(isinstance(database, str), f"{path.name}: database must be text")
    require(isinstance(metrics, str), f"{path.name}: metrics must be text")
    require(
        not metrics or metrics.rpartition(":")[0] in _LOOPBACK,
        f"{path.name}: metrics are not encrypted and stay on this machine: 127.0.0.1:PORT",
    )
    for name in ("listen", "address"):
        host_and_port(read.text(name), f"{path.name}: {name}")
    return CoordinatorSettings(
        name=read.text("name"),
        listen=read.text("listen"),
        address=read.text("address"),
        database=database if "://" in database else str(folder / database),
        metrics=metrics,
        folder=folder,
    )


def host_and_port(address: str, where: str) -> tuple[str, int]:
    """The two parts of ``host:port``.

    Raises:
        SettingError: it has another form.
    """
    host, _, port = address.rpartition(":")
    named = _HOST.fullmatch(host) is not None
    good = named and port.isascii() and port.isdecimal() and int(port) < 2**16
    require(good, f"{where} must be host:port, such as localhost:7433")
    return host.strip("[]"), int(port)


def write_settings(folder: Path, name: str, listen: str, address: str) -> None:
    """A new coordinator's settings.

    Raises:
        SettingError: there are some already, they cannot be written, or one cannot be used.
    """
    require_name(name)
    for where, place in (("listen", listen), ("address", address)):
        host_and_port(place, where)
    path = folder / FILE
    text = (
        "# A Dovetail coordinator. Paths are relative to this file.\n\n"
        f'name = "{name}"\n'
        f'listen = "{listen}"      # where to listen\n'
        f'address = "{address}"    # where partners and analysts find it\n'
        '# database = "postgresql://dovetail@localhost/dovetail"  # else jobs.sqlite here\n'
        '# metrics = "127.0.0.1:9464"    # Prometheus; this machine only\n'
    )
    require(not path.exists(), f"{path}: there is a coordinator already")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror})") from None
