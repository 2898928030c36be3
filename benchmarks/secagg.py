"""Secure aggregation: masks, unmasking, memory and setup, against Flower's SecAgg+ primitives.

Run with ``scripts/bench secagg``. One thread; processor time, the median of interleaved
repetitions of one run, so that ratios travel between machines. Both sides are given the secrets
that partners agreed on, and both work modulo 2³²; vectors are quantised beforehand. The server's
figure is for one partner that dropped out after it shared its keys.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from benchmarks import machine
from dovetail.crypto.keys import new_signing_key
from dovetail.crypto.prg import Prg, derive_key
from dovetail.secagg import masks
from dovetail.secagg.group import Block, Group
from dovetail.secagg.messages import Step
from dovetail.secagg.protocol import Leaves, share_keys, sum_round

SIZES = (10**5, 10**6, 10**7)
PARTNERS = (3, 10, 50)
MODULUS = 2**32
LONGEST = 40.0
"""Seconds that one repetition of one combination may take; longer ones are left out, by name."""
ROUNDS = 32


def main() -> None:
    """Print the tables."""
    print(machine.describe())
    _masking()
    _memory()
    _setup()


def _masking() -> None:
    print(
        f"\n{'partners':>8} {'elements':>10} | {'client s':>9} {'Flower':>9} {'ratio':>6} "
        f"{'GB/s':>6} | {'server s':>9} {'Flower':>9} {'ratio':>6}"
    )
    worst: list[float] = []
    per_mask = _time_of(_flower_client(_secrets(1), 10**6)) / 10**6
    for size in SIZES:
        for n in PARTNERS:
            if 3 * n * size * per_mask > LONGEST:
                print(f"{n:8} {size:10} | left out: Flower would take over {LONGEST:.0f} s a time")
                continue
            worst += _row(n, size)
    print(
        f"worst ratio {min(worst):.1f}x; bytes per element on the wire: ours "
        f"{len(np.zeros(10**5, np.uint32).tobytes()) / 10**5:.2f}, Flower "
        f"{len(ndarray_to_bytes(np.zeros(10**5, np.int64))) / 10**5:.2f}"
    )


def _row(n: int, size: int) -> list[float]:
    """One line of the table: the client's and the server's ratio."""
    client, server = _secrets(n), _secrets(2 * (n - 1))
    ours, theirs, ours_back, theirs_back = _measure(
        [
            _ours(client, size),
            _flower_client(client, size),
            _ours(server, size),
            _flower_server(server, size),
        ],
        repetitions=max(1, min(9, 10**8 // (n * size))),
    )
    speed = 4 * n * size / ours / 1e9
    ratios = [theirs / ours, theirs_back / ours_back]
    print(
        f"{n:8} {size:10} | {ours:9.4f} {theirs:9.4f} {ratios[0]:5.1f}x {speed:6.2f} | "
        f"{ours_back:9.4f} {theirs_back:9.4f} {ratios[1]:5.1f}x",
        flush=True,
    )
    return ratios


def _secrets(count: int) -> list[bytes]:
    return [derive_key(bytes(16), i) * 2 for i in range(count)]


def _streams(secrets: list[bytes]) -> list[Prg]:
    return [masks.pairwise_mask(s, "ab" * 32, i, "p1", "p2") for i, s in enumerate(secrets)]


def _ours(secrets: list[bytes], size: int) -> Callable[[], None]:
    """Half of the masks are added and half subtracted; the server does the same."""
    vector = np.zeros(size, dtype=np.uint32)
    half = len(secrets) // 2

    def run() -> None:
        streams = _streams(secrets)
        masks.apply(vector, streams[half:], streams[:half])

    return run


def _flower_client(secrets: list[bytes], size: int) -> Callable[[], None]:
    """Lines of ``_collect_masked_vectors`` in ``flwr.client.mod``'s ``secaggplus_mod``."""
    vector = np.zeros(size, dtype=np.int32)

    def run() -> None:
        parameters = factor_combine(1, [vector])
        shapes = get_parameters_shape(parameters)
        half = len(secrets) // 2
        for number, secret in enumerate(secrets):
            mask = pseudo_rand_gen(secret, MODULUS, shapes)
            combine = parameters_subtraction if number < half else parameters_addition
            parameters = combine(parameters, mask)
        parameters_mod(parameters, MODULUS)

    return run


