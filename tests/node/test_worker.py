from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dovetail.agreement.request import ModelSpec, Request, TrainingTask
from dovetail.data.customers import prepare
from dovetail.data.source import Source
from dovetail.errors import (
    DataError,
    DovetailError,
    PolicyError,
    SchemaError,
    SettingError,
    TooManyDropouts,
    TransportError,
)
from dovetail.node.worker import Worker, WorkerError, WorkerLimits
from dovetail.training.round_result import RoundResult
from tests.node import strange_runners
from tests.node.homes import write_csv
from tests.node.strange_runners import PID, READING
from tests.samples import SCHEMA, TASK

ROOT = Path(__file__).parents[2]
REQUEST = Request("job-1", TASK)
DECLARED = 200


def zeros(task: TrainingTask) -> dict[str, npt.NDArray[np.float32]]:
    return {p.name: np.zeros(p.shape, np.float32) for p in task.model.parameters(SCHEMA)}


def contribute(worker: Worker, number: int = 1, request: Request = REQUEST) -> RoundResult:
    return worker.contribute(request, number, zeros(request.task), {})


def same(one: RoundResult, other: RoundResult) -> bool:
    pairs = [(one.arrays, other.arrays), (one.optimizer_state, other.optimizer_state)]
    return all(a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a) for a, b in pairs)


@pytest.fixture
def reading(tmp_path: Path) -> Callable[[], int]:
    """Waits until a strange runner reads its rows; the id of its process."""
    os.mkfifo(tmp_path / READING)

    def wait() -> int:
        (tmp_path / READING).read_text()
        return pid_in(tmp_path)

    return wait


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def pid_in(folder: Path) -> int:
    return int((folder / PID).read_text())


