"""An agreement's files: read strictly, and reported by name where they cannot be used.

============================== =====================================================
``spring.toml``                the terms; anyone may read them
``schema.toml``                the table, where the terms name this file
``spring.retailer.signature``  retailer's yes, JSON
``retailer.request``           the keys of an invited party, JSON
``coordinator.party``          the coordinator's own, JSON
``access.json``                in a folder of keys: where the coordinator is reached
============================== =====================================================
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dovetail.agreement import terms as agreed
from dovetail.agreement.enrolment import (
    Access,
    EnrolmentRequest,
    Invitation,
    access_from_record,
    check_request,
    digest_of,
    invitation_from_record,
    request_from_record,
)
from dovetail.agreement.party import Party, party_from_record
from dovetail.agreement.signing import TERMS, Signature, SignedTerms, signature_from_record
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.agreement.trusted import TrustedTerms
from dovetail.crypto.keys import verify
from dovetail.errors import (
    AgreementError,
    DovetailError,
    RemoteProtocolError,
    SchemaError,
    SettingError,
)
from dovetail.schema import load_schema

SIGNATURE, REQUEST, COORDINATOR = ".signature", ".request", "coordinator.party"
ACCESS = "access.json"
LARGEST_FILE = 4_000_000
"""Most bytes of a file that is read here; few need more than some thousand."""

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class SignedFile:
    """Terms and what was found beside them.

    Attributes:
        signed: the terms, with the signatures that fit them.
        unusable: why each other file that is named like a signature of theirs was left out.
    """

    signed: SignedTerms
    unusable: tuple[str, ...]


@dataclass(frozen=True)
class Parties:
    """The public keys of all who will sign.

    Attributes:
        coordinator: the coordinator itself.
        enrolled: the requests of everybody else.
    """

    coordinator: Party
    enrolled: tuple[EnrolmentRequest, ...]


def load_terms(path: Path) -> Terms:
    """Read terms from a TOML file; ``schema`` is a table, or the name of a file beside this one.

    Raises:
        SettingError: a file cannot be read, or what it says cannot be agreed on.
    """
    return terms_of_toml(read_text(path), path)


def terms_of_toml(text: str, path: Path) -> Terms:
    """The terms in a text.

    Args:
        text: TOML.
        path: where it stands or will stand; a schema of its own file lies in the same folder.

    Raises:
        SettingError: what it says cannot be agreed on.
    """
    try:
        record, name = tomllib.loads(text), schema_file(text)
        if name is not None:
            record["schema"] = load_schema(path.parent / name).to_record()
        return parse_terms(record)
    except (SettingError, SchemaError) as error:
        raise SettingError(f"{path.name}: {error}") from None
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
        raise SettingError(f"{path.name}: is not TOML: {error}") from None


def schema_file(text: str) -> str | None:
    """The file that holds the schema of terms in TOML, or ``None`` where they hold it themselves.

    Raises:
        SettingError: the file does not lie in the same folder.
        ValueError: the text is not TOML.
    """
    name = tomllib.loads(text).get("schema")
    if not isinstance(name, str):
        return None
    if not name.isprintable() or Path(name).name != name or name in ("", ".."):
        raise SettingError("terms: schema must be the name of a file in the same folder")
    return name


def read_signed(path: Path, previous: Terms | None = None) -> SignedTerms:
    """Terms, and the signatures beside them that fit; see :func:`signed_file`."""
    return signed_file(path, previous).signed


def signed_file(path: Path, previous: Terms | None = None) -> SignedFile:
    """Terms, and all signatures beside them.

    Args:
        path: of the terms.
        previous: the version before, if known: a party whose key changes signs with both.

    Raises:
        SettingError: the terms, or their folder, cannot be read.

    Guarantees:
        Every signature that is returned was made over exactly these terms, by a key that they or
        ``previous`` pin for the party that it names. Whether all have signed is another question:
        :meth:`~dovetail.agreement.signing.SignedTerms.missing`.
    """
    terms = load_terms(path)
    good, unusable = [], []
    for file in _files(path.parent, SIGNATURE):
        try:
            good.append(_fitting(file, terms, previous))
        except DovetailError as error:
            if file.name.startswith(f"{path.stem}."):
                unusable.append(str(error))
    return SignedFile(SignedTerms(terms, tuple(good)), tuple(unusable))


def require_follows(signed: SignedTerms, path: Path) -> None:
    """Do nothing if whoever holds the terms in a file would go on to these.

    Raises:
        SettingError: the file cannot be read.
        AgreementError: not all have signed what is in the file, or these terms cannot follow it.
    """
    trusted = TrustedTerms()
    try:
        trusted.update(read_signed(path))
    except AgreementError as error:
        raise AgreementError(f"{path.name}: {error}") from None
    try:
        trusted.update(signed)
    except AgreementError as error:
        raise AgreementError(f"it cannot follow {path.name}: {error}") from None


def read_history(paths: Sequence[Path], held: Iterable[SignedTerms] = ()) -> list[SignedTerms]:
    """The versions held and those in files, each with the signatures beside it that fit.

    Args:
        paths: of the terms of one or more versions, in any order.
        held: versions that are known already, oldest first.

    Returns:
        The history, oldest first. A file of a version that is held takes its place, so that who
        follows the history finds out whether it is another one.

    Raises:
        SettingError: a file cannot be read, or two of them are of one version.
    """
    history = {signed.terms.version: signed for signed in held}
    files = {load_terms(path).version: path for path in paths}
    if len(files) < len(paths):
        raise SettingError("two of the files hold the same version of the agreement")
    for version in sorted(files):
        before = history.get(version - 1)
        history[version] = read_signed(files[version], before.terms if before else None)
    return [history[version] for version in sorted(history)]


def signature_path(path: Path, signature: Signature, terms: Terms) -> Path:
    """Where a party's signature lies: beside the terms, and apart if made with its former key."""
    former = "" if terms.party(signature.party)[0].key == signature.key else "+former"
    return path.with_name(f"{path.stem}.{signature.party}{former}{SIGNATURE}")