def _flower_server(secrets: list[bytes], size: int) -> Callable[[], None]:
    """Lines of ``unmask_stage`` in ``flwr.server.workflow``, given the recovered secrets."""
    total = [np.array([1]), np.zeros(size, dtype=np.int64)]

    def run() -> None:
        vector = total
        half = len(secrets) // 2
        for number, secret in enumerate(secrets):
            mask = pseudo_rand_gen(secret, MODULUS, get_parameters_shape(vector))
            combine = parameters_subtraction if number < half else parameters_addition
            vector = combine(vector, mask)
        parameters_mod(vector, MODULUS)

    return run


def _measure(ways: list[Callable[[], None]], repetitions: int) -> list[float]:
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repetitions):
        for way, taken in zip(ways, times, strict=True):
            taken.append(_time_of(way))
    return [statistics.median(taken) for taken in times]


def _time_of(way: Callable[[], object]) -> float:
    start = time.thread_time()
    way()
    return time.thread_time() - start


def _memory() -> None:
    size = 10**6
    print(f"\npeak memory of the server while {size} elements of each partner arrive, MB")
    print(f"{'partners':>8} {'ours':>8} {'Flower':>8}")
    for n in PARTNERS:
        ours, theirs = (
            _peak(partial(_ours_arrive, n, size)),
            _peak(partial(_flower_arrives, n, size)),
        )
        print(f"{n:8} {ours / 1e6:8.1f} {theirs / 1e6:8.1f}")


def _peak(way: Callable[[], object]) -> int:
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _ours_arrive(n: int, size: int) -> None:
    """One message at a time, as the wire hands them over."""
    group, signers = _group(n, 0)
    server, _ = share_keys(group, Block("ab" * 32, 0, 0, 1, size, 32), signers)
    total = server.round(0)
    for name in group.members:
        total.add(name, np.frombuffer(bytes(4 * size), dtype=np.uint32))


def _flower_arrives(n: int, size: int) -> None:
    """Lines of ``collect_masked_vectors_stage``, which is handed all replies in one list."""
    replies = [ndarray_to_bytes(np.zeros(size, dtype=np.int64)) for _ in range(n)]
    total = None
    for reply in replies:
        vector = [bytes_to_ndarray(reply)]
        total = vector if total is None else parameters_addition(total, vector)
    assert total is not None
    parameters_mod(total, MODULUS)


def _setup() -> None:
    print(f"\nwhat keys cost per partner and round, in blocks of {ROUNDS} rounds and of one")
    print(
        f"{'partners':>8} {'dropouts':>8} {'setup ms':>9} {'in blocks of 1':>15} "
        f"{'each sum ms':>12} {'bytes':>7}"
    )
    for n in PARTNERS:
        group, signers = _group(n, (n - 1) // 4)
        setup = {rounds: _setup_time(group, signers, rounds) for rounds in (ROUNDS, 1)}
        print(
            f"{n:8} {group.dropouts:8} {1e3 * setup[ROUNDS]:9.2f} {1e3 * setup[1]:15.2f} "
            f"{1e3 * _sum_time(group, signers):12.2f} {_bytes_per_round(n):7.0f}"
        )


def _group(n: int, dropouts: int) -> tuple[Group, dict[str, Callable[[str, object], str]]]:
    keys = {f"p{i:02}": new_signing_key() for i in range(n)}
    group = Group(tuple(keys), {name: key.public for name, key in keys.items()}, dropouts, 0)
    return group, {name: key.sign for name, key in keys.items()}


def _setup_time(group: Group, signers: dict[str, Callable[[str, object], str]], k: int) -> float:
    """Seconds per partner and round: everybody's work, the server's among it, shared out."""
    block = Block("ab" * 32, 0, 0, k, 1, 32)
    seconds = _time_of(lambda: share_keys(group, block, signers))
    return seconds / k / len(group.members)


def _sum_time(group: Group, signers: dict[str, Callable[[str, object], str]]) -> float:
    """Seconds per partner of rounds 2 to 4 with a vector of one element and all dropouts."""
    block = Block("ab" * 32, 0, 0, 1, 1, 32)
    server, clients = share_keys(group, block, signers)
    vectors = {name: np.zeros(1, dtype=np.uint32) for name in clients}
    leaves: Leaves = dict.fromkeys(group.members[: group.dropouts], Step.MASKED_INPUT)
    seconds = _time_of(lambda: sum_round(server, clients, 0, vectors, leaves))
    return seconds / len(group.members)


def _bytes_per_round(n: int) -> float:
    """Sent and received by one partner: adverts and shares for a block, divided by its rounds."""
    advert = 2 * (ROUNDS * (32 + 16) + 32 + 32 + 64)  # hexadecimal: keys, context, signature
    shares = (n - 1) * (ROUNDS * 66 + 16)
    return ((n + 1) * advert + 2 * shares) / ROUNDS


if __name__ == "__main__":
    main()
