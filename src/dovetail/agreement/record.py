"""Reads plain data strictly: the same for a file of ours and for a message from another company.

A record is what JSON or TOML parses to. Every field must be there, be of its type and finite, and
nothing else may be there: a field that is silently ignored is a term that one side believes in.
Messages name fields, types and choices, never what stood in a field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TypeVar, cast

from dovetail.errors import SettingError
from dovetail.schema import did_you_mean

_Choice = TypeVar("_Choice", bound=str)

LARGEST_WHOLE = 2**53 - 1
"""Largest whole number that RFC 8785 can carry."""
LONGEST_TEXT = 500
LONGEST_LIST = 10_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Fields:
    """The fields of one record.

    Attributes:
        where: what the record is, for messages ("request.task").
    """

    def __init__(self, record: object, where: str, names: Sequence[str]) -> None:
        """Take ``record``, which must have exactly the fields ``names``.

        Raises:
            SettingError: it is no table, or a field is missing or unknown.
        """
        if not isinstance(record, Mapping):
            raise SettingError(f"{where}: expected a table of fields")
        for name in record:
            if name not in names:
                raise SettingError(f"{where}: unknown field {_shown(name)}{_nearest(name, names)}")
        for name in names:
            if name not in record:
                raise SettingError(f"{where}: field {name!r} is missing")
        self.where = where
        self._record = cast("Mapping[str, object]", record)

    def has(self, name: str) -> bool:
        """Whether the field is there, for records that may leave some out."""
        return name in self._record

    def raw(self, name: str) -> object:
        """The field as it is, for a reader of its own."""
        return self._record[name]

    def text(self, name: str) -> str:
        """A text that is not empty and fits on a page."""
        return self._text(name, self._record[name])

    def choice(self, name: str, choices: Sequence[_Choice]) -> _Choice:
        """One of ``choices``."""
        return self._choice(name, self._record[name], choices)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._record[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(name, "must be finite")
        return number

    def whole(self, name: str) -> int:
        """A whole number that JSON carries exactly."""
        return self._whole(name, self._record[name])

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._record[name]
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def day(self, name: str) -> date:
        """A calendar day: TOML's own, or text as ISO 8601 writes it."""
        value = self._record[name]
        if type(value) is date:
            return value
        try:
            return date.fromisoformat(value if isinstance(value, str) else "")
        except ValueError:
            raise self.error(name, "must be a day such as 2024-05-31") from None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, each once."""
        return self._each_once(name, [self._text(name, item) for item in self.items(name)])

    def choices(self, name: str, choices: Sequence[_Choice]) -> tuple[_Choice, ...]:
        """A list of some of ``choices``, each once."""
        found = [self._choice(name, item, choices) for item in self.items(name)]
        return self._each_once(name, found)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        return tuple(self._whole(name, item) for item in self.items(name))

    def items(self, name: str) -> Sequence[object]:
        """A list of anything, of bounded length."""
        value = self._record[name]
        if not isinstance(value, list | tuple):
            raise self.error(name, "must be a list")
        if len(value) > LONGEST_LIST:
            raise self.error(name, f"has more than {LONGEST_LIST} items")
        return value

    def error(self, name: str, message: str) -> SettingError:
        """What to raise for this field."""
        return SettingError(f"{self.where}: {name} {message}")

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "must be text, and not empty")
        if len(value) > LONGEST_TEXT or not value.isprintable():
            raise self.error(name, f"must be printable and at most {LONGEST_TEXT} characters long")
        return value

    def _choice(self, name: str, value: object, choices: Sequence[_Choice]) -> _Choice:
        word = self._text(name, value)
        for choice in choices:
            if word == choice:
                return choice
        known = ", ".join(choices)
        raise self.error(name, f"must be one of {known}{_nearest(word, choices)}")

    def _whole(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "must be a whole number")
        if abs(value) > LARGEST_WHOLE:
            raise self.error(name, "is too large")
        return value

    def _each_once(self, name: str, found: list[_Choice]) -> tuple[_Choice, ...]:
        if len(set(found)) != len(found):
            raise self.error(name, "names something twice")
        return tuple(found)


def require(condition: bool, message: str) -> None:
    """Raise ``SettingError(message)`` unless ``condition`` holds."""
    if not condition:
        raise SettingError(message)


def positive(value: float) -> bool:
    """Whether a number is above 0 and finite."""
    return math.isfinite(value) and value > 0


def is_digest(text: str) -> bool:
    """Whether a text is 64 hexadecimal digits in lower case, as digests, keys and pins are."""
    return _DIGEST.fullmatch(text) is not None


def _shown(name: object) -> str:
    text = str(name)
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _nearest(word: object, choices: Sequence[str]) -> str:
    return did_you_mean(str(word)[:LONGEST_TEXT], choices)
