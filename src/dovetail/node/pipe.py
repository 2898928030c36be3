"""Messages between a node and its worker, over a socket pair.

A message is a header in JSON, which names the arrays and their shapes, and then the arrays' bytes.
Nothing is unpickled: the node keeps keys and ledger, and its worker must not be able to run code
in it.
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

Arrays = Mapping[str, npt.NDArray[np.float32]]
Named = dict[str, npt.NDArray[np.float32]]

_SIZE = struct.Struct("!Q")


def send(pipe: socket.socket, head: Mapping[str, Any], *groups: Arrays) -> None:
    """Sends a header and any groups of named arrays.

    Args:
        pipe: a connected stream.
        head: JSON-able.
        groups: what is not float32 is converted.

    Raises:
        OSError: the other side is gone.
    """
    whole = [{n: np.asarray(a, np.float32, order="C") for n, a in g.items()} for g in groups]
    shapes = [{name: array.shape for name, array in group.items()} for group in whole]
    text = json.dumps({"head": head, "shapes": shapes}).encode()
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
    groups = [{n: _array(pipe, shape) for n, shape in g.items()} for g in message["shapes"]]
    return message["head"], groups


def _array(pipe: socket.socket, shape: list[int]) -> npt.NDArray[np.float32]:
    content = np.empty(math.prod(shape), np.float32)
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
