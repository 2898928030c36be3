"""A line between a node and its coordinator that tests cut, keep cut, and make slow."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from dovetail.agreement.files import ACCESS
from dovetail.simulation.federation import HOST

Way = Literal["up", "down"]
"""From the node to its coordinator, or back."""
_PIECE = 16 << 10


class Line:
    """Passes TCP connections on.

    Attributes:
        passed: bytes passed on, by way.
        cuts: how often connections were cut.
        speed: bytes per second each way; infinite where ``None``.
    """

    def __init__(self, address: str) -> None:
        """A line to the coordinator at this address."""
        host, _, port = address.rpartition(":")
        self.passed: Counter[Way] = Counter()
        self.cuts = 0
        self.speed: float | None = None
        self._target = (host, int(port))
        self._cut_at: dict[Way, int] = {}
        self._whole = threading.Event()
        self._whole.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.close()
        self.cut()

    def lead(self, keys: Path) -> None:
        """Has the node with this folder of keys dial this line."""
        kept = json.loads((keys / ACCESS).read_text())
        (keys / ACCESS).write_text(json.dumps({**kept, "address": self.address}))

    def cut_after(self, way: Way, further: int) -> None:
        """Cuts all connections, once, when so many more bytes have passed."""
        self._cut_at[way] = self.passed[way] + further

    def cut(self) -> None:
        """Cuts all connections; new ones are taken."""
        with self._lock:
            cut, self._open = self._open, set()
            self.cuts += 1
        for side in cut:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def cut_off(self) -> None:
        """Cuts all connections, and takes none until the line is mended."""
        self._whole.clear()
        self.cut()

    def mend(self) -> None:
        """Takes connections again."""
        self._whole.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                if self._whole.is_set():
                    self._join(here)
                else:
                    here.close()

    def _join(self, here: socket.socket) -> None:
        try:
            there = socket.create_connection(self._target)
        except OSError:  # the coordinator is down
            here.close()
            return
        with self._lock:
            self._open |= {here, there}
        ways: tuple[tuple[socket.socket, socket.socket, Way], ...]
        ways = ((here, there, "up"), (there, here, "down"))
        for each in ways:
            threading.Thread(target=self._pass, args=each, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                sink.sendall(data)
                self.passed[way] += len(data)
                if self.speed is not None:
                    time.sleep(len(data) / self.speed)  # this is what makes the line slow
                if self.passed[way] >= self._cut_at.get(way, self.passed[way] + 1):
                    del self._cut_at[way]
                    self.cut()
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
