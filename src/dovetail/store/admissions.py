"""Who asked for the jobs that were admitted here, and over which columns, until they end.

A round brings its request and not who asked for it; and terms may be amended while a job runs. What
a node must know to judge a running job again is one small file for each, ``JOB.json``. The ledger
does not hold it: that holds spending, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dovetail.agreement.record import Fields
from dovetail.agreement.request import Request, require_job
from dovetail.agreement.signing import SignedRequest, request_from_record, request_record
from dovetail.agreement.terms import Terms
from dovetail.crypto import canonical
from dovetail.errors import DataError
from dovetail.store.whole_file import write_whole


@dataclass(frozen=True)
class Admitted:
    """A job as it was admitted.

    Attributes:
        signed: the request, who asked and under which terms.
        schema_digest: of what the terms declared of its columns, as :func:`schema_digest` has it.
    """

    signed: SignedRequest
    schema_digest: str


def schema_digest(request: Request, terms: Terms) -> str:
    """SHA-256 in hex of what the terms declare of a request's features, of the label and of rows.

    Raises:
        SchemaError: the request names columns that the terms do not declare.
    """
    return canonical.digest(terms.schema.select(request.task.features).to_record())


class Admissions:
    """The jobs that are admitted at one partner; several processes may use one folder."""

    def __init__(self, folder: Path | None) -> None:
        """Opens the folder.

        Args:
            folder: made with mode 0700 where it is missing; ``None`` keeps all in memory only.

        Raises:
            DataError: it cannot be written.
        """
        self._folder = folder
        self._kept: dict[str, Admitted] = {}
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None

    def note(self, admitted: Admitted) -> None:
        """Keeps a job, in the place of what was kept of it before.

        Raises:
            DataError: it cannot be written.
        """
        job = admitted.signed.request.job
        path = self._path(job)
        if path is None:
            self._kept[job] = admitted
            return
        record = vars(admitted) | {"signed": request_record(admitted.signed)}
        try:
            write_whole(path, json.dumps(record, indent=2, ensure_ascii=False).encode(), mode=0o600)
        except OSError as error:
            raise _unwritable(path, error) from None

    def admitted(self, job: str) -> Admitted | None:
        """A job as it was admitted; ``None`` where it was not, or has ended.

        Raises:
            DataError: its file cannot be read.
            SettingError: its file is not what :meth:`note` wrote, or ``job`` cannot name a job.
        """
        path = self._path(job)
        if path is None:
            return self._kept.get(job)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise DataError(f"{path.name!r} among this node's jobs cannot be read") from None
        read = Fields(record, path.name, tuple(Admitted.__dataclass_fields__))
        return Admitted(request_from_record(read.raw("signed")), read.text("schema_digest"))

    def forget(self, job: str) -> None:
        """Lets go of a job that has ended; does nothing where it is not kept.

        Raises:
            DataError: it cannot be deleted.
        """
        path = self._path(job)
        if path is None:
            self._kept.pop(job, None)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None

    def _path(self, job: str) -> Path | None:
        require_job(job)
        return None if self._folder is None else self._folder / f"{job}.json"


def _unwritable(path: Path | None, error: OSError) -> DataError:
    name = path.name if path else ""
    return DataError(f"{name!r} among this node's jobs cannot be written ({error.strerror})")
