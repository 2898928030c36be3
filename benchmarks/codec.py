"""One 100 MB message from numpy arrays to bytes and back to numpy arrays, ours against Flower's.

Flower has no public serialiser. What its own transport does is measured: deflate the message's
tree of objects, each hashed and cut into chunks, and inflate it again. As a limit, one copy of as
many bytes. Run it with ``scripts/bench codec``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from dovetail.flower.codec import decode, encode
from dovetail.flower.records import array_record, named_arrays

ARRAYS, ELEMENTS = 10, 2_500_000
REPEATS = 7

Model = dict[str, npt.NDArray[np.float32]]


def ours(model: Model) -> tuple[float, float]:
    """Seconds to write and to read."""
    start = time.perf_counter()
    message = Message(RecordDict({"arrays": array_record(model)}), 1, "train")
    data = encode(message)
    middle = time.perf_counter()
    read = named_arrays(decode(data).content.array_records["arrays"])
    end = time.perf_counter()
    require_equal(model, read)
    return middle - start, end - middle


def flowers(model: Model) -> tuple[float, float]:
    """Seconds to write and to read."""
    start = time.perf_counter()
    record = ArrayRecord({name: Array(array) for name, array in model.items()})
    message = Message(RecordDict({"arrays": record}), 1, "train")
    contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    middle = time.perf_counter()
    inflated = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(inflated, Message)
    arrays = inflated.content.array_records["arrays"]
    read = {name: array.numpy() for name, array in arrays.items()}
    end = time.perf_counter()
    require_equal(model, read)
    return middle - start, end - middle


def one_copy(model: Model) -> tuple[float, float]:
    """Seconds to copy all elements once, each way."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        b"".join(array.data for array in model.values())
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def require_equal(first: Model, second: Model) -> None:
    """Stops the benchmark where a way does not give back what it was given."""
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def main() -> None:
    """Prints the table."""
    source = np.random.default_rng(0)
    model = {str(i): source.random(ELEMENTS, np.float32) for i in range(ARRAYS)}
    ways: dict[str, Callable[[Model], tuple[float, float]]] = {
        "one copy": one_copy,
        "dovetail": ours,
        "flower": flowers,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):  # interleaved, so that a busy machine is busy for all
        for name, way in ways.items():
            times[name].append(way(model))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in times.items()
    }
    ours_total = sum(medians["dovetail"])
    print(f"one message of {ARRAYS * ELEMENTS * 4 / 1e6:.0f} MB, median of {REPEATS}")
    print(f"{'way':10} {'write ms':>9} {'read ms':>9} {'both ms':>9} {'ratio':>6}")
    for name, (write, read) in medians.items():
        both = write + read
        columns = "".join(f"{seconds * 1e3:10.0f}" for seconds in (write, read, both))
        print(f"{name:10}{columns} {both / ours_total:6.2f}")


if __name__ == "__main__":
    main()
