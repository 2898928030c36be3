"""The signed terms that a party accepted, in one file of its own, for the next time they are shown.

``agreement.json`` holds all versions with their signatures, oldest first; they are checked anew
whenever they are read. Several processes may use one file: whoever moves on reads what the others
wrote first, so that no version that any of them accepted is lost.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from dovetail.agreement import terms as agreed
from dovetail.agreement.signing import SignedTerms, chain_from_record, chain_record
from dovetail.agreement.trusted import OLDER, TrustedTerms
from dovetail.errors import AgreementError, SettingError
from dovetail.store.whole_file import write_whole

AGREEMENT_FILE = "agreement.json"

_State = tuple[int, int, int] | None


class KeptTerms:
    """What a party relies on, and keeps.

    Guarantees:
        What :attr:`trusted` holds is on the disk, and both only ever move forward: what is kept
        is never replaced but by versions that follow it.
    """

    def __init__(self, path: Path, me: str, key: str) -> None:
        """Reads what was accepted before.

        Args:
            path: of the file; need not be there yet.
            me: the party that relies on the terms; empty for an onlooker.
            key: that party's public key.

        Raises:
            AgreementError: what is kept was not signed by all parties.
            SettingError: the file cannot be read.
        """
        self._path, self._me, self._key = path, me, key
        self._turn = Lock()
        self._state = self._seen()
        self._trusted = TrustedTerms(me, key, self._read())

    @property
    def trusted(self) -> TrustedTerms:
        """What is relied on; another object after :meth:`look` or :meth:`follow` moved on."""
        return self._trusted

    def look(self) -> bool:
        """Reads the file again where another process may have moved on.

        Returns:
            Whether anything was new.

        Raises:
            AgreementError: what lies there cannot follow what is trusted; that stays.
            SettingError: the file cannot be read; the same.
        """
        with self._turn:
            return self._look()

    def follow(self, chain: Iterable[SignedTerms]) -> bool:
        """Moves along a whole history, and keeps it.

        Returns:
            Whether anything was new, in the history or on the disk.

        Raises:
            AgreementError: as :meth:`TrustedTerms.follow`; nothing changes.
            SettingError: the file cannot be read or written; nothing changes.
        """
        with self._turn, self._alone():
            looked = self._look()
            moved = self._with(self._trusted.chain)
            if not moved.follow(chain):
                return looked
            self._write(moved)
            self._trusted = moved
            return True

    def _look(self) -> bool:
        state = self._seen()
        if state is None or state == self._state:
            return False
        self._state = state
        found, held = self._with(self._read()), self._trusted.chain
        if _digests(found.chain[: len(held)]) != _digests(held):
            raise AgreementError(OLDER)
        self._trusted = found
        return len(found.chain) > len(held)

    def _with(self, chain: Iterable[SignedTerms]) -> TrustedTerms:
        return TrustedTerms(self._me, self._key, chain)

    def _seen(self) -> _State:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> tuple[SignedTerms, ...]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError):
            raise SettingError(f"{self._path.name}: cannot be read as JSON") from None
        return chain_from_record(record)

    def _write(self, trusted: TrustedTerms) -> None:
        text = json.dumps(chain_record(trusted.chain), indent=1, ensure_ascii=False)
        try:
            write_whole(self._path, text.encode())
        except OSError as error:
            raise self._unwritable(error) from None
        self._state = self._seen()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While inside, no other process moves on."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _unwritable(self, error: OSError) -> SettingError:
        return SettingError(f"{self._path.name}: cannot be written ({error.strerror})")


def _digests(chain: Iterable[SignedTerms]) -> list[str]:
    return [agreed.digest(signed.terms) for signed in chain]
