"""Samples of what an attempt uses of its machine."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from runyard.ports import SystemClock
from runyard.supervisor import sampling
from runyard.supervisor.sampling import Accelerators, Sampler

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="samples need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]
BUSY = "x = bytearray(64 << 20); print('ready', flush=True)\nwhile True: pass"


class StoppedClock(SystemClock):
    """A clock that moves only where a test moves it."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A child that uses a core and 64 MiB."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def test_a_sample_has_cpu_and_memory_of_the_processes_below(
    tmp_path: Path, busy: subprocess.Popen[bytes]
) -> None:
    clock = StoppedClock()
    sampler = Sampler(tmp_path, clock, Accelerators(library=FakeNvml([])))
    sampler.measure()
    before = processes.read_use(busy.pid)
    assert before is not None
    while True:  # until the child has worked for a tenth of a second
        now = processes.read_use(busy.pid)
        assert now is not None
        if now.cpu_s - before.cpu_s >= 0.1:
            break
    clock.now_s += 1.0
    values = sampler.measure()
    assert set(values) == {sampling.CPU, sampling.MEMORY, sampling.DISK}
    assert values[sampling.CPU] >= 10
    assert values[sampling.MEMORY] > 64 << 20
    disk = os.statvfs(tmp_path)
    assert 0 < values[sampling.DISK] <= disk.f_blocks * disk.f_frsize


def test_a_process_that_has_ended_uses_nothing(busy: subprocess.Popen[bytes]) -> None:
    busy.kill()
    busy.wait()
    assert processes.read_use(busy.pid) is None


def test_samples_are_whole_lines_and_a_full_disk_drops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(tmp_path, SystemClock(), Accelerators(library=FakeNvml([])))
    sampler.write({"system/cpuPercent": 50.0})
    path = rundir.AttemptDir(tmp_path).system
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    sampler.write({"system/cpuPercent": 60.0})
    monkeypatch.undo()
    sampler.write({"system/cpuPercent": 70.0})
    lines, _ = rundir.read_lines(path, 0)
    assert [json.loads(line)["values"]["system/cpuPercent"] for line in lines] == [50.0, 70.0]
    sampler = Sampler(tmp_path / "absent", SystemClock())
    sampler.write({"system/cpuPercent": 80.0})  # the run was deleted


class FakeNvml:
    """NVIDIA's library with some devices, each (use in percent, used bytes)."""

    def __init__(self, devices: list[tuple[int, int]], *, broken: bool = False) -> None:
        self.devices, self.broken = devices, broken

    def nvmlInit_v2(self) -> int:
        return 9 if self.broken else 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.devices)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        if index >= len(self.devices):
            return 2
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, use: Any) -> int:
        use._obj.gpu = self.devices[int(handle.value or 0) - 1][0]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        memory._obj.used = self.devices[int(handle.value or 0) - 1][1]
        return 0


def test_one_accelerator_has_plain_keys_and_several_have_positions() -> None:
    one = Accelerators(library=FakeNvml([(97, 5 << 30)]), visible=None)
    assert one.measure() == {
        "system/acceleratorPercent": 97.0,
        "system/acceleratorMemoryBytes": float(5 << 30),
    }
    some = Accelerators(library=FakeNvml([(1, 10), (2, 20), (3, 30)]), visible="2,0,7")
    assert some.measure() == {
        "system/acceleratorPercent/0": 3.0,
        "system/acceleratorMemoryBytes/0": 30.0,
        "system/acceleratorPercent/1": 1.0,
        "system/acceleratorMemoryBytes/1": 10.0,
    }
    assert Accelerators(library=FakeNvml([(1, 10)], broken=True)).measure() == {}
    assert Accelerators(library=FakeNvml([(1, 10)]), visible="").measure() == {}


SLOW = """
import json, os, time
def train(folder):
    from runyard import rundir
    while not (folder / "system.jsonl").exists():
        time.sleep(0.05)
    rundir.write_json(folder / "result.json", {"outcome": "Succeeded", "reason": "Completed"})
    return 0
"""


def test_a_supervisor_ships_its_samples_once_although_the_server_fails(
    folder: Path, server: Any, start: Start
) -> None:
    server.fail = lambda path, times: "lose" if times % 2 else None
    assert start(folder, SLOW).wait(timeout=30) == 0
    samples = [json.loads(line) for line in server.lines["system"]]
    lines, _ = rundir.read_lines(rundir.AttemptDir(folder).system, 0)
    assert samples == [json.loads(line) for line in lines]
    assert samples[0]["values"]["system/memoryBytes"] > 0
    assert samples[0]["t"] > 1_600_000_000_000
