"""Seconds per round of a stock SuperLink with three SuperNodes, by size of the update.

Flower's own processes over TLS on loopback, started as its documentation says, and the smallest app
that makes sense: the server sends an array to every node, each answers with another of the same
size. The answer differs from the request because Flower does not send an object twice.

A round takes long because the parts poll: the server's grid and the nodes every 3 s, and whatever
starts the apps every second; and because each message starts a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
RESULT = "DOVETAIL_BENCHMARK_RESULT"
START_SECONDS, RUN_SECONDS, STOP_SECONDS = 60.0, 1800.0, 20.0
PROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
description = "Names apps that are installed already; brings no code."
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "dovetail"
[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"
[tool.flwr.app.config]
{config}
"""
CONFIG = """\
[superlink]
default = "here"
[superlink.here]
address = "{address}"
root-certificates = "{certificate}"
"""

client = ClientApp()
server = ServerApp()


@client.train()
def echo(message: Message, _context: Context) -> Message:
    """Answers with an array of the same size."""
    record = message.content["arrays"]
    assert isinstance(record, ArrayRecord)
    answer = ArrayRecord({"w": Array(-record["w"].numpy())})
    return Message(RecordDict({"arrays": answer}), reply_to=message)


@server.main()
def measure(grid: Grid, context: Context) -> None:
    """Writes down how long each round of each size took."""
    nodes = int(context.run_config["nodes"])
    while len(ids := list(grid.get_node_ids())) < nodes:
        time.sleep(0.1)
    dice, taken = np.random.default_rng(0), {}
    for size in map(int, str(context.run_config["sizes"]).split()):
        seconds = []
        for _ in range(int(context.run_config["rounds"])):
            record = ArrayRecord({"w": Array(dice.random(size // 4, np.float32))})
            content = RecordDict({"arrays": record})
            start = time.perf_counter()
            messages = [Message(content, node, "train") for node in ids]
            replies = list(grid.send_and_receive(messages, timeout=600))
            seconds.append(time.perf_counter() - start)
            assert [reply.has_error() for reply in replies] == [False] * nodes
        taken[size] = seconds
    Path(os.environ[RESULT]).write_text(json.dumps(taken))


class SuperLink:
    """A stock SuperLink and its SuperNodes on loopback; a context manager that stops them."""

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Mapping[str, str]],
        environment: Mapping[str, str],
    ) -> None:
        """Starts nothing yet.

        Args:
            folder: new or empty; certificate, logs and what Flower itself keeps.
            nodes: what each SuperNode's environment holds beside this process's.
            environment: the same of the SuperLink, where the server app runs.
        """
        self._folder, self._nodes, self._environment = folder, nodes, environment
        self._port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> SuperLink:
        """Starts all; nodes may still be about to connect.

        Raises:
            SystemExit: the SuperLink does not come up.
        """
        certificate = self._certify()
        tls = ["--ssl-ca-certfile", certificate, "--ssl-certfile", certificate]
        here = ["--host", HOST, "--port", str(self._port), "--ssl-keyfile", "key.pem"]
        keep = "--disable-runtime-dependency-installation"
        self._start("superlink", self._environment, "flower-superlink", *tls, *here, keep)
        for i, environment in enumerate(self._nodes):
            there = ["--root-certificates", certificate, "--superlink", f"{HOST}:{self._port}"]
            own = ["--host", HOST, "--port", str(free_port())]
            self._start(f"supernode-{i}", environment, "flower-supernode", *there, *own)
        self._wait()
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._open.close()

    def run(self, server_app: str, client_app: str, config: Mapping[str, str | int]) -> str:
        """Runs a server app and a client app, by name, to the end; returns what Flower printed."""
        bundle = self._folder / "bundle"
        bundle.mkdir(exist_ok=True)
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in config.items())
        project = PROJECT.format(name="app", server=server_app, client=client_app, config=lines)
        (bundle / "pyproject.toml").write_text(project)
        done = subprocess.run(
            [_command("flwr"), "run", str(bundle), "here", "--stream"],
            env=self._in("superlink", self._environment),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    def logs(self) -> str:
        """The end of what each process said."""
        texts = {log.name: log.read_text()[-3000:] for log in sorted(self._folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())

    def _certify(self) -> str:
        from dovetail.crypto.certificates import new_certificate

        certificate, key = new_certificate("superlink", datetime.now(UTC), (HOST,))
        (self._folder / "certificate.pem").write_bytes(certificate)
        (self._folder / "key.pem").write_bytes(key)
        home = self._folder / "superlink"
        home.mkdir()
        address, path = f"{HOST}:{self._port}", self._folder / "certificate.pem"
        (home / "config.toml").write_text(CONFIG.format(address=address, certificate=path))
        return "certificate.pem"

    def _start(self, name: str, more: Mapping[str, str], command: str, *arguments: str) -> None:
        log = self._open.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [_command(command), *arguments],
            env=self._in(name, more),
            cwd=self._folder,
            stdout=log,
            stderr=log,
        )
        self._processes.append(process)

    def _in(self, name: str, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process: Flower looks for its commands on the path."""
        beside = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(self._folder / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            **more,
        }

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection((HOST, self._port)):
                return
            time.sleep(0.1)
        raise SystemExit(f"the SuperLink did not start\n{self.logs()}")


def _command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def seconds_per_round(sizes: Sequence[int], nodes: int = 3, rounds: int = 3) -> dict[int, float]:
    """The median of some rounds, by size of the update in bytes."""
    config: dict[str, Any] = {"nodes": nodes, "rounds": rounds, "sizes": " ".join(map(str, sizes))}
    with tempfile.TemporaryDirectory(prefix="dovetail-superlink-") as folder:
        result = Path(folder, "result.json")
        with SuperLink(Path(folder), [{}] * nodes, {RESULT: str(result)}) as superlink:
            said = superlink.run(
                "benchmarks.superlink:server", "benchmarks.superlink:client", config
            )
            if not result.exists():
                raise SystemExit(f"the run failed:\n{said}\n{superlink.logs()}")
        taken: dict[str, list[float]] = json.loads(result.read_text())
    return {int(size): statistics.median(seconds) for size, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"stock SuperLink, 3 SuperNodes, TLS on loopback; s/round: median of {options.rounds}")
    print(f"{'update':>10s}{'s/round':>9s}")
    for size, seconds in seconds_per_round([1_000, 1_000_000], rounds=options.rounds).items():
        print(f"{size:10,d}{seconds:9.2f}")


if __name__ == "__main__":
    main()
