"""Messages between a node and its worker, over a socket pair.

A message is a header in JSON, which names the arrays, their kinds and shapes, and then the arrays'
bytes. Nothing is unpickled: the node keeps keys and ledger, and its worker must not be able to run
code in it.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
Named = dict[str, npt.NDArray[Any]]

_SIZE = struct.Struct("!Q")


def send(pipe: socket.socket, head: Mapping[str, Any], *groups: Arrays) -> None:
    """Sends a header and any groups of named arrays.

    Args:
        pipe: a connected stream.
        head: JSON-able.
        groups: float64 stays float64; anything else becomes float32.

    Raises:
        OSError: the other side is gone.
    """
    whole = [{n: np.asarray(a, _kind(a), order="C") for n, a in g.items()} for g in groups]
    kinds = [{name: (a.itemsize, a.shape) for name, a in group.items()} for group in whole]
    text = json.dumps({"head": head, "arrays": kinds}).encode()
    pipe.sendall(_SIZE.pack(len(text)) + text)
    for group in whole:
        for array in group.values():
            pipe.sendall(array.data)


def receive(pipe: socket.socket) -> tuple[dict[str, Any], list[Named]]:
    """What :func:`send` sent.

    Raises:
        EOFError: the other side is gone.
        OSError: the same.
    """
    (size,) = _SIZE.unpack(_bytes(pipe, _SIZE.size))
    message = json.loads(_bytes(pipe, size))
    groups = [{n: _array(pipe, *kind) for n, kind in g.items()} for g in message["arrays"]]
    return message["head"], groups


def _kind(array: npt.NDArray[Any]) -> type[np.floating]:
    return np.float64 if array.dtype == np.float64 else np.float32


def _array(pipe: socket.socket, size: int, shape: list[int]) -> npt.NDArray[Any]:
    content = np.empty(math.prod(shape), f"f{size}")
    _fill(pipe, content.view(np.uint8).data)
    return content.reshape(shape)


def _bytes(pipe: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    _fill(pipe, memoryview(content))
    return content


def _fill(pipe: socket.socket, place: memoryview) -> None:
    while len(place):
        count = pipe.recv_into(place)
        if not count:
            raise EOFError
        place = place[count:]
