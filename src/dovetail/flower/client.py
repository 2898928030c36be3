"""A node's side of Flower: actions as a ``ClientApp`` whose failures say nothing they should not.

Stock Flower answers a failure with ``str(exception)``, which for an error in data is a leak. Here
an error that Dovetail raised on purpose travels as its class and its text, both made to be read by
another company, and anything else as "internal error"; its traceback stays in the node's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from dovetail.errors import (
    AgreementError,
    DataError,
    DovetailError,
    LedgerError,
    LocalProtocolError,
    PolicyError,
    PrivacyError,
    ProtocolError,
    RemoteProtocolError,
    SchemaError,
    SettingError,
    TooManyDropouts,
    TransportError,
)
from dovetail.flower import codec
from dovetail.flower.records import array_record, named_arrays

Action = Callable[[Message, Context], Message]
"""What a node does with one kind of message."""

INTERNAL_ERROR = 1000
"""Code of a failure that was not foreseen; its reason never says more than that."""

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
_logger = logging.getLogger(__name__)


def client_app(actions: Mapping[str, Action]) -> ClientApp:
    """A Flower client app with these actions.

    Args:
        actions: by message type: ``train``, ``evaluate`` or ``query``, each optionally followed
            by a dot and a name of its own.

    Guarantees:
        No text of an exception leaves the app but that of a ``DovetailError``, whoever runs it:
        our channels, Flower's simulation engine or a SuperNode.
    """
    app = ClientApp()
    registrars = {"train": app.train, "evaluate": app.evaluate, "query": app.query}
    for message_type, action in actions.items():
        category, _, name = message_type.partition(".")
        register = registrars[category]
        (register(name) if name else register())(_guarded(action))
    return app


def answer(app: ClientApp, context_of: Callable[[Message], Context], data: bytes) -> bytes:
    """What a channel's handler does with a request: decode, act, encode.

    Args:
        app: the node's app.
        context_of: the context in which the node treats a message; where state lives on from
            round to round, the same one each time.
        data: the request.

    Raises:
        RemoteProtocolError: ``data`` is not a message, so that there is nobody to reply to.
    """
    message = codec.decode(data)
    act = _guarded(lambda request, _: app(request, context_of(request)))
    try:
        return codec.encode(act(message, _NOWHERE))
    except LocalProtocolError as error:
        return codec.encode(error_reply(error, message))


def error_reply(error: Exception, request: Message) -> Message:
    """The reply that says why a request failed, and no more than the other side may read."""
    if not isinstance(error, DovetailError):
        return Message(Error(INTERNAL_ERROR, "internal error"), reply_to=request)
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    return Message(Error(code, _readable(str(error))), reply_to=request)


def error_from_reply(reply: Message) -> DovetailError:
    """The error that a node answered with, as the coordinator sees it.

    A protocol error changes sides: what a node calls remote is ours. The reason was written by
    another company: it is cut to length and to printable characters, and believed no further.
    """
    reason = _readable(reply.error.reason or "no reason given")
    kind = _CLASSES.get(reply.error.code)
    if kind is PolicyError:
        rule, _, message = reason.partition(": ")
        return PolicyError(rule, message)
    if kind is not None:
        return kind(reason)
    if reply.error.code == INTERNAL_ERROR:
        return RemoteProtocolError("internal error at the node")
    return TransportError("the node's app could not be run")


def new_context(
    node_id: int,
    node_config: Mapping[str, bool | float | int | str],
    run_config: Mapping[str, bool | float | int | str],
    *,
    run_id: int = 1,
) -> Context:
    """A context without state, as a node keeps one for each job."""
    return Context(run_id, node_id, dict(node_config), RecordDict(), dict(run_config))


def put_state(context: Context, name: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Keeps arrays, of an optimiser say, in the context from round to round."""
    context.state[name] = array_record(arrays)


def get_state(context: Context, name: str) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays that :func:`put_state` kept, not writable; ``None`` where there are none."""
    if name not in context.state:
        return None
    return named_arrays(context.state.array_records[name])


_NOWHERE = new_context(0, {}, {})


def _guarded(action: Action) -> Action:
    def guarded(message: Message, context: Context) -> Message:
        try:
            return action(message, context)
        except DovetailError as error:
            return error_reply(error, message)
        except Exception as error:
            _logger.exception("a message of type %r failed", message.metadata.message_type)
            return error_reply(error, message)

    return guarded


def _readable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_REASON])
