"""A node.toml to fill in."""

from __future__ import annotations

import json
from pathlib import Path

from dovetail.errors import SettingError

_TEXT = """\
# A Dovetail node. Paths are relative to this file; `dovetail node check` says what is missing.

name = "{name}"                       # as the agreement names this partner

[source]                              # where this partner's table is; one of three ways:
files = "customers.csv"               # a file, a glob or a folder, of Parquet or CSV
# query = "SELECT * FROM visits"      # or SQL over named files
# tables = {{ visits = "visits.csv" }}
# database = "postgresql://reader@localhost/shop"   # or PostgreSQL; the password: PGPASSWORD
# query = "SELECT * FROM visits"

# [columns]                           # the agreement's column = this table's column
# household_id = "hh_key"

# [policy]                            # this partner's own rules; they only tighten the agreement
# approval = "manual"                 # a person here says yes to each job
# max_epsilon_per_job = 2.0
# max_concurrent_jobs = 1
# refused_purposes = []
# refused_columns = []

# [limits]                            # of one round of training
# seconds = 600
# memory_mb = 4000
# threads = 1
"""


def write_settings(path: Path, name: str, files: Path, further: str = "") -> None:
    """Writes a node.toml for a table in files; ``further`` holds other tables of it, as TOML.

    Raises:
        SettingError: there is one already, or it cannot be written.
    """
    source = json.dumps(str(files.absolute()))  # a TOML string too
    _write(path, f'name = "{name}"\n\n[source]\nfiles = {source}\n{further}')


def write_template(path: Path, name: str) -> None:
    """Writes a node.toml that names this partner and explains every key.

    Raises:
        SettingError: there is one already, or it cannot be written.
    """
    _write(path, _TEXT.format(name=name))


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingError(f"{path}: there is a node already") from None
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror})") from None
