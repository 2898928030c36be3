"""A released model in a folder: its arrays, and a card that says what it is and what it cost.

``model.safetensors`` holds the arrays, ``card.json`` the card for programs and ``card.md`` the same
for people. Each file is written beside its place and then renamed into it, the card last; since the
card names the arrays by their digest, a folder in which that was interrupted is refused. Only a
:class:`~dovetail.privacy.release.Release` can be saved, under the card that it was charged for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.record import require
from dovetail.errors import DataError, SettingError
from dovetail.privacy.release import Release
from dovetail.store.card import (
    ARRAYS_FILE,
    CARD_FILE,
    ModelCard,
    card_from_record,
    card_with_arrays,
    page,
)
from dovetail.store.whole_file import write_whole

Arrays = Mapping[str, npt.NDArray[np.float32]]

PAGE_FILE = "card.md"


def save_model(folder: Path, release: Release, card: ModelCard) -> None:
    """Write a released model into ``folder``, in place of one that is there.

    Args:
        folder: made where it is missing.
        release: whose value holds float32 arrays by the names and of the shapes that the card's
            request asks for.
        card: what the model is.

    Raises:
        SettingError: the release is of another job, or was charged otherwise than the card says;
            or its arrays do not fit the card.
        DataError: the folder cannot be written.

    Guarantees:
        What is written was released, and the card's ε is computed from what was charged for it.
    """
    _check_release(release, card)
    _check_arrays(release.value, card)
    content = _packed(release.value)
    _write(folder, content, card, hashlib.sha256(content).hexdigest())


def card_for(release: Release, card: ModelCard) -> dict[str, object]:
    """The card of a released model as a record that travels with its arrays.

    Raises:
        SettingError: as :func:`save_model`.
    """
    _check_release(release, card)
    return card_with_arrays(card, hashlib.sha256(_packed(release.value)).hexdigest())


def save_received(folder: Path, record: object, arrays: Arrays) -> ModelCard:
    """Write a model that another company released and sent, with its card.

    Raises:
        SettingError: the card cannot be understood, or the arrays do not fit it.
        DataError: the arrays are not the ones that the card describes, or the folder cannot be
            written.
    """
    card, digest = card_from_record(record)
    _check_arrays(arrays, card)
    content = _packed(arrays)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError("the arrays are not the ones that the card describes")
    _write(folder, content, card, digest)
    return card


def require_no_other(folder: Path, record: object) -> None:
    """Do nothing if no model is kept in a folder, or this very one, released on whichever day.

    Args:
        folder: as for :func:`save_received`.
        record: the card of the model that came, which names its arrays by their digest.

    Raises:
        SettingError: another model is kept there, or a card cannot be understood.
        DataError: the card that is kept cannot be read.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{CARD_FILE} in {folder.name!r} cannot be read") from None
    (card, digest), (came, other) = card_from_record(kept), card_from_record(record)
    same = (replace(came, released=card.released), other) == (card, digest)
    require(same, f"another model is kept as {folder.name!r}")


def save_fetched(folder: Path, record: object, content: bytes) -> ModelCard:
    """Write a model whose arrays came as the bytes of a file, with its card.

    Raises:
        SettingError, DataError: as :func:`save_received`.
    """
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise DataError("the model that came is damaged") from None
    return save_received(folder, record, arrays)


def load_model(folder: Path) -> tuple[dict[str, npt.NDArray[np.float32]], ModelCard]:
    """Read a model that :func:`save_model` wrote.

    Raises:
        DataError: a file cannot be read, or the arrays are not the ones that the card describes.
        SettingError: the card cannot be understood, or the arrays do not fit it.
    """
    try:
        record = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        content = (folder / ARRAYS_FILE).read_bytes()
    except OSError as error:
        message = f"the model folder {folder.name!r} cannot be read ({error.strerror})"
        raise DataError(message) from None
    except ValueError:
        raise DataError(f"{CARD_FILE} in {folder.name!r} is not JSON") from None
    card, digest = card_from_record(record)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{ARRAYS_FILE} in {folder.name!r} is not the model its card describes")
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise DataError(f"{ARRAYS_FILE} in {folder.name!r} is damaged") from None
    _check_arrays(arrays, card)
    return arrays, card


def _check_release(release: Release, card: ModelCard) -> None:
    event, origin = cost_of(card.request.task, card.terms).event, release.provenance
    require(
        (origin.job, origin.request_digest, origin.terms_digest)
        == (card.request.job, requests.digest(card.request), agreed.digest(card.terms)),
        "the release is not of the job and the terms that the card describes",
    )
    charged = {name: {event: count} for name, count in card.charged.items()}
    require(
        release.spending == charged and release.delta == card.terms.budget.delta,
        "the release was charged otherwise than the card says",
    )


def _check_arrays(arrays: Arrays, card: ModelCard) -> None:
    task = card.request.task
    wanted = {
        parameter.name: parameter.shape
        for parameter in task.model.parameters(card.terms.schema.select(task.features))
    }
    found = {name: array.shape for name, array in arrays.items()}
    if found != wanted:
        raise SettingError("the arrays are not those of the model that the card describes")
    for name, array in arrays.items():
        require(array.dtype == np.float32, f"array {name!r} is not float32")
        require(math.isfinite(float(np.abs(array).sum())), f"array {name!r} is not finite")


def _packed(arrays: Arrays) -> bytes:
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    packed: bytes = safetensors.numpy.save(ordered)
    return packed


def _write(folder: Path, content: bytes, card: ModelCard, digest: str) -> None:
    record = card_with_arrays(card, digest)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ARRAYS_FILE, content)
        write_whole(folder / PAGE_FILE, page(card).encode())
        write_whole(folder / CARD_FILE, text.encode())
    except OSError as error:
        message = f"the model folder {folder.name!r} cannot be written ({error.strerror})"
        raise DataError(message) from None