def read_parties(folder: Path) -> Parties:
    """The coordinator's own keys and the requests of all others, from one folder.

    Raises:
        SettingError: a file is missing or cannot be read.
        RemoteProtocolError: a request is not signed by its own keys.
    """
    coordinator = _read(folder / COORDINATOR, lambda r: party_from_record(r, "party"))
    return Parties(coordinator, tuple(_own_request(file) for file in _files(folder, REQUEST)))


def read_request(path: Path) -> EnrolmentRequest:
    """The keys of an invited party, as they came; nothing is checked but their form.

    Raises:
        SettingError: the file cannot be read, or is no request.
    """
    return _read(path, request_from_record)


def read_invitation(path: Path) -> Invitation:
    """An invitation.

    Raises:
        SettingError: the file cannot be read, or is no invitation.
    """
    return _read(path, invitation_from_record)


def read_access(folder: Path) -> Access:
    """Where the coordinator is reached, from a folder of keys.

    Raises:
        SettingError: the file is missing or cannot be read.
    """
    return _read(folder / ACCESS, access_from_record)


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        SettingError: it cannot be read, or is too large for one of these files.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SettingError(f"{path.name}: is larger than {LARGEST_FILE:,} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path.name}: is not a UTF-8 text file") from None


def _own_request(file: Path) -> EnrolmentRequest:
    """A request that fits its own keys; whether it was invited is known where tokens are."""
    request = read_request(file)
    try:
        check_request(request, digest_of(request.token))
    except DovetailError as error:
        raise RemoteProtocolError(f"{file.name}: {error}") from None
    return request


def _fitting(file: Path, terms: Terms, previous: Terms | None) -> Signature:
    signature = _read(file, signature_from_record)
    name, parties = signature.party, [p for t in (terms, previous) if t for p, _ in t.parties]
    if name not in [party.name for party, _ in terms.parties]:
        raise AgreementError(f"{file.name}: is from nobody whom these terms name")
    if signature.key not in [party.key for party in parties if party.name == name]:
        raise AgreementError(f"{file.name}: is made with another key than the terms pin for {name}")
    try:
        verify(signature.key, signature.signature, TERMS, agreed.to_record(terms))
    except DovetailError:
        raise AgreementError(
            f"{file.name}: {name} signed other terms than these, such as another version"
        ) from None
    return signature


def _files(folder: Path, ending: str) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.name.endswith(ending))
    except OSError as error:
        raise SettingError(f"{folder.name}: cannot be read ({error.strerror})") from None


def _read(path: Path, reader: Callable[[object], _Read]) -> _Read:
    try:
        record = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise SettingError(f"{path.name}: is not JSON") from None
    try:
        return reader(record)
    except SettingError as error:
        raise SettingError(f"{path.name}: {error}") from None
