"""What a coordinator can ask of a node, as Flower messages: preview, propose, train, close, keep.

A coordinator sends data, never code. Every message that starts work carries the whole request, so
that a node can compare it with the one it admitted and needs no memory but its ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dovetail.errors import RemoteProtocolError
from dovetail.flower.client import client_app, get_state, put_state, reading
from dovetail.flower.grid import ARRAYS, METRICS, WEIGHT
from dovetail.flower.records import (
    NamedArrays,
    borrowed_record,
    config_record,
    metric_record,
    named_arrays,
)

PREVIEW = "query.preview"
PROPOSE = "query.propose"
TRAIN = "train"
CLOSE = "query.close"
KEEP = "query.keep"
AGGREGATE = "query.aggregate"
SIGNED = "signed"
"""Setting that holds a signed request."""
CONFIG = "config"
"""Record that holds settings, in requests and in replies."""

Record = Mapping[str, object]
"""JSON-able data."""


@dataclass(frozen=True)
class Contribution:
    """What a node answers to one round.

    Attributes:
        arrays: the model after its local steps.
        weight: its public weight, > 0.
        state: its optimiser's, which stays at the node.
    """

    arrays: NamedArrays
    weight: float
    state: NamedArrays


AggregationStep = Literal[
    "advertise_keys", "share_keys", "receive_shares", "check_consistency", "unmask"
]
"""What a node does for secure aggregation besides its masked input, by its name in the paper
(Bonawitz et al. 2017, figure 4); ``receive_shares`` hands over what the others shared."""


class Actions(Protocol):
    """What a node can do; each raises a ``DovetailError`` to refuse."""

    def preview(self, signed: Record) -> Record:
        """Judges a signed request without charging anything; answers what it would cost."""
        ...

    def propose(self, signed: Record) -> Record:
        """Judges a signed request and reserves its cost; answers with the signed permit."""
        ...

    def train(
        self, request: Record, number: int, arrays: NamedArrays, state: NamedArrays
    ) -> Contribution:
        """Contributes to round ``number`` of an admitted request."""
        ...

    def aggregate(self, step: AggregationStep, request: Record, body: Record) -> Record:
        """Takes one step of secure aggregation for an admitted request."""
        ...

    def close(self, job: str) -> None:
        """Ends a job."""
        ...

    def keep(self, card: Record, arrays: NamedArrays) -> None:
        """Keeps the model that a job released, with its card."""
        ...


def node_app(actions_of: Callable[[Context], Actions]) -> ClientApp:
    """The client app of a node.

    Args:
        actions_of: the node that a context belongs to.
    """

    def preview(message: Message, context: Context) -> Message:
        found = actions_of(context).preview(_signed_of(message))
        return _reply(message, {CONFIG: config_record({"preview": json.dumps(found)})})

    def propose(message: Message, context: Context) -> Message:
        permit = actions_of(context).propose(_signed_of(message))
        return _reply(message, {CONFIG: config_record({"permit": json.dumps(permit)})})

    def train(message: Message, context: Context) -> Message:
        with reading(message):
            request, number = _round_of(message)
            arrays = cast("NamedArrays", named_arrays(_arrays_of(message)))
        job = str(request.get("job", ""))
        state = cast("NamedArrays", get_state(context, job) or {})
        contribution = actions_of(context).train(request, number, arrays, state)
        put_state(context, job, contribution.state)
        return _reply(
            message,
            {
                ARRAYS: borrowed_record(contribution.arrays),
                METRICS: metric_record({WEIGHT: contribution.weight}),
            },
        )

    def aggregate(message: Message, context: Context) -> Message:
        with reading(message):
            step, request, body = _step_of(message)
        found = actions_of(context).aggregate(step, request, body)
        return _reply(message, {CONFIG: config_record({"body": json.dumps(found)})})

    def close(message: Message, context: Context) -> Message:
        with reading(message):
            job = str(_config_of(message).get("job", ""))
        context.state.pop(job, None)
        actions_of(context).close(job)
        return _reply(message, {CONFIG: config_record({})})

    def keep(message: Message, context: Context) -> Message:
        with reading(message):
            card = _json(_config_of(message).get("card"))
            arrays = cast("NamedArrays", named_arrays(_arrays_of(message)))
        actions_of(context).keep(card, arrays)
        return _reply(message, {CONFIG: config_record({})})

    return client_app(
        {
            PREVIEW: preview,
            PROPOSE: propose,
            TRAIN: train,
            AGGREGATE: aggregate,
            CLOSE: close,
            KEEP: keep,
        }
    )


def preview_message(node: int, signed: Record) -> Message:
    """Asks a node what it would say to a signed request, and what that would cost."""
    return Message(RecordDict({CONFIG: config_record({SIGNED: json.dumps(signed)})}), node, PREVIEW)


def propose_message(node: int, signed: Record) -> Message:
    """Asks a node for its permit."""
    return Message(RecordDict({CONFIG: config_record({SIGNED: json.dumps(signed)})}), node, PROPOSE)


def train_messages(
    weights: Mapping[int, float], number: int, request: Record, arrays: NamedArrays
) -> list[Message]:
    """Asks every node in ``weights`` for its contribution to round ``number``.

    The arrays are not copied: they must not change before all have answered.
    """
    config = config_record({"request": json.dumps(request), "server-round": number})
    content = RecordDict({ARRAYS: borrowed_record(arrays), CONFIG: config})
    return [Message(content, node, TRAIN, group_id=str(number)) for node in weights]


def aggregate_message(node: int, step: AggregationStep, request: Record, body: Record) -> Message:
    """Asks a node for one step of secure aggregation."""
    settings = {"step": step, "request": json.dumps(request), "body": json.dumps(body)}
    return Message(RecordDict({CONFIG: config_record(settings)}), node, AGGREGATE)


def close_message(node: int, job: str) -> Message:
    """Tells a node that a job has ended."""
    return Message(RecordDict({CONFIG: config_record({"job": job})}), node, CLOSE)


def keep_messages(nodes: Iterable[int], card: Record, arrays: NamedArrays) -> list[Message]:
    """Gives every node the released model and its card; the arrays are not copied."""
    config = config_record({"card": json.dumps(card)})
    content = RecordDict({ARRAYS: borrowed_record(arrays), CONFIG: config})
    return [Message(content, node, KEEP) for node in nodes]


def preview_of(reply: Message) -> Record:
    """What a node found, in its reply to :func:`preview_message`.

    Raises:
        RemoteProtocolError: nothing.
    """
    return _json(_config_of(reply).get("preview"))


def permit_of(reply: Message) -> Record:
    """The permit in a node's reply to :func:`propose_message`.

    Raises:
        RemoteProtocolError: there is none.
    """
    return _json(_config_of(reply).get("permit"))


def body_of(reply: Message) -> Record:
    """What a node answered to :func:`aggregate_message`.

    Raises:
        RemoteProtocolError: nothing that can be read.
    """
    return _json(_config_of(reply).get("body"))


def arrays_of(reply: Message) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of a reply that a :class:`~dovetail.flower.grid.CheckedGrid` let through."""
    return {
        name: cast("npt.NDArray[np.float32]", array)
        for name, array in named_arrays(_arrays_of(reply)).items()
    }


