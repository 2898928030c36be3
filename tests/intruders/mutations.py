"""Ways to spoil bytes, records and messages; the same for the same dice."""

from __future__ import annotations

import copy
import json
import math
import random
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, Metadata, MetricRecord

from dovetail.errors import LocalProtocolError
from dovetail.flower import codec
from dovetail.flower._compat import new_message
from dovetail.flower.records import array_record, named_arrays

STRANGE: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", " ", "\0", "\x1b[2J", "\ud800", "..", "x" * 600, "job-0",
    "retailer", "0" * 64, "f" * 128, [], {}, [[]], [None], {"a": 1}, ["x"] * 50, [1] * 11_000,
)  # fmt: skip


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """Bytes flipped, cut, repeated, inserted, or a length made far too large."""
    at, changed = rng.randint(0, len(raw)), bytearray(raw)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 5)):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            changed[at:at] = rng.randbytes(rng.choice([1, 2, 9, 300]))
        case 3:
            changed[at : at + 1] = b"\xff" * rng.randint(1, 10) + b"\x7f"
        case 4:
            changed[at:at] = changed[: rng.randint(0, 300)]
        case _:
            changed = bytearray(rng.randbytes(rng.choice([0, 1, 20, 500])))
    return bytes(changed)


def spoiled(rng: random.Random, record: Any) -> Any:
    """A JSON value with one or a few of its parts changed."""
    changed = copy.deepcopy(record)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        _spoil(rng, changed)
    return changed


def _spoil(rng: random.Random, record: Any) -> None:
    places = list(_places(record))
    if not places:
        return
    parent, key = rng.choice(places)
    match rng.randrange(7):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            name = rng.choice(["more", "", "job", "x" * 600])
            parent[name] = copy.deepcopy(rng.choice(STRANGE))
        case 2:
            parent[key] = _near(rng, parent[key])
        case 3:
            other, there = rng.choice(places)
            parent[key] = copy.deepcopy(other[there])
        case 4:
            parent[key] = _nested(rng.choice([1, 3, 40]), parent[key])
        case _:
            parent[key] = copy.deepcopy(rng.choice(STRANGE))


def _places(record: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a record with each of its keys."""
    left = [record]
    while left:
        parent = left.pop()
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            yield parent, key
            if isinstance(parent[key], dict | list):
                left.append(parent[key])


def _near(rng: random.Random, value: Any) -> Any:
    """Something very much like a value."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, str(value), [value]])
    if isinstance(value, float):
        return rng.choice([value * 1.0000001, -value, int(value) if math.isfinite(value) else 0.0])
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return value[:at] + rng.choice(["x", " ", "\u202e", "0"]) + value[at + rng.randint(0, 1) :]
    return [value, value]


def _nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def spoiled_text(rng: random.Random, record: Any) -> str:
    """A record's JSON with parts changed, or text that is very deep or long, or no JSON."""
    text = json.dumps(spoiled(rng, record)).encode("utf-8", "replace").decode()
    if rng.random() < 0.9:
        return text
    at = rng.randint(0, len(text))
    deep = rng.choice(["[" * 50_000, '{"a":' * 50_000, "9" * 5_000, "NaN", "1e999", '"', "\\ud800"])
    return text[:at] + deep + text[at:]


def spoiled_message(rng: random.Random, raw: bytes) -> bytes:
    """A message of which something was changed that can still be written down."""
    message = codec.decode(raw)
    change = rng.choice([_other_settings, _other_settings, _other_arrays, _other_metadata])
    try:
        return codec.encode(change(rng, message))
    except LocalProtocolError:  # what cannot be written down at all
        return damaged(rng, raw)


def _other_settings(rng: random.Random, message: Message) -> Message:
    config = dict(message.content.config_records.get("config") or {})
    if not config:
        return message
    name = rng.choice(sorted(config))
    value: Any = config[name]
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.9:
        value = spoiled_text(rng, json.loads(value))
    else:
        value = rng.choice(["", "{", "null", 0, -1, 2**62, 0.5, True, b"x", [1], ["x"], "job-1"])
    if rng.random() < 0.1:
        del config[name]
    else:
        config[name] = value
    message.content["config"] = ConfigRecord(config)
    return message


def _other_arrays(rng: random.Random, message: Message) -> Message:
    record = message.content.array_records.get("arrays")
    if record is None:
        return message
    arrays: dict[str, Any] = dict(named_arrays(record))
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    others: list[Callable[[], Any]] = [
        lambda: array.astype(rng.choice(["float64", "float16", "int32", "bool"])),
        lambda: array.reshape(-1)[: rng.randint(0, array.size)],
        lambda: np.full_like(array, rng.choice([np.nan, np.inf, 3e38, -1e30, 1e-45])),
        lambda: array[None],
        lambda: np.zeros(rng.choice([(), (0,), (300, 300)]), np.float32),
        lambda: array * np.float32(rng.choice([0, -1, 1e6])),
    ]
    arrays[name] = rng.choice(others)()
    if rng.random() < 0.2:
        arrays[rng.choice(["more", "", "output.bias"])] = arrays.pop(name)
    message.content["arrays"] = array_record(arrays)
    if rng.random() < 0.05:
        message.content["arrays"] = MetricRecord({"x": 1})
    return message


def _other_metadata(rng: random.Random, message: Message) -> Message:
    fields = {key.lstrip("_"): value for key, value in vars(message.metadata).items()}
    fields.pop("delivered_at", None)
    name = rng.choice(sorted(fields))
    kinds = ["query.preview", "query.propose", "train", "query.close", "query.keep", "evaluate"]
    other: dict[str, Sequence[Any]] = {
        "message_type": kinds,
        "ttl": [0.0, -1.0, 1e300, 1e-300],
        "created_at": [0.0, -1e9, 1e300],
    }
    plain = [0, 1, 2**62] if isinstance(fields[name], int) else ["", "x", "\0", "x" * 5000]
    return new_message(
        Metadata(**(fields | {name: rng.choice(other.get(name, plain))})), message.content
    )


@contextmanager
def in_time(seconds: float = 30.0) -> Iterator[None]:
    """Fails where something hangs, at the line where it does."""

    def late(*_: object) -> None:
        raise AssertionError("this takes too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mb() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
