"""A node's side of Flower: actions as a ``ClientApp`` whose failures say nothing they should not.

Stock Flower answers a failure with ``str(exception)``, which for an error in data is a leak. Here
an error that Dovetail raised on purpose travels as its class and its text, both made to be read by
another company, and anything else as "internal error"; its traceback stays in the node's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from dovetail.errors import (
    INTERNAL_ERROR,
    DovetailError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    error_code,
    error_from,
    error_text,
    readable,
)
from dovetail.flower import codec
from dovetail.flower.records import array_record, named_arrays
from dovetail.wire.channel import Received

Action = Callable[[Message, Context], Message]
"""What a node does with one kind of message."""

_logger = logging.getLogger(__name__)


def client_app(actions: Mapping[str, Action]) -> ClientApp:
    """A Flower client app with these actions.

    Args:
        actions: by message type: ``train``, ``evaluate`` or ``query``, each optionally followed
            by a dot and a name of its own.

    A message of any other kind is refused as a breach of the protocol.

    Guarantees:
        No text of an exception leaves the app but that of a ``DovetailError``, whoever runs it:
        our channels, Flower's simulation engine or a SuperNode.
    """
    app = _StrictApp(actions)
    registrars = {"train": app.train, "evaluate": app.evaluate, "query": app.query}
    for message_type, action in actions.items():
        category, _, name = message_type.partition(".")
        register = registrars[category]
        (register(name) if name else register())(_guarded(action))
    return app


def answer(app: ClientApp, context_of: Callable[[Message], Context], data: Received) -> bytes:
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
    act = _guarded(lambda request, _: app(_with_content(request), context_of(request)))
    try:
        return codec.encode(act(message, _NOWHERE))
    except LocalProtocolError as error:
        return codec.encode(error_reply(error, message))


def error_reply(error: Exception, request: Message) -> Message:
    """The reply that says why a request failed, and no more than the other side may read."""
    return Message(Error(error_code(error), error_text(error)), reply_to=request)


def error_from_reply(reply: Message) -> DovetailError:
    """The error that a node answered with, as the coordinator sees it.

    See :func:`~dovetail.errors.error_from`.
    """
    error = error_from(reply.error.code, reply.error.reason or "no reason given")
    if error is not None:
        return error
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
    record = context.state.get(name)
    return named_arrays(record) if isinstance(record, ArrayRecord) else None


@contextmanager
def reading(request: Message) -> Iterator[None]:
    """While a message is read; notes in this side's own log what cannot be, and raises it."""
    try:
        yield
    except DovetailError as error:
        kind = readable(request.metadata.message_type)
        _logger.warning("refused a message of kind %r: %s", kind, error)
        raise


class _StrictApp(ClientApp):
    """A client app that tells a kind of message that it does not know from a failure of its own."""

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        self._kinds = frozenset(kinds)

    def __call__(self, message: Message, context: Context) -> Message:
        return _guarded(self._act)(message, context)

    def _act(self, message: Message, context: Context) -> Message:
        with reading(message):
            if message.metadata.message_type not in self._kinds:
                raise RemoteProtocolError("this node knows no message of that kind")
        return super().__call__(message, context)


def _with_content(request: Message) -> Message:
    with reading(request):
        if request.has_error():
            raise RemoteProtocolError("an error was sent where something was to be asked")
    return request


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