def _reply(message: Message, records: dict[str, object]) -> Message:
    return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]


def _signed_of(message: Message) -> Record:
    with reading(message):
        return _json(_config_of(message).get(SIGNED))


def _step_of(message: Message) -> tuple[AggregationStep, Record, Record]:
    config = _config_of(message)
    for step in get_args(AggregationStep):
        if config.get("step") == step:
            return step, _json(config.get("request")), _json(config.get("body"))
    raise RemoteProtocolError("the message names no step of secure aggregation")


def _round_of(message: Message) -> tuple[Record, int]:
    """What is asked, and which round of it."""
    config = _config_of(message)
    number = config.get("server-round")
    if type(number) is not int:
        raise RemoteProtocolError("a training message names its round")
    return _json(config.get("request")), number


def _config_of(message: Message) -> Mapping[str, object]:
    config = message.content.get(CONFIG)
    if not isinstance(config, ConfigRecord):
        raise RemoteProtocolError("the message has no settings")
    return cast("Mapping[str, object]", config)


def _arrays_of(message: Message) -> ArrayRecord:
    arrays = message.content.get(ARRAYS)  # `array_records` would keep it until garbage is collected
    if not isinstance(arrays, ArrayRecord):
        raise RemoteProtocolError("the message has no arrays")
    return arrays


def _json(text: object) -> Record:
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise RemoteProtocolError("the message holds no readable record")
    return record
