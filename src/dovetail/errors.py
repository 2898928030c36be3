"""Every exception Dovetail raises on purpose.

::

    DovetailError
    ├── SettingError          a file, option or argument cannot be used; says how to mend it
    ├── AgreementError        the terms themselves are unusable
    ├── PolicyError           a request was refused; names the rule
    ├── SchemaError           a table does not fit what was declared; names the column
    ├── DataError             a source cannot be read
    ├── LedgerError           the ledger is damaged, or was asked for something it may never do
    ├── PrivacyError          a guarantee cannot be stated: unknown event, bound not finite, bad δ
    ├── ProtocolError
    │   ├── LocalProtocolError    we would have broken the protocol
    │   ├── RemoteProtocolError   they broke it
    │   └── TooManyDropouts       too few parties are left to go on
    └── TransportError        nothing was decided; trying again is reasonable

Between companies an error message is a release: messages carry rules, columns, settings and party
names. They never carry a value from a row, nor a count that is not bucketed.
"""

from __future__ import annotations


class DovetailError(Exception):
    """Root of the tree; ``str(error)`` is safe to send to another company."""


class SettingError(DovetailError):
    """A file, option or argument cannot be used; the message says how to mend it."""


class AgreementError(DovetailError):
    """The terms are unusable."""


class PolicyError(DovetailError):
    """A request was refused.

    Attributes:
        rule: the rule that refused it, one word of ``dovetail.agreement.policy.RULES``.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class SchemaError(DovetailError):
    """A table or schema does not fit what was declared.

    Attributes:
        column: the column concerned, or ``None`` where the whole table is.
    """

    def __init__(self, message: str, column: str | None = None) -> None:
        super().__init__(f"column {column!r}: {message}" if column else message)
        self.column = column


class DataError(DovetailError):
    """A source cannot be read."""


class LedgerError(DovetailError):
    """The ledger is damaged, or was asked for something it may never do."""


class PrivacyError(DovetailError):
    """A privacy guarantee cannot be stated for what was asked."""


class ProtocolError(DovetailError):
    """A message that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """This side would have broken the protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class TooManyDropouts(ProtocolError):  # noqa: N818 - the field's word
    """Too few parties are left to go on."""


class TransportError(DovetailError):
    """A message could not be delivered; nothing was decided."""


INTERNAL_ERROR = 1000
"""Code of a failure that was not foreseen; its text never says more than that."""

_CODES: dict[type[DovetailError], int] = {
    DovetailError: 1001,
    SettingError: 1002,
    AgreementError: 1003,
    PolicyError: 1004,
    SchemaError: 1005,
    DataError: 1006,
    LedgerError: 1007,
    PrivacyError: 1008,
    ProtocolError: 1009,
    LocalProtocolError: 1010,
    RemoteProtocolError: 1011,
    TooManyDropouts: 1012,
    TransportError: 1013,
}
_SEEN_FROM_HERE: dict[type[DovetailError], type[DovetailError]] = {
    LocalProtocolError: RemoteProtocolError,
    RemoteProtocolError: LocalProtocolError,
}
_CLASSES = {code: _SEEN_FROM_HERE.get(kind, kind) for kind, code in _CODES.items()}
_MAX_REASON = 500


def error_code(error: BaseException) -> int:
    """The number by which an error travels; ``INTERNAL_ERROR`` where it was not foreseen."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), INTERNAL_ERROR)


def error_text(error: BaseException) -> str:
    """The text by which an error travels: its own where that was made to be read by others."""
    return readable(str(error)) if isinstance(error, DovetailError) else "internal error"


def error_from(code: int, text: str) -> DovetailError | None:
    """The error that travelled, as this side sees it; ``None`` where no error has this code.

    A protocol error changes sides: what they call remote is ours. The text was written by another
    company: it is cut to length and to printable characters, and believed no further.
    """
    kind = _CLASSES.get(code)
    if kind is PolicyError:
        rule, _, message = readable(text).partition(": ")
        return PolicyError(rule, message)
    return kind(readable(text)) if kind else None


def readable(text: str) -> str:
    """What another company wrote, cut to length and to printable characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_REASON])