def wait_for_end(pid: int) -> None:
    """Returns when a process has ended, whoever's child it is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    assert ended.poll(60_000), "the process lives on"
    os.close(descriptor)


def test_a_worker_computes_what_a_runner_would(tmp_path: Path) -> None:
    here = strange_runners.exact(tmp_path, DECLARED)
    wide = replace(TASK, model=ModelSpec("mlp", (2000, 1500)), local_optimizer="adam")
    with Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.exact) as worker:
        for task in (TASK, wide):
            request, arrays = Request("job", task), zeros(task)
            state: Mapping[str, npt.NDArray[np.float32]] = {}
            for number in (1, 2):
                result = worker.contribute(request, number, arrays, state)
                assert same(result, here.contribute(request, number, arrays, state))
                arrays, state = result.arrays, result.optimizer_state
    assert sum(array.nbytes for array in state.values()) > 20_000_000


def test_rounds_of_a_real_folder_have_fresh_noise(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", 300, seed=1)
    prepare(Source.files(tmp_path / "rows.csv"), SCHEMA, tmp_path / "arrays", bytes(16))
    everybody = Request("job-1", replace(TASK, sampling_prob=1.0))
    with Worker(tmp_path / "arrays", 300, WorkerLimits()) as worker:
        one, other = (contribute(worker, 1, everybody) for _ in range(2))
    for result in (one, other):
        assert {n: a.shape for n, a in result.arrays.items()} == {
            name: array.shape for name, array in zeros(TASK).items()
        }
        assert all(np.isfinite(array).all() for array in result.arrays.values())
    assert not same(one, other)


def test_a_round_that_takes_too_long_is_killed_and_the_next_one_too(tmp_path: Path) -> None:
    limits = WorkerLimits(seconds=0.5)
    killed = []
    with Worker(tmp_path, DECLARED, limits, strange_runners.frozen) as worker:
        for number in (1, 2):
            with pytest.raises(PolicyError, match="took longer than this partner allows") as caught:
                contribute(worker, number)
            assert caught.value.rule == "limits"
            killed.append(pid_in(tmp_path))
            with pytest.raises(ProcessLookupError):
                os.kill(killed[-1], 0)
    assert len(set(killed)) == 2


def test_a_round_that_takes_too_much_memory_is_killed(tmp_path: Path) -> None:
    limits = WorkerLimits(memory_mb=1000)
    with (
        Worker(tmp_path, DECLARED, limits, strange_runners.greedy) as worker,
        pytest.raises(PolicyError, match="more memory than this partner allows") as caught,
    ):
        contribute(worker)
    assert caught.value.rule == "limits"


DIED = "the node's worker died; the round stays charged and is not answered"


def test_a_worker_killed_while_it_computes(
    tmp_path: Path, reading: Callable[[], int], pool: ThreadPoolExecutor
) -> None:
    with Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.busy) as worker:
        round_ = pool.submit(contribute, worker)
        os.kill(reading(), signal.SIGKILL)
        with pytest.raises(TransportError, match=DIED):
            round_.result()


def test_a_worker_killed_between_rounds_is_replaced(tmp_path: Path) -> None:
    def pid_of_a_round(number: int) -> int:
        contribute(worker, number)
        return pid_in(tmp_path)

    with Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.idle) as worker:
        first = pid_of_a_round(1)
        assert pid_of_a_round(2) == first
        os.kill(first, signal.SIGKILL)
        wait_for_end(first)
        second = pid_of_a_round(3)
        assert second != first
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_a_crash_is_a_dead_worker_and_leaves_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        with (
            Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.crashing) as worker,
            pytest.raises(TransportError, match=DIED),
        ):
            contribute(worker)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == [PID]


def test_errors_keep_their_class_and_the_worker_lives_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = tmp_path / "error"
    with Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.raising) as worker:
        told.write_text("policy")
        with pytest.raises(PolicyError, match=r"^cohort: too few$") as refused:
            contribute(worker)
        assert refused.value.rule == "cohort"
        told.write_text("schema")
        with pytest.raises(SchemaError, match=r"^column 'age': no such thing$") as misfit:
            contribute(worker)
        assert misfit.value.column == "age"
        told.write_text("dropouts")
        with pytest.raises(TooManyDropouts, match="nobody is left"):
            contribute(worker)
        told.write_text("bug")
        with pytest.raises(WorkerError) as failed:
            contribute(worker)
        assert "1234" not in str(failed.value)
        assert not isinstance(failed.value, DovetailError)
        assert "salary 1234" in caplog.text
        told.write_text("nothing")
        contribute(worker)


def test_a_folder_that_cannot_be_used_shows_at_the_start(tmp_path: Path) -> None:
    with (
        Worker(tmp_path / "absent", DECLARED, WorkerLimits()) as worker,
        pytest.raises(DataError, match="'absent' does not hold prepared customers"),
    ):
        worker.start()


def test_a_runner_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.no_runner) as worker,
        pytest.raises(WorkerError, match="log says how"),
    ):
        contribute(worker)
    assert "salary 1234" in caplog.text


def test_closing_ends_a_round_and_the_process(
    tmp_path: Path, reading: Callable[[], int], pool: ThreadPoolExecutor
) -> None:
    worker = Worker(tmp_path, DECLARED, WorkerLimits(), strange_runners.busy)
    round_ = pool.submit(contribute, worker)
    pid = reading()
    worker.close()
    with pytest.raises(TransportError, match="the node is closing"):
        round_.result()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(TransportError, match="the node is closing"):
        contribute(worker)
    worker.close()


def test_the_environment_and_the_command_carry_no_secret(
    tmp_path: Path,
    reading: Callable[[], int],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOVETAIL_PASSPHRASE", "canary")
    monkeypatch.setenv("PGPASSWORD", "canary")
    with Worker(tmp_path, DECLARED, WorkerLimits(threads=2), strange_runners.busy) as worker:
        round_ = pool.submit(contribute, worker)
        process = Path("/proc") / str(reading())
        environment = (process / "environ").read_bytes().split(b"\0")
        assert b"canary" not in b"".join(environment) + (process / "cmdline").read_bytes()
        assert b"OMP_NUM_THREADS=2" in environment
        limits = (process / "limits").read_text().splitlines()
        assert [line.split()[4:6] for line in limits if "core file" in line] == [["0", "0"]]
        worker.close()
        assert isinstance(round_.exception(), TransportError)


NODE = """
import sys
from pathlib import Path
from dovetail.node.worker import WorkerLimits
from tests.node.strange_runners import busy
from tests.node.test_worker import DECLARED, Worker, contribute

contribute(Worker(Path(sys.argv[1]), DECLARED, WorkerLimits(), busy))
"""


LIGHT = """
import sys
from pathlib import Path
import numpy as np
from dovetail.agreement.request import Request
from dovetail.node.worker import Worker, WorkerLimits
from tests.samples import SCHEMA, TASK

arrays = {p.name: np.zeros(p.shape, np.float32) for p in TASK.model.parameters(SCHEMA)}
with Worker(Path(sys.argv[1]), 300, WorkerLimits()) as worker:
    worker.contribute(Request("job-1", TASK), 1, arrays, {})
print([name for name in ("torch", "opacus") if name in sys.modules])
"""


def test_a_node_holds_what_its_worker_answers_without_loading_torch(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", 300, seed=1)
    prepare(Source.files(tmp_path / "rows.csv"), SCHEMA, tmp_path / "arrays", bytes(16))
    command = [sys.executable, "-c", LIGHT, str(tmp_path / "arrays")]
    node = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert node.stdout == "[]\n"


def test_a_worker_does_not_outlive_its_node_not_even_while_it_computes(
    tmp_path: Path, reading: Callable[[], int]
) -> None:
    command = [sys.executable, "-c", NODE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT) as node:
        pid = reading()
        node.kill()
    wait_for_end(pid)


@pytest.mark.parametrize("bad", [{"seconds": 0.0}, {"memory_mb": -1}, {"threads": 0}])
def test_limits_that_allow_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="must be above 0"):
        WorkerLimits(**bad)  # type: ignore[arg-type]
