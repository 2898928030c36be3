import logging

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from dovetail import errors
from dovetail.errors import (
    DovetailError,
    LocalProtocolError,
    PolicyError,
    RemoteProtocolError,
    SchemaError,
)
from dovetail.flower.client import (
    answer,
    client_app,
    error_from_reply,
    error_reply,
    get_state,
    new_context,
    put_state,
)
from dovetail.flower.codec import decode, encode
from dovetail.flower.records import array_record, config_record

REQUEST = Message(RecordDict({"c": config_record({"job": "j1"})}), 5, "query.propose")


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def reply_to(action: object, message: Message = REQUEST) -> Message:
    app = client_app({"query.propose": action})  # type: ignore[dict-item]
    return decode(answer(app, lambda _: new_context(5, {}, {}), encode(message)))


def raising(error: Exception) -> object:
    def action(message: Message, context: Context) -> Message:
        raise error

    return action


def test_an_action_answers() -> None:
    reply = reply_to(echo)
    assert reply.content == REQUEST.content
    assert reply.metadata.src_node_id == 5
    assert reply.metadata.message_type == "query.propose"


@pytest.mark.parametrize("message_type", ["train", "evaluate", "query", "train.step"])
def test_every_kind_of_action_can_be_registered(message_type: str) -> None:
    app = client_app({message_type: echo})
    request = Message(RecordDict(), 5, message_type)
    assert app(request, new_context(5, {}, {})).has_content()


@pytest.mark.parametrize(
    "error", [ValueError("row 17: salary 1234"), KeyError("anna@example.org"), OSError(5, "/data")]
)
def test_nothing_of_an_unforeseen_exception_leaves(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = reply_to(raising(error))
    assert reply.error == Error(1000, "internal error")
    assert str(error) not in str(error_from_reply(reply))
    assert caplog.records[0].exc_info is not None, "the node's own log keeps the traceback"


@pytest.mark.parametrize("kind", ["query.other", "query", "train", "evaluate"])
def test_an_unknown_kind_of_message_breaks_the_protocol(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    arrived = error_from_reply(reply_to(echo, Message(RecordDict(), 5, kind)))
    assert type(arrived) is LocalProtocolError
    assert str(arrived) == "this node knows no message of that kind"
    assert f"refused a message of kind '{kind}': this node knows no" in caplog.text


def test_context_of_that_refuses_is_a_refusal() -> None:
    def refuse(message: Message) -> Context:
        raise PolicyError("purpose", "not agreed")

    reply = decode(answer(client_app({"query.propose": echo}), refuse, encode(REQUEST)))
    assert isinstance(error_from_reply(reply), PolicyError)


def test_a_reply_that_cannot_be_sent_becomes_an_error() -> None:
    def too_large(message: Message, context: Context) -> Message:
        return Message(RecordDict({"c": config_record({"n": 2**80})}), reply_to=message)

    assert isinstance(error_from_reply(reply_to(too_large)), RemoteProtocolError)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        answer(client_app({}), lambda _: new_context(5, {}, {}), b"nonsense")


ALL_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DovetailError) and kind is not PolicyError
]
SIDES: dict[type[DovetailError], type[DovetailError]] = {
    errors.LocalProtocolError: errors.RemoteProtocolError,
    errors.RemoteProtocolError: errors.LocalProtocolError,
}


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_class_of_error_arrives_as_itself_and_protocol_errors_change_sides(
    kind: type[DovetailError],
) -> None:
    arrived = error_from_reply(reply_to(raising(kind("said on purpose"))))
    assert type(arrived) is SIDES.get(kind, kind)
    assert str(arrived) == "said on purpose"


def test_a_refusal_keeps_its_rule() -> None:
    arrived = error_from_reply(reply_to(raising(PolicyError("budget", "month is spent"))))
    assert isinstance(arrived, PolicyError)
    assert arrived.rule == "budget"
    assert str(arrived) == "budget: month is spent"


def test_a_schema_error_keeps_its_text() -> None:
    arrived = error_from_reply(reply_to(raising(SchemaError("is text", column="age"))))
    assert str(arrived) == "column 'age': is text"


def test_a_subclass_of_ours_arrives_as_its_parent() -> None:
    class NarrowerError(errors.DataError):
        pass

    assert type(error_from_reply(reply_to(raising(NarrowerError("x"))))) is errors.DataError


@pytest.mark.parametrize("code", [0, 2, 999, 2**40, -1])
def test_a_reason_with_a_code_that_is_not_ours_is_not_repeated(code: int) -> None:
    reply = Message(Error(code, "traceback with secrets"), reply_to=REQUEST)
    assert isinstance(error_from_reply(reply), errors.TransportError)
    assert "secret" not in str(error_from_reply(reply))


def test_a_reason_is_cut_and_printable() -> None:
    reply = Message(Error(1006, "\x1b[31m" + "x" * 10_000 + "\n"), reply_to=REQUEST)
    text = str(error_from_reply(reply))
    assert len(text) <= 500
    assert text.isprintable()
    assert error_reply(errors.DataError("a\nb\ud800"), REQUEST).error.reason == "a b "


def test_state_is_kept_in_the_context() -> None:
    context = new_context(5, {"partition-id": 1}, {"job": "j"})
    assert get_state(context, "optimiser") is None
    put_state(context, "optimiser", {"m": np.arange(3.0), "step": np.array(4)})
    state = get_state(context, "optimiser")
    assert state is not None
    assert list(state["m"]) == [0, 1, 2]
    assert state["step"] == 4
    assert not state["m"].flags.writeable
    assert context.state["optimiser"] == array_record({"m": np.arange(3.0), "step": np.array(4)})
